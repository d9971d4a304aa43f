"""Which unlabeled cases a fold has."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.cases.images import name_some
from nnunet_mn.bridge.cases.planned import PlannedDataset
from nnunet_mn.bridge.cases.roles import _never_unlabeled, listed_unlabeled
from nnunet_mn.bridge.cases.sources import SPLITS, KnownCases, UnlabeledCase, find_preprocessed, find_raw
from nnunet_mn.bridge.cases.splits import Split, read_splits
from nnunet_mn.config import UNLABELED_SOURCES
from nnunet_mn.errors import MNError


@dataclass(frozen=True)
class UnlabeledCases:
    """The unlabeled cases of a fold, by name, and what the user should know about them."""

    cases: tuple[UnlabeledCase, ...]
    warnings: tuple[str, ...]


def find_unlabeled(
    *,
    raw: Path | None,
    unlabeled_folder: Path,
    dataset_json: dict[str, Any],
    splits: list[Split] | None,
    fold: int | str,
    labeled: Sequence[str],
    val: Sequence[str],
    sources: tuple[str, ...] | None,
) -> UnlabeledCases:
    """Find the unlabeled cases of a fold: those that the split lists, imagesUn, and imagesTs if both are empty.

    Args:
        raw: the data set's folder in nnUNet_raw, or None where it is not on this machine.
        unlabeled_folder: where unlabeled cases are preprocessed to (`preprocessing.unlabeled_folder`); without raw
            data its complete cases count.
        dataset_json: the data set's description.
        splits, fold: from `read_splits`; a number or "all".
        labeled, val: from `labeled_split`.
        sources: which of `split`, `imagesUn`, `imagesTs` to use; None means the rule above.

    Raises:
        MNError: when there is none, when files are missing or in surplus, when one name has two images, or when a
            validation case is among them.
    """
    known = KnownCases(frozenset(labeled), frozenset(val), listed_unlabeled(splits, fold))
    if both := sorted((known.labeled | known.val).intersection(known.unlabeled)):
        raise MNError(
            f"{name_some(both)} cannot be unlabeled and labeled or validation cases at once; correct {SPLITS}"
        )
    if raw is None:
        find = functools.partial(find_preprocessed, unlabeled_folder, splits, known)
    else:
        find = functools.partial(find_raw, raw, dataset_json, known)
    cases, warnings = find(sources or ("split", "imagesUn"))
    if not cases and sources is None:
        cases, more = find(("imagesTs",))
        warnings += more
    if not cases:
        raise MNError(
            f"fold {fold} has no unlabeled case (sources: {', '.join(sources or UNLABELED_SOURCES)}): list names under "
            f"'unlabeled' in its entry of {SPLITS} in nnUNet_preprocessed, or put images into imagesUn of the raw data "
            f"set, or use the test images in imagesTs with nnUNet_mn_unlabeled_sources=imagesTs"
        )
    if n := sum(case.source == "imagesTs" for case in cases):
        warnings.append(
            f"WARNING: {n} images of imagesTs are used as unlabeled ones: the training is transductive, so that "
            f"results on these images do not show how it does on new ones"
        )
    return UnlabeledCases(tuple(sorted(cases, key=lambda case: case.name)), tuple(warnings))


def find_unlabeled_of_all_folds(planned: PlannedDataset) -> UnlabeledCases:
    """The unlabeled cases that any fold may need.

    Raises:
        MNError: when there is none, or something is wrong with one.
    """
    splits, warnings = read_splits(planned.folders.preprocessed, planned.folders.raw)
    cases = find_unlabeled(
        raw=planned.folders.raw,
        unlabeled_folder=planned.unlabeled_folder,
        dataset_json=planned.dataset_json,
        splits=splits,
        fold="all",
        labeled=_never_unlabeled(splits, "train"),
        val=_never_unlabeled(splits, "val"),
        sources=planned.config().unlabeled_sources,
    )
    return UnlabeledCases(cases.cases, (*warnings, *cases.warnings))
