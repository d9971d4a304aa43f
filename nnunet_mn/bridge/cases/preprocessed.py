"""The cases in a preprocessed folder, in either of nnU-Net's formats."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_mn.errors import MNError

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError)  # from missing and damaged files


class Cases(Protocol):
    """An nnU-Net dataset of preprocessed cases."""

    identifiers: list[str]
    source_folder: str

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image, segmentation, previous stage's segmentation and properties."""
        ...


def unreadable(name: str, folder: str, error: Exception, *, command: str = "nnunet-mn preprocess") -> MNError:
    """The sentence about a case that cannot be read. The command makes it anew."""
    return MNError(
        f"the preprocessed case '{name}' in {folder} cannot be read ({error}): delete its files there and run "
        f"{command} for this dataset"
    )


@contextmanager
def reading(cases: Cases, name: str) -> Iterator[None]:
    """Read an unlabeled case inside.

    Raises:
        MNError: if it is missing or damaged.
    """
    try:
        yield
    except UNREADABLE as error:
        raise unreadable(name, cases.source_folder, error) from error


def dataset_class_of(folder: Path) -> Any:
    """nnU-Net's class for the preprocessed cases of a folder.

    Raises:
        MNError: when there is no such folder, or when something else lies in it.
    """
    try:
        return infer_dataset_class(str(folder))
    except (AssertionError, KeyError, IndexError, OSError) as error:
        raise MNError(
            f"{folder} does not hold preprocessed cases and nothing else ({error}): run nnUNetv2_preprocess for this "
            f"dataset and configuration, or remove other files from there"
        ) from error


def state_of(folder: Path, name: str) -> list[int]:
    """Size in bytes and time in ns of a preprocessed case's image. They tell whether it has changed; none: no image."""
    ends = (".b2nd", ".npy", ".npz")
    stats = [file.stat() for end in ends if (file := folder / f"{name}{end}").is_file()]
    return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]


def complete_cases(folder: Path) -> set[str]:
    """Names of the cases with all their files in a preprocessed folder."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        files = {entry.name for entry in entries}
    names = (file.removesuffix(".pkl") for file in files if file.endswith(".pkl"))
    return {name for name in names if f"{name}.npz" in files or {f"{name}.b2nd", f"{name}_seg.b2nd"} <= files}
