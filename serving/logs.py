"""The log: as text or JSON, at levels that can be changed while the server runs."""

from __future__ import annotations

import enum
import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from typing import TextIO

from slipway.serving.errors import InvalidRequestError, UnsupportedError, quoted
from slipway.serving.observation import ACCESS_LOGGER

__all__ = ["LEVELS", "LogControl", "LogFormat"]

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_FLAGS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_VERBOSE = "log_verbose_level"
_FORMAT = "log_format"

_LINES_A_SECOND = 100
"""Of those that one place in the code writes. Clients could fill a disk with refusals."""

Setting = bool | int | str


class LogFormat(enum.Enum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


class LogControl(logging.Filter):
    """The log of this process, and what of it is written. Safe for several threads.

    Unless everything is written, each place in the code has so many lines a second, and the first
    of another second says how many of the last ones were left out.

    It has the settings of Triton's LogSettings: `log_error`, `log_warning`, `log_info`,
    `log_verbose_level` (0, or more for everything) and `log_format` (`text` or `json`).
    """

    def __init__(
        self, level: str, log_format: LogFormat = LogFormat.TEXT, stream: TextIO = sys.stderr
    ) -> None:
        """Sends the log to `stream`, and takes the place of what was set up before.

        Args:
          level: the least of what is written, of LEVELS.
          log_format: how it is written.
          stream: where to.
        """
        super().__init__()
        self._lock = threading.Lock()
        self._bound = _Bound()
        self._configured = LEVELS[level]
        self._enabled = {number for number in LEVELS.values() if number >= self._configured}
        self._handler = logging.StreamHandler(stream)
        self._handler.addFilter(self)
        self._set_format(log_format)
        logging.basicConfig(handlers=[self._handler], force=True)
        logging.getLogger(ACCESS_LOGGER).setLevel(logging.INFO)
        self._apply()

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a line is written."""
        if record.name == ACCESS_LOGGER or record.levelno >= logging.CRITICAL:
            return True
        level = max(
            (number for number in LEVELS.values() if number <= record.levelno),
            default=logging.DEBUG,
        )
        if level not in self._enabled:
            return False
        return logging.DEBUG in self._enabled or self._bound.admits(record)

    @property
    def settings(self) -> dict[str, Setting]:
        """Returns the settings by name."""
        with self._lock:
            flags: dict[str, Setting] = {
                name: number in self._enabled for name, number in _FLAGS.items()
            }
            verbose = int(logging.DEBUG in self._enabled)
            return {**flags, _VERBOSE: verbose, _FORMAT: self._format.value}

    def update(self, changes: Mapping[str, Setting]) -> None:
        """Changes settings, all of them or, where one is wrong, none.

        Raises:
          InvalidRequestError: a value is none that the setting may have.
          UnsupportedError: there is no such setting here.
        """
        with self._lock:
            enabled, log_format = set(self._enabled), self._format
            for name, value in changes.items():
                if name in _FLAGS and isinstance(value, bool):
                    enabled = enabled | {_FLAGS[name]} if value else enabled - {_FLAGS[name]}
                elif name == _VERBOSE and isinstance(value, int) and not isinstance(value, bool):
                    enabled = enabled | {logging.DEBUG} if value else enabled - {logging.DEBUG}
                elif name == _FORMAT and value in [item.value for item in LogFormat]:
                    log_format = LogFormat(value)
                elif name in (*_FLAGS, _VERBOSE, _FORMAT):
                    expected = {_VERBOSE: "a number", _FORMAT: "'text' or 'json'"}
                    raise InvalidRequestError(
                        f"{name} is {quoted(str(value))}; it must be "
                        f"{expected.get(name, 'true or false')}"
                    )
                else:
                    raise UnsupportedError(
                        f"there is no log setting {quoted(name)} here; there are "
                        f"{', '.join((*_FLAGS, _VERBOSE, _FORMAT))}, and the log goes to stderr"
                    )
            self._enabled = enabled
            self._set_format(log_format)
            self._apply()

    def toggle_debug(self) -> bool:
        """Writes everything, or, where that is so already, what was configured at the start.

        Returns whether everything is written now.
        """
        with self._lock:
            everything = logging.DEBUG not in self._enabled
            least = logging.DEBUG if everything else max(self._configured, logging.INFO)
            self._enabled = {number for number in LEVELS.values() if number >= least}
            self._apply()
            return everything

    def _set_format(self, log_format: LogFormat) -> None:
        self._format = log_format
        self._handler.setFormatter(
            _JsonFormatter() if log_format is LogFormat.JSON else _TextFormatter()
        )

    def _apply(self) -> None:
        # Lines that nobody wants are not even made.
        logging.getLogger().setLevel(min(self._enabled, default=logging.CRITICAL))


class _Bound:
    """Counts the lines of each place in the code. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, int], tuple[int, int]] = {}

    def admits(self, record: logging.LogRecord) -> bool:
        """Returns whether a line is written, and gives it the number of those that were not."""
        place, now = (record.pathname, record.lineno), int(time.monotonic())
        with self._lock:
            second, count = self._counts.get(place, (now, 0))
            left_out = 0
            if second != now:
                left_out, count = max(count - _LINES_A_SECOND, 0), 0
            self._counts[place] = (now, count + 1)
        if left_out:
            record.fields = {**getattr(record, "fields", {}), "left_out": left_out}
        return count < _LINES_A_SECOND


class _TextFormatter(logging.Formatter):
    """Lines for people: time, level, logger, message, and what else is known of it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        more = _extra(record).items()
        return " ".join([text, *(f"{name}={value}" for name, value in more)])


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    """Returns what a line says beside its message: the request's id, and fields."""
    extra: dict[str, object] = {}
    identifier = getattr(record, "request_id", "")
    if identifier:
        extra["request_id"] = identifier
    return extra | dict(getattr(record, "fields", {}))
