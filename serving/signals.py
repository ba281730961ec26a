"""Signals of a server: those that stop it, and SIGUSR1, which has its log write everything."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slipway.serving.logs import LogControl

__all__ = ["hold_signals", "let_signals_end_it", "stop_event"]

_LOGGER = logging.getLogger(__name__)

_STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def hold_signals() -> None:
    """Has signals wait for `stop_event`, in all threads that there will be.

    To be called before what takes long to import: until then the system ends the process at once,
    or, if that is the first one of a container, drops them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_STOP, signal.SIGUSR1})


def let_signals_end_it() -> None:
    """Undoes `hold_signals`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_STOP, signal.SIGUSR1})


def stop_event(log: LogControl) -> threading.Event:
    """Returns an event that SIGTERM, SIGINT and SIGHUP set; a second one ends the process at once.

    SIGHUP is nothing where it was ignored at the start, as nohup has it. SIGUSR1 has the log write
    everything, and the next one what it wrote before.

    Call it before there are other threads.
    """
    # Python runs signal handlers in its main thread, but a signal that another thread is given does
    # not wake a main thread that waits. So all threads block signals, and one takes them.
    hold_signals()
    numbers = set(_STOP)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    stop = threading.Event()

    def take() -> None:
        while signal.sigwait({*numbers, signal.SIGUSR1}) == signal.SIGUSR1:
            everything = log.toggle_debug()
            _LOGGER.warning("SIGUSR1: the log is %s", "complete" if everything else "as it was")
        stop.set()
        if os.getpid() == 1:
            # The system keeps from the first process of a container what would end it.
            os._exit(128 + signal.sigwait(numbers))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        threading.Event().wait()  # the thread that the second signal is given to

    threading.Thread(target=take, name="signals", daemon=True).start()
    return stop
