"""A lock and a staging folder for each part of the preprocessing: one process works on a part at a time."""

import contextlib
import glob
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from nnunet_mn.bridge.files import share, why_no_lock
from nnunet_mn.errors import MNError


class Part(NamedTuple):
    """One of several jobs with a share of a folder's cases. All its files lie beside the folder."""

    folder: Path
    number: int
    of: int

    def file(self, end: str) -> Path:
        """A file of this part. It lies outside of the folder: nnU-Net allows nothing but cases inside."""
        return self.folder.with_name(f"{self.folder.name}.{self.number}-of-{self.of}{end}")


@contextlib.contextmanager
def staging_folder(part: Part, log: Callable[[str], None]) -> Iterator[Path]:
    """Make a new folder to work in, and lock the part. Remains of killed processes are removed.

    Some file systems have no locks. There, the staging folder itself says that a process works.

    Args:
        part: work for one process at a time.
        log: is told about waiting for another process, and about a file system without locks.

    Raises:
        MNError: without locks, when another staging folder of the part exists.
        OSError: when nothing can be written there.
    """
    staging = part.file(f".staging-{uuid.uuid4().hex}")
    why = why_no_lock(part.file(".lock"))
    with contextlib.nullcontext() if why is not None else _locked(part.file(".lock"), log):
        try:
            if why is None:
                _remove_stale(part)
            staging.mkdir()
            share(staging)
            if why is not None:
                log(f"WARNING: files in {part.folder.parent} cannot be locked ({why}); preprocess there in one job")
                _refuse_company(part, staging, why)
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def file_lock(file: Path, *, timeout: float = -1) -> FileLock:
    """A lock that the kernel releases when its process dies. The file exists, and keeps its permissions.

    Raises:
        Timeout: an OSError, when it is acquired and another process holds it for so many seconds.
    """
    return FileLock(file, timeout=timeout, mode=stat.S_IMODE(file.stat().st_mode) & 0o777 | 0o600)


@contextlib.contextmanager
def _locked(file: Path, log: Callable[[str], None]) -> Iterator[None]:
    lock = file_lock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"Another process preprocesses the unlabeled cases; waiting for it ({lock.lock_file})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _refuse_company(part: Part, own: Path, why: str) -> None:
    """Each of two processes makes its folder before it looks. So at least one of them sees the other."""
    for other in part.folder.parent.glob(f"{glob.escape(part.file('.staging-').name)}*"):
        if other != own:
            raise MNError(
                f"{other} says that another process preprocesses these cases, and files there cannot be locked "
                f"({why}): wait for its end, or delete this folder if no process is at work; before a training on "
                f"several GPUs run `nnunet-mn preprocess`"
            )


def _remove_stale(part: Part) -> None:
    """Remove the staging folders of parts without a process, as far as this user may."""
    for stale in part.folder.parent.glob(f"{glob.escape(part.folder.name)}.*.staging-*"):
        owner = stale.with_name(stale.name.rpartition(".staging-")[0] + ".lock")
        try:
            if owner == part.file(".lock"):
                shutil.rmtree(stale, ignore_errors=True)
            elif why_no_lock(owner) is None:
                with file_lock(owner, timeout=0):
                    shutil.rmtree(stale, ignore_errors=True)
        except (Timeout, PermissionError):
            continue  # in use, or of another user
