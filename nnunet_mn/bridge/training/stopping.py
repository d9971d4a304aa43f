"""Ending a training in good order when a cluster asks for it."""

import os
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

from nnunet_mn.bridge.training import ddp, workers
from nnunet_mn.ranks import Ranks

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


class Stopping:
    """Whether a training is to end early, and why.

    Args:
        ranks: they stop together.
    """

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
            workers.finish_workers(running.loader if isinstance(running, ddp.RankedLoader) else running)

    def signal_name(self) -> str:
        """The signal that asked this process to stop, or nothing."""
        return "" if self._request is None else self._request.signal_name or ""

    def is_asked(self) -> bool:
        """Whether any rank was asked to stop."""
        return self.ranks.any(bool(self.signal_name()))

    def is_ending(self) -> bool:
        """Whether this process was asked, or has lost a loader worker."""
        return bool(self.signal_name() or self.broken_loaders())

    def broken_loaders(self) -> list[Any]:
        """Loaders that have lost a worker. Of several ranks' loaders only all ranks together ask."""
        alone = self.ranks.group is None
        return [running for running in self.loaders if alone and workers.has_lost_one(running)]

    def is_due_to_a_signal(self, error: Exception) -> bool:
        """A signal to the whole job ends the loader's workers, too. It shows as an error between two steps."""
        all_know = self.ranks.group is None or isinstance(error, ddp.LoaderFailureError)
        return isinstance(error, RuntimeError) and not self.in_step and all_know and self.is_asked()
