"""Ending a training in good order when a cluster asks for it."""

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import FrameType
from typing import Any

from nnunet_mn.bridge.training import ddp, workers
from nnunet_mn.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM sends these before it kills
OF_RANKS = (*SIGNALS, signal.SIGINT)  # torch sends SIGINT to all ranks when their parent ends


class _Handlers(ABC):
    """Takes signals to this process.

    Forked workers inherit the handlers. In a worker the signal has its default effect.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS) -> None:
        self._pid = os.getpid()
        self._previous = {number: signal.signal(number, self._handle) for number in signals}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.take(signal.Signals(number).name)

    @abstractmethod
    def take(self, name: str) -> None:
        """Do what is due on the signal of this name."""

    def uninstall(self) -> None:
        """Give the signals back to their previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class StopRequest(_Handlers):
    """Remembers the signal to stop this process."""

    signal_name: str | None = None

    def take(self, name: str) -> None:
        """Remember it."""
        self.signal_name = name


class EndAtOnce(_Handlers):
    """Ends this process where nothing has to be saved. Unlike a signal's default effect, this gives locks back."""

    def take(self, name: str) -> None:
        """End with a sentence."""
        raise SystemExit(f"M&N stopped on {name}; run the same command with --c to go on")


class Stopping:
    """Whether a training must end early, and why. All ranks stop together."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.in_step = False  # an update is under way
        self.loaders: tuple[Any, ...] = ()
        self._request: StopRequest | None = None
        self._end_at_once: EndAtOnce | None = None

    def end_at_once(self) -> None:
        """On a signal end the process, before the first step and after the last one."""
        self._end_at_once = EndAtOnce()

    def give_signals_back(self) -> None:
        """Undo `end_at_once`."""
        if self._end_at_once is not None:
            self._end_at_once.uninstall()

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
