"""A server process whose log is kept, and which so can be asked what it shows of itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from slipway.tests.serving.server_process import ServerProcess


class WatchedServer(ServerProcess):
    """A server with a log of its own.

    Attributes:
      log: the file that its standard error goes to.
    """

    def __init__(self, repository: Path, log: Path, flags: Sequence[str] = ()) -> None:
        """Starts a server, and returns when it is ready.

        Args:
          repository: what it serves.
          log: where its standard error goes.
          flags: of its command line, beside those for the repository and the port.
        """
        self.log = log
        with log.open("w") as file:
            super().__init__(repository, flags, log=file)

    @property
    def monitoring(self) -> str:
        """Returns the URL of its status page, which its log has."""
        found = re.search(r"http://[^\s\"]+", self.log.read_text())
        assert found is not None
        return found[0]
