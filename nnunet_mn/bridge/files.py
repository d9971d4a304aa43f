"""Read JSON, write files whole or not at all, share and lock them, and tell what the system refuses."""

import contextlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np

from nnunet_mn.errors import MNError

try:
    import fcntl
except ImportError:  # Windows: filelock needs no flock there
    fcntl = None  # type: ignore[assignment]  # not on Windows


@contextlib.contextmanager
def refusals_told() -> Iterator[None]:
    """A context and a decorator: an error of the file system becomes a message for the user.

    Raises:
        MNError: in place of an OSError, with its file.
    """
    try:
        yield
    except OSError as error:
        raise MNError(
            f"{error.filename or 'a file'} cannot be used ({error.strerror or error}): check the path, and the "
            f"permissions of the file and of the folders around it"
        ) from error


@refusals_told()
def read_object(file: Path, *needed: str, remedy: str) -> dict[str, Any]:
    """The content of a JSON file.

    Args:
        needed: keys that it must have.
        remedy: for the message.

    Raises:
        MNError: when it is missing, may not be read, or is no object with these keys.
    """
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError) else error
        raise MNError(f"{file} cannot be read ({reason}); {remedy}") from error
    if missing := [key for key in needed if not isinstance(content, dict) or key not in content]:
        raise MNError(f"{file} lacks {', '.join(missing)}; {remedy}")
    if not isinstance(content, dict):
        raise MNError(f"{file} must hold a JSON object, but holds {str(content)[:60]!r}; {remedy}")
    return content


def without_nan(value: Any) -> Any:
    """A value for JSON, which has no NaN: None in its place, in lists and dicts, too."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_whole(file: Path, text: str, *, mode: int | None = None) -> None:
    """Write a text file through a temporary one beside it; a kill leaves the old or the new file.

    Args:
        file: in an existing folder.
        text: its whole content.
        mode: permission bits; None: those of any new file here.

    Raises:
        OSError: when it cannot be written; the old file stays, and nothing else.
    """
    replace_whole(file, lambda stream: stream.write(text.encode()), mode=mode)


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed `.npz` file in the same way.

    Raises:
        OSError: when it cannot be written; the old file stays, and nothing else.
    """
    replace_whole(file, lambda stream: np.savez_compressed(stream, **arrays))  # type: ignore[arg-type]  # numpy's types expect allow_pickle


def replace_whole(
    file: Path,
    write: Callable[[BinaryIO], object],
    *,
    mode: int | None = None,
    before: Callable[[], object] | None = None,
) -> None:
    """Write a file in the same way.

    Args:
        file: in an existing folder.
        write: puts the content into a stream.
        mode: permission bits; None: those of any new file here.
        before: called when the new file is whole on the disk, before it takes its place.
    """
    temporary = file.with_name(f".{file.name}.{uuid4().hex}.tmp")  # containers that share a disk have equal process ids
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is not None:
            temporary.chmod(mode)
        if before is not None:
            before()
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def share(path: Path) -> None:
    """Give a new file or folder the group of the folder around it, and let the same users write to it.

    A umask often keeps the others of a group from that. They could replace the file anyway, but not append to it.
    """
    around = path.parent.stat()
    if around.st_mode & stat.S_ISVTX or not hasattr(os, "chown"):  # no folder of a group; Windows
        return
    with contextlib.suppress(OSError):  # this user is not of the group
        os.chown(path, -1, around.st_gid)
        path.chmod(stat.S_IMODE(path.stat().st_mode) | around.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def why_no_lock(file: Path) -> str | None:
    """The system's reason if a file cannot be locked at all. A lock of another process is none.

    filelock cannot be asked: by its version it waits forever, warns, or raises one of several errors.
    """
    if fcntl is None:
        return None
    is_new = not file.exists()
    with file.open("a") as stream:
        if is_new:
            share(file)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return None  # locked
        except OSError as error:
            return error.strerror
    return None
