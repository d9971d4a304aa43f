"""Draw splits with few labeled cases, for experiments on a dataset with labels for all cases."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_mn.bridge.cases.dataset import DatasetFolders
from nnunet_mn.bridge.cases.description import read_description
from nnunet_mn.bridge.cases.raw_images import RawImages
from nnunet_mn.bridge.cases.splits import SPLITS, Split, planning_refuses
from nnunet_mn.bridge.files import refusals_told, replace_whole, write_whole
from nnunet_mn.errors import MNError

USUAL_FOLDS = 5  # nnU-Net's, where there is no split file


def draw_splits(cases: Sequence[str], *, labeled: int, val: int | None, folds: int, seed: int) -> list[Split]:
    """Draw the labeled, validation and unlabeled cases of every fold.

    All folds share the labeled cases. An ensemble of folds has then seen no more labels than one fold. Validation sets
    are disjoint, as `nnUNetv2_find_best_configuration` wants. Labeled cases come from one end of the shuffled cases,
    validation cases from the other. With the same seed a larger `labeled` keeps the labeled cases of a smaller one.
    If `val` is given, it keeps the validation cases too.

    Args:
        cases: names of all cases with labels, in any order.
        labeled: cases to train on with their labels.
        val: validation cases per fold. None means a fifth of the other cases, less for many folds.
        seed: of the shuffle.

    Raises:
        MNError: when there are too few cases.
    """
    order = [sorted(cases)[i] for i in np.random.default_rng(seed).permutation(len(cases))]
    rest = len(order) - labeled
    val = max(1, rest // max(folds, USUAL_FOLDS)) if val is None else val
    if rest < folds * val:
        raise MNError(
            f"{len(order)} cases are too few for {labeled} labeled ones and {folds} disjoint validation sets of "
            f"{val}; lower --labeled, --val or --folds"
        )
    return [_fold(order, labeled=labeled, first=labeled + rest - (k + 1) * val, val=val) for k in range(folds)]


def _fold(order: list[str], *, labeled: int, first: int, val: int) -> Split:
    unlabeled = order[labeled:first] + order[first + val :]
    return {
        "train": sorted(order[:labeled]),
        "val": sorted(order[first : first + val]),
        "unlabeled": sorted(unlabeled),
    }


@refusals_told()
def training_cases(raw: Path) -> list[str]:
    """Names of the training cases with a label in a raw dataset.

    Raises:
        MNError: when the folder is not a dataset of nnU-Net, no case has a label, or an image's name is not UTF-8.
    """
    images = RawImages(raw, read_description(raw, "file_ending"))
    images.check_names()
    without = set(images.without_label)
    names = [name for name in images.training_cases if name not in without]
    if not names:
        raise MNError(f"{raw} has no case with an image and a label, and splits are drawn from such cases; add some")
    return names


@refusals_told()
def refuse_to_replace(dataset: DatasetFolders, *, force: bool) -> None:
    """Raise an MNError if there is a split file and `force` is not set."""
    file = dataset.preprocessed / SPLITS
    if file.exists() and not force:
        raise MNError(
            f"{file} exists; --force replaces it and keeps a copy (a training that goes on with --c, or is validated, "
            f"takes the new one)"
        )


def write_splits(dataset: DatasetFolders, splits: list[Split], *, force: bool) -> tuple[Path, Path | None]:
    """Write `splits_final.json` into the dataset's folder in nnUNet_preprocessed. Warn if the raw one disagrees.

    Args:
        dataset: the folder is made if need be.
        splits: one entry per fold.
        force: replace an existing file, keeping a copy.

    Returns:
        The file, and the copy of the one it replaced.

    Raises:
        MNError: when there is a file already and `force` is not set, or the folder cannot be written to.
    """
    refuse_to_replace(dataset, force=force)
    file = dataset.preprocessed / SPLITS
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        backup = _keep_copy(file) if file.exists() else None
        write_whole(file, json.dumps(splits, indent=2) + "\n")
    except OSError as error:
        raise MNError(
            f"{file} cannot be written ({error.strerror}): free some space there, or look at its rights; what was "
            f"there before is unchanged"
        ) from error
    if dataset.raw is not None and planning_refuses(file, dataset.raw / SPLITS):
        warning = (
            f"WARNING: {dataset.raw / SPLITS} does not agree with {file}, and nnU-Net plans again only if they do; "
            f"copy the new file over the raw one if it is to hold"
        )
        print(warning, file=sys.stderr)  # a command's JSON may be on standard output
    return file, backup


def _keep_copy(file: Path) -> Path:
    number = 1
    while (copy := file.with_name(f"{file.stem}_backup_{number}.json")).exists():
        number += 1
    content = file.read_bytes()  # a broken file may be no text
    replace_whole(copy, lambda stream: stream.write(content))
    return copy
