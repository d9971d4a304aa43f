"""The background processes of a loader, and what is heard of them when they are killed."""

import collections
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from nnunet_mn.bridge.last_word import WorkerFailures
from nnunet_mn.bridge.training.workers import finish_workers, start_workers, worker_count
from nnunet_mn.errors import MNError

# stock's thread that collects batches ends with an error of its own
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

CACHED = 4
LIMIT = 30.0  # seconds in which the end of a worker must be heard of


class Batches:
    """A loader of batches of one number: how many this worker has drawn."""

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.before = before
        self.drawn = 0

    def set_thread_id(self, thread_id: int) -> None:
        pass

    def __next__(self) -> dict[str, Any]:
        self.before(self.drawn)
        self.drawn += 1
        return {"data": torch.full((2, 2), float(self.drawn))}


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Starts three workers, and ends the test where it hangs."""
    started = []

    def run(loader: Batches) -> Any:
        started.append(start_workers(loader, workers=3, cached=CACHED, pin_memory=False, seed=1))
        return started[-1]

    def hangs(*_: object) -> None:
        raise TimeoutError(f"nothing was heard within {LIMIT} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, LIMIT, LIMIT)
    yield run
    try:
        for running in started:
            finish_workers(running)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        for running in started:  # one that hangs would do so again when Python deletes it
            for process in running._processes:
                process.kill()
            running._processes, running.initialized, running.was_initialized = [], False, False


def draw_until_told(running: Any) -> None:
    with pytest.raises(MNError, match=r"worker of the data loader was killed \(SIGKILL\).*nnUNet_n_proc_DA"):
        collections.deque(iter(running), maxlen=0)


def kill(running: Any) -> None:
    os.kill(running._processes[1].pid, signal.SIGKILL)


def test_a_worker_killed_at_its_first_batch_is_told(start: Callable[..., Any]) -> None:
    draw_until_told(start(Batches(lambda _: os.kill(os.getpid(), signal.SIGKILL))))


def test_a_worker_killed_between_batches_is_told(start: Callable[..., Any]) -> None:
    running = start(Batches(lambda _: time.sleep(0.01)))
    for _ in range(5):
        next(running)
    kill(running)
    draw_until_told(running)


def test_a_worker_killed_while_the_queue_is_full_is_told(start: Callable[..., Any]) -> None:
    running = start(Batches())
    next(running)
    while not (running.pin_memory_queue.full() and all(queue.full() for queue in running._queues)):
        time.sleep(0.01)
    kill(running)
    draw_until_told(running)


def die_with_the_locks_of_events(drawn: int) -> None:
    """Be killed while looking whether the training is to end, which a worker does 500 times a second."""
    if drawn < 2:
        return
    producer = sys._getframe(2).f_locals
    for event in (producer["abort_event"], producer["pause_event"]):
        with suppress(AttributeError):  # ours has no lock
            event._cond.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_with_the_lock_of_an_event_is_told(start: Callable[..., Any]) -> None:
    draw_until_told(start(Batches(die_with_the_locks_of_events)))


def test_a_killed_worker_is_told_without_the_thread_that_collects_batches(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchgenerators.dataloading.multi_threaded_augmenter.results_loop", lambda *_: None)
    running = start(Batches())
    running._start()
    kill(running)
    draw_until_told(running)


def test_batches_go_on_while_all_workers_live(start: Callable[..., Any]) -> None:
    running = start(Batches())
    assert len({float(next(running)["data"].max()) for _ in range(30)}) >= 10


def test_many_workers_can_tell_long_stories_at_once() -> None:
    failures = WorkerFailures()
    failures.tell(MNError("first " + "long " * 10_000))
    for _ in range(5):
        failures.tell(ValueError("second"))
    told = failures.first()
    assert told is not None
    assert str(told.sentence).startswith("first long")
    assert told.traceback.rstrip().endswith("long")


def test_worker_count_follows_the_cpus_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert worker_count() == 1
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert worker_count() == 0
