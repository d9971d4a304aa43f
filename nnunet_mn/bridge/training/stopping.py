"""Ending a training in good order when a cluster asks for it."""

import os
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

from nnunet_mn.bridge.training import ddp, workers
from nnunet_mn.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM sends these before it kills
OF_RANKS = (*SIGNALS, signal.SIGINT)  # torch sends SIGINT to all ranks when their parent ends


class StopRequest:
    """Remembers the signal to stop this process.

    Forked workers inherit the handlers. In a worker the signal has its default effect.
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
        """Give the signals back to their previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Stopping:
    """Whether a training must end early, and why. All ranks stop together."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.in_step = False  # an update is under way
        self.loaders: tuple[Any, ...] = ()
        self._request: StopRequest | None = None

    def listen(self) -> None:
        """Take the signals from now on."""
        self._request = StopRequest(SIGNALS if self.ranks.group is None else OF_RANKS)

    def stop_listening(self) -> None:
        """Give the signals back."""
        if self._request is not None:
            self._request.uninstall()

    def finish_loaders(self) -> None:
        """End the loaders' background processes."""
        for running in self.loaders:
            workers.finish_workers(running)

    def signal_name(self) -> str:
        """Name of the signal to stop this process; empty if none came."""
        return "" if self._request is None else self._request.signal_name or ""

    def is_asked(self) -> bool:
        """Whether any rank was asked to stop."""
        return self.ranks.any(bool(self.signal_name()))

    def is_ending(self) -> bool:
        """Whether this process was asked to stop, or has lost a loader worker."""
        return bool(self.signal_name() or self.broken_loaders())

    def broken_loaders(self) -> list[Any]:
        """Loaders with a lost worker. With several ranks none is listed: `ddp.RankedLoader` tells all of them."""
        alone = self.ranks.group is None
        return [running for running in self.loaders if alone and workers.has_lost_one(running)]

    def is_due_to_a_signal(self, error: Exception) -> bool:
        """Whether a signal caused the error. One to the whole job ends loader workers, too, between two steps."""
        all_know = self.ranks.group is None or isinstance(error, ddp.LoaderFailureError)
        return isinstance(error, RuntimeError) and not self.in_step and all_know and self.is_asked()
