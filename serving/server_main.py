"""The binary //serving:server."""

import sys

from slipway.serving.main import main

if __name__ == "__main__":
    sys.exit(main())
