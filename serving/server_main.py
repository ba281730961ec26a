"""The binary //serving:server."""

import sys

from slipway.serving.polling import read_while_polling

if __name__ == "__main__":
    read_while_polling()
    from slipway.serving.main import main

    sys.exit(main())
