"""Where unlabeled cases come from: the split's list, folders of images, or what was preprocessed elsewhere."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_mn.bridge.cases.images import ImageFolder, check_channels, name_some, same_voxels, scan_folder
from nnunet_mn.bridge.cases.manifest import Manifest, complete_cases
from nnunet_mn.errors import MNError

SPLITS = "splits_final.json"

Source = Literal["split", "imagesUn", "imagesTs"]


@dataclass(frozen=True, slots=True)
class UnlabeledCase:
    """One unlabeled case; without images its raw data are not on this machine."""

    name: str
    images: tuple[Path, ...]
    source: Source


@dataclass(frozen=True)
class KnownCases:
    """What the split says about cases."""

    labeled: frozenset[str]
    val: frozenset[str]
    unlabeled: list[str]


def check_case_name(name: str, where: str) -> str:
    """A case name is part of file names, and nnU-Net takes `NAME_seg.b2nd` for the segmentation of NAME."""
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise MNError(f"{where} names a case {name!r}, which is no file name; correct it")
    if name.endswith("_seg"):
        raise MNError(f"{where} names a case '{name}', but nnU-Net takes names in '_seg' for segmentations; rename it")
    return name


class _TrainingImages:
    """The images of training cases: those that dataset.json lists under `dataset`, or else the files of imagesTr."""

    def __init__(self, raw: Path, dataset_json: dict[str, Any]) -> None:
        self.raw, self.dataset_json = raw, dataset_json

    @functools.cached_property
    def _files(self) -> dict[str, list[str]]:
        if listed := self.dataset_json.get("dataset"):
            return {name: [os.path.expandvars(i) for i in entry["images"]] for name, entry in listed.items()}
        return _scan(self.raw / "imagesTr", self.dataset_json).cases

    def get(self, name: str) -> tuple[Path, ...] | None:
        """The image of every channel, or None for a name that is not a training case."""
        if name not in self._files:
            return None
        if self.dataset_json.get("dataset"):
            images = tuple(self.raw / file for file in self._files[name])
            _check_listed_images(name, images, channels=n_channels(self.dataset_json))
            return images
        return _case_images(name, self._files[name], self.raw / "imagesTr", self.dataset_json)


def find_raw(
    raw: Path, dataset_json: dict[str, Any], known: KnownCases, sources: Sequence[str]
) -> tuple[list[UnlabeledCase], list[str]]:
    """Unite the cases of some sources.

    Args:
        raw: the data set's folder in nnUNet_raw.
        dataset_json: the data set's description.
        known: what the split says.
        sources: which to use.

    Returns:
        The cases, each name once, and warnings.

    Raises:
        MNError: when files are missing or in surplus, when one name has two images, or for a validation case.
    """
    training = _TrainingImages(raw, dataset_json)
    same = functools.partial(same_voxels, dataset_json=dataset_json)
    found: dict[str, UnlabeledCase] = {}
    warnings: list[str] = []
    if "split" in sources:
        found = {case.name: case for case in _listed_cases(raw, known, training)}
    for source in ("imagesUn", "imagesTs"):
        for case in _folder_cases(raw, source, dataset_json, warnings) if source in sources else ():
            if case.name in known.labeled or case.name in known.val:
                _check_not_val(case, known)
                _check_same(case.images, training.get(case.name), case.name, same)  # labeled already: skipped
                continue
            if case.name in found:
                _check_same(case.images, found[case.name].images, case.name, same)
            found.setdefault(case.name, case)
    return list(found.values()), warnings


def _check_not_val(case: UnlabeledCase, known: KnownCases) -> None:
    if case.name not in known.labeled:
        raise MNError(f"{case.images[0]} is called like the validation case '{case.name}'; rename or remove it")


def _check_same(
    images: tuple[Path, ...], others: tuple[Path, ...] | None, name: str, same: Callable[..., bool]
) -> None:
    if others is not None and not same(images, others):
        raise MNError(f"two different images are called '{name}': {others[0]} and {images[0]}; rename one of them")


def _listed_cases(raw: Path, known: KnownCases, training: _TrainingImages) -> Iterator[UnlabeledCase]:
    for name in known.unlabeled:
        images = training.get(name)
        if images is None:
            raise MNError(f"{SPLITS} lists '{name}' under 'unlabeled', but {raw} has no image of it; add or remove it")
        yield UnlabeledCase(name, images, "split")


def _folder_cases(
    raw: Path, source: Literal["imagesUn", "imagesTs"], dataset_json: dict[str, Any], warnings: list[str]
) -> list[UnlabeledCase]:
    """All cases of a folder of unlabeled images; warnings about what else lies there are appended."""
    folder, ending = raw / source, dataset_json["file_ending"]
    scanned = _scan(folder, dataset_json)
    if scanned.unnamed:
        raise MNError(
            f"{folder} holds {name_some(scanned.unnamed)}, but image files are called NAME_0000{ending} with the "
            f"number of their channel; rename or remove them (labels do not belong there)"
        )
    if scanned.ignored:
        warnings.append(
            f"WARNING: ignored in {folder}, since they do not end in {ending}: {name_some(scanned.ignored)}"
        )
    return [
        UnlabeledCase(check_case_name(name, str(folder)), _case_images(name, files, folder, dataset_json), source)
        for name, files in scanned.cases.items()
    ]


def _scan(folder: Path, dataset_json: dict[str, Any]) -> ImageFolder:
    return scan_folder(folder, ending=dataset_json["file_ending"])


def n_channels(dataset_json: dict[str, Any]) -> int:
    """How many channels a case has."""
    return len(dataset_json["modality"] if "modality" in dataset_json else dataset_json["channel_names"])


def _case_images(name: str, files: list[str], folder: Path, dataset_json: dict[str, Any]) -> tuple[Path, ...]:
    ending = dataset_json["file_ending"]
    check_channels(name, files, folder=folder, ending=ending, channels=n_channels(dataset_json))
    return tuple(folder / file for file in files)


def _check_listed_images(name: str, images: tuple[Path, ...], *, channels: int) -> None:
    if len(images) != channels:
        raise MNError(
            f"dataset.json lists {len(images)} images of '{name}', but names {channels} channel(s); correct it"
        )
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        raise MNError(f"dataset.json lists {name_some(missing)} for case '{name}', which do not exist; restore them")


def find_preprocessed(
    folder: Path, splits: Sequence[Mapping[str, list[str]]] | None, known: KnownCases, sources: Sequence[str]
) -> tuple[list[UnlabeledCase], list[str]]:
    """What can be known without raw data: the split's list, and preprocessed cases that no split mentions."""
    found = [UnlabeledCase(name, (), "split") for name in known.unlabeled] if "split" in sources else []
    mentioned = {name for entry in splits or () for names in entry.values() for name in names}
    records = Manifest.read(folder)
    for name in complete_cases(folder) - mentioned - known.labeled - known.val:
        record = records.get(name)
        source: Source = "imagesTs" if record is not None and record.source == "imagesTs" else "imagesUn"
        if source in sources:
            found.append(UnlabeledCase(name, (), source))
    return found, []
