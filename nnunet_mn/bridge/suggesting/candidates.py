"""Who can be suggested for labeling: the cases of a raw dataset without a label in a fold. Needs no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.cases.dataset import DatasetFolders
from nnunet_mn.bridge.cases.raw_images import RawImages
from nnunet_mn.bridge.cases.roles import listed_split, listed_unlabeled
from nnunet_mn.bridge.cases.sources import IMAGES_UN
from nnunet_mn.bridge.cases.splits import Split, splits_for_planning
from nnunet_mn.errors import MNError

Images = Mapping[str, tuple[Path, ...]]  # the file of each channel, by case


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The cases of a dataset by what is known of them.

    Args:
        description: the content of dataset.json.
        splits: of the split file. None: there is none.
        unlabeled: cases that can be suggested, with their images.
        labeled: cases to train on, with their images. Some may wait for their labels.
        train: names of all cases to train on, also of those whose images are not here.
        warnings: for the user.
    """

    description: dict[str, Any]
    splits: list[Split] | None
    unlabeled: Images
    labeled: Images
    train: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def images(self) -> Images:
        """The images of all cases."""
        return {**self.labeled, **self.unlabeled}


def find_candidates(folders: DatasetFolders, *, fold: int, ignore_labels: bool = False) -> Candidates:
    """Sort the cases in imagesTr and imagesUn. Validation cases are neither suggested nor looked at.

    With a split file, the fold's lists say which cases are labeled. A case in no list and without a label can be
    suggested as well. Without a split file, the files in labelsTr say which cases are labeled. There may be none yet.

    Args:
        folders: of the dataset.
        fold: of the split file.
        ignore_labels: take all cases but those for validation as unlabeled, for experiments.

    Raises:
        MNError: when the raw dataset is not here, has no dataset.json, or no case can be suggested.
    """
    raw = RawImages.read(folders.raw_here())
    splits, warnings = splits_for_planning(folders.preprocessed, raw.folder)
    _check_fold(splits, fold)
    of_folder, more = raw.in_folder(IMAGES_UN.name)
    with_label = {name for name in raw.training_cases if raw.label_of(name).is_file()}
    train, val = listed_split(splits, fold, sorted(with_label))
    held_out = set(val).difference(train)
    images = {**of_folder, **{name: raw.of_training_case(name) or () for name in raw.training_cases}}
    if ignore_labels:
        train, unlabeled = [], images.keys() - held_out
    else:
        unlabeled = images.keys() - held_out - set(train) - with_label.difference(listed_unlabeled(splits, fold))
    if not unlabeled:
        raise MNError(
            f"every case of {raw.folder} has a label or is for validation, and none is left to suggest; put images "
            f"into its imagesUn, or add --ignore-labels for an experiment"
        )
    return Candidates(
        description=raw.description,
        splits=splits,
        unlabeled=_only(images, unlabeled),
        labeled=_only(images, images.keys() & set(train)),
        train=tuple(train),
        warnings=(*warnings, *more),
    )


def _check_fold(splits: list[Split] | None, fold: int) -> None:
    if splits is not None and fold >= len(splits):
        raise MNError(f"fold {fold} is not in the split file, which has 0 to {len(splits) - 1}; give one of them to -f")


def _only(images: Images, names: Iterable[str]) -> Images:
    return {name: images[name] for name in sorted(names)}
