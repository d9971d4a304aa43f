"""The folders of a dataset, found as nnU-Net's commands find them."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.cases.raw_images import RawImages
from nnunet_mn.bridge.files import refusals_told
from nnunet_mn.errors import MNError

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class DatasetFolders:
    """The folders of a dataset on this machine.

    Args:
        name: `DatasetXXX_Name`.
        raw: its folder in nnUNet_raw. None: it is not here.
        preprocessed: its folder in nnUNet_preprocessed. It may not exist yet.
    """

    name: str
    raw: Path | None
    preprocessed: Path

    @property
    def number(self) -> str:
        """The dataset's number, in the form that nnU-Net's commands take."""
        return self.name.removeprefix("Dataset").partition("_")[0].lstrip("0") or "0"

    def raw_here(self) -> Path:
        """The folder of the raw data. Raises an MNError if it is not on this machine."""
        if self.raw is None:
            raise MNError(f"{self.name} is not in nnUNet_raw here; run this where the raw data are")
        return self.raw


@dataclass(frozen=True, kw_only=True)
class CaseFolders:
    """The folders of a dataset's cases, and its description.

    Args:
        raw: the dataset's folder in nnUNet_raw. None: it is not on this machine.
        labeled: nnUNet_preprocessed/DATASET/<data_identifier>, the folder of the preprocessed labeled cases.
        description: the content of dataset.json.
    """

    raw: Path | None
    labeled: Path
    description: dict[str, Any]

    @property
    def unlabeled(self) -> Path:
        """The folder of the preprocessed unlabeled cases."""
        return unlabeled_folder(self.labeled)

    @functools.cached_property
    def raw_images(self) -> RawImages | None:
        """The image files of the raw dataset, listed once; None if it is not on this machine."""
        return None if self.raw is None else RawImages(self.raw, self.description)


@refusals_told()
def find_dataset(number_or_name: str) -> DatasetFolders:
    """Find a dataset by its number or its name. As for nnU-Net, none in nnUNet_results may have its number, too.

    Raises:
        MNError: when nnUNet_preprocessed is not set, when no dataset or more than one fits, or when a folder may not be
            read.
    """
    preprocessed = _set_root("nnUNet_preprocessed")
    raw = _root("nnUNet_raw")
    roots = [root for root in (raw, preprocessed) if root is not None]
    name = _only_name(number_or_name, roots, others=_readable_results())
    return DatasetFolders(name, raw / name if raw is not None and (raw / name).is_dir() else None, preprocessed / name)


@refusals_told()
def results_of(number_or_name: str) -> Path:
    """The folder of a dataset in nnUNet_results. Raises an MNError as `find_dataset` does."""
    results = _set_root("nnUNet_results")
    return results / _only_name(number_or_name, [results], remedy="train it first, or correct -d or nnUNet_results")


def _only_name(
    number_or_name: str,
    roots: list[Path],
    *,
    others: Sequence[Path] = (),
    remedy: str = "give one by its number or its whole name",
) -> str:
    """The name of the only dataset in these folders that fits. In the other ones no further name may fit."""
    prefix = f"Dataset{int(number_or_name):03d}_" if number_or_name.isdecimal() else number_or_name
    found = _folders_that_fit(prefix, roots)
    if not found:
        raise MNError(f"no dataset fits '{number_or_name}' in {' and '.join(map(str, roots))}; {remedy}")
    found += _folders_that_fit(prefix, others)
    names = {path.name for path in found}
    if len(names) > 1:  # whole names are unique
        raise MNError(
            f"{len(names)} datasets fit ({', '.join(sorted(names))}) '{number_or_name}' by their folders "
            f"{' and '.join(map(str, found))}; rename all but one, because nnU-Net's own commands refuse a number that "
            f"occurs twice"
        )
    return names.pop()


def _folders_that_fit(prefix: str, roots: Sequence[Path]) -> list[Path]:
    entries = ((root, name) for root in roots for name in sorted(os.listdir(root)) if name.startswith("Dataset"))
    found = (root / name for root, name in entries if _fits(name, prefix))
    return [path for path in found if path.is_dir()]  # archives may lie beside them


def _set_root(variable: str) -> Path:
    root = _root(variable)
    if root is None:
        raise MNError(f"{variable} is not set to an existing folder; export it as for nnU-Net's own commands")
    return root


def _root(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value and Path(value).is_dir() else None


def _readable_results() -> list[Path]:
    """nnUNet_results. Without a right to read there one can plan and preprocess."""
    value = os.environ.get(FOLDERS[-1], "")
    return [Path(value)] if os.access(value, os.R_OK | os.X_OK) and Path(value).is_dir() else []


def _fits(name: str, prefix: str) -> bool:
    return name.startswith(prefix) if prefix.endswith("_") else name == prefix


def unlabeled_folder(preprocessed_dataset_folder: Path) -> Path:
    """The folder of the unlabeled cases. It lies beside nnUNet_preprocessed/DATASET/<data_identifier>."""
    return preprocessed_dataset_folder.with_name(f"{preprocessed_dataset_folder.name}_unlabeled")
