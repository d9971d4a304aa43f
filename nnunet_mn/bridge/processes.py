"""Work on many items in a few processes, with bounded memory and without orphans."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_handle
from typing import TypeVar

import SimpleITK
import torch

from nnunet_mn.errors import MNError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], *, processes: int, remedy: str
) -> Generator[Result, None, None]:
    """Results of `work` for every item, as they come.

    Args:
        work: a picklable function.
        items: taken only as fast as they are worked on.
        processes: how many; 1 means this process.
        remedy: how to take fewer of them, for the message.

    Raises:
        MNError: when a process was killed, or none can be started. Errors of `work` come through; items not yet begun
            are then dropped.
    """
    if processes == 1:
        yield from map(work, items)
        return
    # Spawned, not forked: a forked child would inherit the parent's threads (CUDA, ITK) half-way.
    with _starts_told(remedy):
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield from _as_completed(pool, work, iter(items), at_once=2 * processes, remedy=remedy)
    except BrokenProcessPool as error:
        raise MNError(
            f"one of {processes} processes was killed, most often because memory ran out; run again with fewer of "
            f"them, by {remedy}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _as_completed(
    pool: ProcessPoolExecutor, work: Callable[[Item], Result], items: Iterator[Item], *, at_once: int, remedy: str
) -> Iterator[Result]:
    """Keep a bounded number of items in flight, and with it the memory."""
    with _interrupts_ignored(), _starts_told(remedy):
        pending: set[Future[Result]] = {pool.submit(work, item) for item in itertools.islice(items, at_once)}
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        with _interrupts_ignored(), _starts_told(remedy):
            pending |= {pool.submit(work, item) for item in itertools.islice(items, len(done))}
        for future in done:
            yield future.result()


@contextmanager
def _starts_told(remedy: str) -> Iterator[None]:
    """Processes start inside: an error of the system is no error of a file."""
    try:
        yield
    except OSError as error:
        raise MNError(f"worker processes do not start ({error}); run again with one, by {remedy}") from error


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that start inside ignore Ctrl-C, which a terminal sends to all of them. Their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker() -> None:
    """One thread per worker, and an end with the parent: else it would wait for work of a killed parent forever."""
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_handle([sentinel])
    os._exit(1)
