"""Words for messages about files and cases. Needs neither torch nor a reader of images."""

import os
from collections.abc import Sequence
from pathlib import Path

MOST_NAMED = 5  # files or cases in one message


def name_some(items: Sequence[str]) -> str:
    """A readable list of at most a few items."""
    more = len(items) - MOST_NAMED
    return ", ".join(map(printable, items[:MOST_NAMED])) + (f" and {more} more" if more > 0 else "")


def printable(name: str | Path) -> str:
    """A file name with an escape such as \\xfc for each byte that is not UTF-8. Such a byte cannot be printed."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def fault_of_path(image: str | Path) -> str | None:
    """Why an image cannot be opened by its path, as a sentence for the user. The image itself is not read."""
    if (shown := printable(image)) != str(image):
        return f"the name of {shown} is not UTF-8, and image readers fail on such names; rename the file"
    if os.path.islink(image) and not os.path.exists(image):
        target = printable(os.readlink(image))
        return f"{image} is a link to {target}, which does not exist here; mount or restore it, or remove the link"
    return None
