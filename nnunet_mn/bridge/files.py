"""Write files whole or not at all."""

import os
from pathlib import Path


def write_whole(file: Path, text: str, *, mode: int | None = None) -> None:
    """Write a text file through a temporary one beside it; a kill leaves the old or the new file.

    Args:
        file: in an existing folder.
        text: its whole content.
        mode: permission bits; None: those of any new file here.

    Raises:
        OSError: when it cannot be written; the old file stays, and nothing else.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
