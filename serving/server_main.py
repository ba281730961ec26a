"""The binary //serving:server."""

import sys

from slipway.serving.polling import read_while_polling
from slipway.serving.signals import hold_signals

if __name__ == "__main__":
    hold_signals()
    read_while_polling()
    from slipway.serving.main import main

    sys.exit(main())
