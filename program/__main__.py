"""`python -m slipway.program`: see `command_line`."""

import sys

from slipway.program.command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
