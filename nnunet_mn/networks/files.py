"""A model's side files: JSON, and pointers of git-lfs."""

import json
from pathlib import Path
from typing import Any

from nnunet_mn.errors import MNError

_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path) -> None:
    """Refuse a git-lfs pointer in the place of a large file.

    Raises:
        MNError: with the command to get the file.
    """
    with path.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise MNError(
                f"{path} is a pointer of git-lfs, not the file itself; run `git lfs pull` in {path.absolute().parent}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file beside the weights.

    Raises:
        MNError: when it is a pointer of git-lfs, or holds anything else.
    """
    try:
        refuse_pointer(path)
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise MNError(f"{path} cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise MNError(f"{path} holds no JSON object but {content!r:.60}; fetch it again")
    return content
