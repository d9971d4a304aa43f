"""Ending a training in good order when a cluster asks for it."""

import os
import signal
from collections.abc import Sequence
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM sends these before it kills
OF_RANKS = (*SIGNALS, signal.SIGINT)  # which torch sends to the processes of several GPUs when their parent ends


class StopRequest:
    """Remembers that a signal asked this process to stop.

    Forked workers inherit the handlers: there the signal does what it does by default.

    Args:
        signals: which of them ask.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS) -> None:
        self.signal_name: str | None = None
        self._pid = os.getpid()
        self._previous = {number: signal.signal(number, self._handle) for number in signals}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal_name = signal.Signals(number).name

    def uninstall(self) -> None:
        """Give the signals back to the handlers that had them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
