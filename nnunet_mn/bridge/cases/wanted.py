"""The record of wanted images: the names in each folder of unlabeled images when the raw data were last at hand."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.errors import MNError


def read_wanted(folder: Path) -> dict[str, list[str]] | None:
    """Names of the wanted cases by source, or None without a record.

    Args:
        folder: of the preprocessed unlabeled cases. The record lies beside it.

    Raises:
        MNError: when the record is broken.
    """
    file = _file(folder)
    try:
        content = json.loads(file.read_bytes())
        return {str(source): [str(name) for name in names] for source, names in content.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise MNError(
            f"{file} cannot be read ({error}); delete it and run `nnunet-mn preprocess` where nnUNet_raw has the images"
        ) from error


def write_wanted(folder: Path, names_by_source: Mapping[str, list[str]]) -> None:
    """Record the names in folders of images. Other folders keep their entry.

    Args:
        folder: of the preprocessed unlabeled cases.
        names_by_source: names of cases by source. It is empty without raw data.
    """
    try:
        old = read_wanted(folder)
    except MNError:  # a broken record is written anew
        old = None
    new = {**(old or {}), **names_by_source}
    if names_by_source and new != old and os.access(folder.parent, os.W_OK):
        try:
            write_whole(_file(folder), json.dumps(new, indent=1) + "\n")
        except OSError as error:
            raise MNError(f"{_file(folder)} cannot be written ({error.strerror}); free some space there") from error


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.wanted.json")
