"""A lock and a staging folder for each part of the preprocessing: one process works on a part at a time."""

import contextlib
import glob
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout


class Part(NamedTuple):
    """One of several jobs that divide the cases of a folder. All its files lie beside that folder."""

    folder: Path
    number: int
    of: int

    def file(self, end: str) -> Path:
        """A file of this part. It lies outside of the folder: nnU-Net allows nothing but cases inside."""
        return self.folder.with_name(f"{self.folder.name}.{self.number}-of-{self.of}{end}")


@contextlib.contextmanager
def staging_folder(part: Part, log: Callable[[str], None]) -> Iterator[Path]:
    """Make a new folder to work in, and lock the part. What killed processes left behind is removed.

    Args:
        part: the work that one process only may do.
        log: is told when another one is waited for.

    Raises:
        OSError: when nothing can be written there.
    """
    lock = FileLock(part.file(".lock"))  # the kernel releases it when its process dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"Another process preprocesses the unlabeled cases; waiting for it ({lock.lock_file})")
        lock.acquire()
    staging = part.file(f".staging-{uuid.uuid4().hex}")
    try:
        _remove_stale(part)
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        lock.release()


def _remove_stale(part: Part) -> None:
    """Remove staging folders whose part nobody works on."""
    for stale in part.folder.parent.glob(f"{glob.escape(part.folder.name)}.*.staging-*"):
        owner = stale.with_name(stale.name.rpartition(".staging-")[0] + ".lock")
        try:
            with contextlib.nullcontext() if owner == part.file(".lock") else FileLock(owner, timeout=0):
                shutil.rmtree(stale)
        except Timeout:
            continue  # in use
