"""Folders for results in the making, beside their places. What a killed process leaves is removed by the next one."""

import glob
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock

from nnunet_mn.bridge.files import why_no_lock

LONGEST = 200  # bytes of a target's name within that of its staging folder
_ANY_OWNER = "[0-9a-f]" * 32  # of a staging folder: the digits of a uuid


@contextmanager
def staging_beside(target: Path) -> Iterator[Path]:
    """A new folder beside a target. It is removed at the end, unless `take_place` has renamed it.

    A kill leaves the folder. The next process with this target removes it. A lock beside each folder tells whether
    somebody works there. On a file system without locks nobody can tell, and remains stay.

    Raises:
        OSError: when nothing can be written there.
    """
    own_name = f".{_short(target.name)}.{uuid4().hex}.new"  # containers that share a disk have equal process ids
    own = target.with_name(own_name)
    lock = own.with_suffix(".lock")
    try:
        can_lock = why_no_lock(lock) is None
        with FileLock(lock) if can_lock else nullcontext():
            if can_lock:
                _clear_remains(target, but=lock)
            own.mkdir()
            yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        lock.unlink(missing_ok=True)


def take_place(staging: Path, target: Path, *, replace: bool = True) -> None:
    """Rename a staging folder to its target.

    Args:
        replace: what was there goes. A kill in between leaves it for the next process.

    Raises:
        FileExistsError: without `replace`, when something is there.
    """
    if not replace and target.exists():
        raise FileExistsError(str(target))
    old = staging.with_suffix(".old")
    try:
        if target.exists():
            target.rename(old)
        staging.rename(target)
    finally:
        _put_back(old, target)


def save_tensors(content: Mapping[str, Any], file: Path) -> None:
    """`torch.save`, but what torch's zip writer raises on a full disk is an OSError."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _short(name: str) -> str:
    """A name to which more may be added: file systems allow 255 bytes."""
    whole = os.fsencode(name)
    return name if len(whole) <= LONGEST else sha256(whole).hexdigest()


def _clear_remains(target: Path, *, but: Path) -> None:
    """Remove the folders of killed processes, and put back a result that was not yet replaced."""
    for lock in target.parent.glob(f".{glob.escape(_short(target.name))}.{_ANY_OWNER}.lock"):
        if lock == but:
            continue
        with suppress(OSError):  # somebody works there, or the files are another user's
            with FileLock(lock, timeout=0):
                _put_back(lock.with_suffix(".old"), target)
                shutil.rmtree(lock.with_suffix(".new"), ignore_errors=True)
            lock.unlink(missing_ok=True)


def _put_back(old: Path, target: Path) -> None:
    """Put an old result back if nothing took its place; else remove it."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
