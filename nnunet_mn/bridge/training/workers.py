"""The background processes of a data loader. When one is killed, the training ends with a reason."""

import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import Value
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_mn.device import cpu_count
from nnunet_mn.errors import MNError

FINISH_S = 10.0  # seconds to wait for a thread, as stock


class Flag:
    """An event without a lock. A worker killed with a lock in its hands would stop all others."""

    def __init__(self) -> None:
        self._value = Value("b", 0, lock=False)
        self._here = False

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._here or bool(self._value.value)

    def set_here(self) -> None:
        """Set it for the threads of this process alone."""
        self._here = True

    def set(self) -> None:
        """Set it for all processes."""
        self._value.value = 1

    def clear(self) -> None:
        """Take it back."""
        self._here, self._value.value = False, 0


class _Augmenter(MultiThreadedAugmenter):
    """Takes batches from one worker after the other, and tells of a killed one."""

    _processes: list[Any]
    abort_event: Flag
    pin_memory_thread: threading.Thread | None
    killed_by: tuple[int, ...] = ()  # signals

    def __setattr__(self, name: str, value: Any) -> None:
        is_event = name in ("abort_event", "pause_event") and value is not None
        super().__setattr__(name, Flag() if is_event else value)

    def _start(self) -> None:
        super()._start()
        watch = threading.Thread(target=_set_at_first_end, args=(self.abort_event, self._processes), daemon=True)
        watch.start()

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except RuntimeError as error:  # a worker is gone
            if not self.killed_by:
                raise
            names = ", ".join(sorted({signal.Signals(number).name for number in self.killed_by}))
            raise MNError(
                f"a worker of the data loader was killed ({names}), most often because memory ran out: ask for more, "
                f"or set nnUNet_n_proc_DA to fewer workers, and run the same command with --c to go on"
            ) from error

    def _finish(self, *args: Any, **named: Any) -> None:
        ended = [process for process in self._processes if wait([process.sentinel], timeout=0)]
        if self.pin_memory_thread is not None:  # it reads from workers: it has to end before they do
            self.abort_event.set_here()
            self.pin_memory_thread.join(timeout=FINISH_S)
        super()._finish(*args, **named)
        codes = [process.exitcode or 0 for process in ended]
        self.killed_by = tuple(-code for code in codes if code < 0)


def _set_at_first_end(flag: Flag, processes: Sequence[Any]) -> None:
    """Set the flag when the first process ends. Stock's collecting thread looks too, but may hang by then."""
    wait([process.sentinel for process in processes])
    flag.set()


def worker_count() -> int:
    """Number of augmentation workers: `nnUNet_n_proc_DA` if set, else stock's but at most the CPUs of this process."""
    wanted = int(get_allowed_n_proc_DA())
    return wanted if "nnUNet_n_proc_DA" in os.environ else min(wanted, cpu_count())


def start_workers(loader: nnUNetDataLoader, *, workers: int, cached: int, pin_memory: bool, seed: int | None) -> Any:
    """Run a loader in background processes, or in this one for 0 workers.

    Batches come from the workers in turn. Stock takes the first one ready; then the number of unlabeled samples
    could not follow from the iteration.

    Args:
        cached: most batches waiting.
        pin_memory: of the batches, for CUDA.
        seed: of the workers' generators; None draws fresh ones.
    """
    if workers == 0:
        return SingleThreadedAugmenter(loader, None)
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(workers)]
    each = -(-cached // workers)
    return _Augmenter(loader, None, workers, each, seeds=seeds, pin_memory=pin_memory, wait_time=0.002)


def has_lost_one(running: Any) -> bool:
    """Whether a process of a loader from `start_workers` has ended. Its next batch is then an error."""
    flag = getattr(running, "abort_event", None)
    return flag is not None and flag.is_set()


def finish_workers(running: Any) -> None:
    """End the processes of a loader from `start_workers`."""
    if hasattr(running, "_finish"):
        running._finish()
