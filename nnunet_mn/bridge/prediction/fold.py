"""A trained fold: its folder, its newest checkpoint, and its cases on this machine."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnunet_mn.bridge.cases.dataset import find_dataset
from nnunet_mn.bridge.cases.planned import PlannedDataset, load_planned
from nnunet_mn.bridge.cases.preprocessed import complete_cases, dataset_class_of
from nnunet_mn.bridge.cases.roles import Roles, listed_split, roles_in_training
from nnunet_mn.bridge.cases.splits import read_splits
from nnunet_mn.bridge.cases.unlabeled import find_unlabeled
from nnunet_mn.bridge.model_folders import CHECKPOINTS, FINAL, ModelFolders
from nnunet_mn.bridge.trained_with import first_difference, meaning, meaning_at_training
from nnunet_mn.bridge.training.joint_model import read_trained
from nnunet_mn.bridge.words import name_some
from nnunet_mn.errors import MNError

Result = TypeVar("Result")


class Case(NamedTuple):
    """A preprocessed case: nnU-Net's files of it."""

    name: str
    folder: Path


class Loaded(NamedTuple):
    """The content of a preprocessed case: image `(C, D, H, W)`, segmentation `(D, H, W)`, and properties for export.

    The segmentation of an unlabeled case holds no labels.
    """

    image: NDArray[np.float32]
    segmentation: NDArray[np.integer]
    properties: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainedFold:
    """A training on one fold.

    Args:
        folders: of the model.
        fold: its name, such as `0` or `all`.
        planned: the dataset and its plans.
        file: its newest checkpoint.
        checkpoint: the content of this file.
        roles: of the cases.
        unlabeled: the chosen ones of the unlabeled cases that are preprocessed here.
        warnings: for the user.
    """

    folders: ModelFolders
    fold: str
    planned: PlannedDataset
    file: Path
    checkpoint: dict[str, Any]
    roles: Roles
    unlabeled: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """nnU-Net's folder of the fold."""
        return self.folders.trained / f"fold_{self.fold}"

    @property
    def is_finished(self) -> bool:
        """Whether the training has ended. Only then nnU-Net's validation is of its checkpoint."""
        return self.file.name == FINAL

    def cases(self, role: str) -> Iterator[Case]:
        """The cases that are `labeled`, `val` or `unlabeled`, by name."""
        names = self.unlabeled if role == "unlabeled" else getattr(self.roles, role)
        folders = self.planned.cases
        folder = folders.unlabeled if role == "unlabeled" else folders.labeled
        for name in sorted(names):
            yield Case(name, folder)


def find_trained_fold(folders: ModelFolders, fold: str, *, at_most: int | None = None) -> TrainedFold:
    """Find a training and its cases.

    Args:
        folders: of the model.
        fold: its name, such as `0` or `all`.
        at_most: so many unlabeled cases, spread evenly over their names. None: all.

    Raises:
        MNError: when there is no such training, it has no checkpoint yet, or its cases are not here.
    """
    file = _newest_checkpoint(folders, fold)
    checkpoint = read_trained(file)
    dataset = find_dataset(folders.dataset.name)
    planned = load_planned(dataset, plans=folders.plans, configuration=folders.configuration)
    _check_as_trained(planned, checkpoint, file)
    roles, warnings = _roles(planned, int(fold) if fold.isdecimal() else fold, checkpoint["mn"].get("trained_on", ()))
    unlabeled, more = _unlabeled(planned, roles, checkpoint["mn"]["config"].get("unlabeled_sources"), at_most)
    return TrainedFold(
        folders=folders,
        fold=fold,
        planned=planned,
        file=file,
        checkpoint=checkpoint,
        roles=roles,
        unlabeled=tuple(unlabeled),
        warnings=(*warnings, *more),
    )


def _check_as_trained(planned: PlannedDataset, checkpoint: Mapping[str, Any], file: Path) -> None:
    """Raise an MNError if images or labels of the preprocessed dataset have another meaning than in the training."""
    now = meaning(planned.plans_manager.plans, planned.configuration, planned.dataset_json)
    then = meaning_at_training(checkpoint)
    if name := first_difference(now, then):
        raise MNError(
            f"{planned.folders.preprocessed} was planned with {name} {now[name]}, but {file} was trained with "
            f"{then[name]}: put the earlier plans and dataset.json back there and preprocess again, or train this "
            f"fold again"
        )


def _roles(planned: PlannedDataset, fold: int | str, trained_on: Iterable[str]) -> tuple[Roles, list[str]]:
    """The roles in this fold by today's split, and warnings. A case that was trained on is not for validation."""
    splits, warnings = read_splits(planned.folders.preprocessed, planned.folders.raw)
    labeled = planned.cases.labeled
    here = sorted(dataset_class_of(labeled).get_identifiers(str(labeled)))  # as the trainer
    roles = roles_in_training(splits, fold, here, lambda: listed_split(splits, fold, here))
    warnings += roles.warnings
    if seen := sorted(set(roles.held_out).intersection(trained_on)):
        roles = replace(roles, val=tuple(name for name in roles.val if name not in seen))
        warnings.append(
            f"WARNING: the split has changed since the training, which was on {len(seen)} of today's validation cases "
            f"({name_some(seen)}). They are left out"
        )
    return roles, warnings


def _unlabeled(
    planned: PlannedDataset, roles: Roles, sources: tuple[str, ...] | None, at_most: int | None
) -> tuple[list[str], list[str]]:
    """The preprocessed unlabeled cases, or some of them, and warnings."""
    found = find_unlabeled(planned.cases, roles, sources)
    names = {case.name for case in found.cases}
    ready, warnings = sorted(names & complete_cases(planned.cases.unlabeled)), list(found.warnings)
    if missing := len(names) - len(ready):
        warnings.append(f"WARNING: {missing} unlabeled cases are not preprocessed here. They are left out")
    if at_most is not None and at_most < len(ready):
        warnings.append(f"WARNING: {at_most} of {len(ready)} unlabeled cases were chosen, evenly by name")
        ready = [ready[i * len(ready) // at_most] for i in range(at_most)]
    return ready, warnings


def _newest_checkpoint(folders: ModelFolders, fold: str) -> Path:
    folder = folders.trained / f"fold_{fold}"
    if not folder.is_dir():
        others = folders.others_with(folder.name)
        raise MNError(f"{folders.trained} holds no fold_{fold}{others}; give -tr, -p, -c and -f as for nnUNetv2_train")
    for name in CHECKPOINTS:
        if (folder / name).is_file():
            return folder / name
    raise MNError(
        f"there is no checkpoint in {folder} yet; wait for one, or run 'nnUNetv2_train {folders.dataset.name} "
        f"{folders.configuration} {fold} -tr {folders.trainer} -p {folders.plans}'"
    )


def load_case(case: Case) -> Loaded:
    """Read a preprocessed case through nnU-Net.

    Raises:
        MNError: when nnU-Net cannot read it.
    """
    return _read(case, lambda image, seg, properties: Loaded(np.asarray(image[:], np.float32), seg, properties))


def load_segmentation(case: Case) -> NDArray[np.integer]:
    """Read the segmentation `(D, H, W)` of a preprocessed case. Its image is not read.

    Raises:
        MNError: when nnU-Net cannot read it.
    """
    return _read(case, lambda _image, seg, _properties: seg)


def _read(case: Case, take: Callable[[Any, NDArray[np.integer], dict[str, Any]], Result]) -> Result:
    """What `take` makes of a case's unread image, its segmentation and its properties."""
    dataset = dataset_class_of(case.folder)(str(case.folder), [case.name])
    try:
        image, segmentation, *_, properties = dataset.load_case(case.name)
        return take(image, np.asarray(segmentation[:])[0], properties)
    except Exception as error:  # a damaged file may raise anything
        raise MNError(
            f"the preprocessed case '{case.name}' in {case.folder} cannot be read ({error}); run nnUNetv2_preprocess "
            f"or 'nnunet-mn preprocess' again"
        ) from error
