"""The image files of a raw dataset: of its training cases, and of a folder of unlabeled images."""

import functools
import os
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.cases.description import FORMAT, has_channels, read_description
from nnunet_mn.bridge.cases.images import check_channels, scan_folder
from nnunet_mn.bridge.cases.splits import check_case_name
from nnunet_mn.bridge.cases.tiff import spacing_file
from nnunet_mn.bridge.files import refusals_told
from nnunet_mn.bridge.words import fault_of_path, name_some, printable
from nnunet_mn.errors import MNError


class RawImages:
    """The image files of a raw dataset.

    Args:
        folder: the dataset's folder in nnUNet_raw.
        description: the content of dataset.json.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder, self.description = folder, description
        self.ending: str = description["file_ending"]

    @classmethod
    @refusals_told()
    def read(cls, folder: Path) -> "RawImages":
        """Those of a dataset's folder in nnUNet_raw. Raises an MNError if its dataset.json cannot be used."""
        content = read_description(folder)
        if "file_ending" not in content or not has_channels(content):
            raise MNError(f"{folder / 'dataset.json'} lacks channel_names or file_ending; {FORMAT}")
        return cls(folder, content)

    @functools.cached_property
    def _training_files(self) -> dict[str, list[str]]:
        if listed := self.description.get("dataset"):
            return {name: [os.path.expandvars(i) for i in entry["images"]] for name, entry in listed.items()}
        return scan_folder(self.folder / "imagesTr", ending=self.ending).cases

    @property
    def training_cases(self) -> tuple[str, ...]:
        """Names of all cases in dataset.json's list `dataset` or else in imagesTr, sorted."""
        return tuple(sorted(self._training_files))

    def label_of(self, name: str) -> Path:
        """The file for the label of a training case. It may not exist."""
        if listed := self.description.get("dataset"):
            return self.folder / os.path.expandvars(str(listed[name].get("label", "")))
        return self.folder / "labelsTr" / f"{name}{self.ending}"

    @property
    def without_label(self) -> list[str]:
        """Names of the training cases that have no label. nnU-Net's preprocessing ends at the first of them."""
        return [name for name in self.training_cases if not self.label_of(name).is_file()]

    @property
    def has_training_images(self) -> bool:
        """Whether an image of any training case is on this machine."""
        folder = self.folder / ("" if self.description.get("dataset") else "imagesTr")
        return any((folder / files[0]).is_file() for files in self._training_files.values() if files)

    def of_training_case(self, name: str) -> tuple[Path, ...] | None:
        """The image of every channel, from dataset.json's list `dataset` or else from imagesTr.

        Returns:
            None if the name is no training case.

        Raises:
            MNError: when files are missing or in surplus.
        """
        if name not in self._training_files:
            return None
        if self.description.get("dataset"):
            images = tuple(self.folder / file for file in self._training_files[name])
            _check_listed_images(name, images, channels=n_channels(self.description))
            return images
        return self._of_case(name, self._training_files[name], self.folder / "imagesTr")

    def check_as_listed(self, name: str) -> None:
        """Raise an MNError if a case in nnU-Net's own list has misnamed, missing or surplus images.

        nnU-Net cuts the name of each file with the right ending blindly, and its case may have no image.
        """
        folder, cut = self.folder / "imagesTr", len(self.ending) + 5
        images = self.of_training_case(printable(name))
        if images is None:
            files = [file for file in sorted(os.listdir(folder)) if file.endswith(self.ending) and file[:-cut] == name]
            raise MNError(
                f"{folder} holds {name_some(files)}, and nnU-Net takes this for case '{printable(name)}', but images "
                f"are visible files called NAME_0000{self.ending} with the number of their channel; rename or remove it"
            )
        for image in images:
            if fault := fault_of_path(image):
                raise MNError(fault)

    def check_names(self) -> None:
        """Raise an MNError if an image of a training case has a name that is not UTF-8."""
        for file in (file for files in self._training_files.values() for file in files):
            if fault := fault_of_path(file):
                raise MNError(fault)

    def in_folder(self, name: str) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
        """The cases of a folder of unlabeled images, and warnings about other files there.

        Raises:
            MNError: when files are missing, in surplus or wrongly named.
        """
        folder = self.folder / name
        scanned, warnings = scan_folder(folder, ending=self.ending), []
        if scanned.unnamed:
            raise MNError(
                f"{folder} holds {name_some(scanned.unnamed)}, but image files are called NAME_0000{self.ending} with "
                f"the number of their channel; rename or remove them (labels do not belong there)"
            )
        read = {file.name for files in scanned.cases.values() if (file := spacing_file(folder / files[0]))}
        if ignored := [name for name in scanned.ignored if name not in read]:
            warnings.append(
                f"WARNING: ignored in {folder}, since they do not end in {self.ending}: {name_some(ignored)}"
            )
        if scanned.folders:
            warnings.append(
                f"WARNING: ignored in {folder}, since they are folders: {name_some(scanned.folders)}; images must lie "
                f"in {folder} itself"
            )
        return {case: self._of_case(case, files, folder) for case, files in scanned.cases.items()}, warnings

    def _of_case(self, name: str, files: list[str], folder: Path) -> tuple[Path, ...]:
        images = tuple(folder / file for file in files)
        if not any(map(fault_of_path, images)):  # a fault has its own sentence in preprocessing
            check_case_name(name, str(folder))
            check_channels(name, files, folder=folder, ending=self.ending, channels=n_channels(self.description))
        return images


def n_channels(description: dict[str, Any]) -> int:
    """How many channels a case has by dataset.json."""
    return len(description["modality"] if "modality" in description else description["channel_names"])


def _check_listed_images(name: str, images: tuple[Path, ...], *, channels: int) -> None:
    if len(images) != channels:
        raise MNError(
            f"dataset.json lists {len(images)} images of '{name}', but names {channels} channel(s); correct it"
        )
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        raise MNError(f"dataset.json lists {name_some(missing)} for case '{name}'; these do not exist: restore them")
