"""Suggest cases of a dataset for labeling, and put them into its split file."""

import json
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from pathlib import Path
from statistics import fmean
from typing import Any

from nnunet_mn.bridge.cases.dataset import DatasetFolders
from nnunet_mn.bridge.cases.draw_splits import write_splits
from nnunet_mn.bridge.cases.sources import IMAGES_UN
from nnunet_mn.bridge.cases.splits import Split, unread_entries
from nnunet_mn.bridge.suggesting.candidates import Candidates
from nnunet_mn.bridge.suggesting.features import Describer, features_of
from nnunet_mn.bridge.words import name_some
from nnunet_mn.config import environment_layer, resolve
from nnunet_mn.errors import MNError
from nnunet_mn.suggesting import Suggestion, suggest


def suggest_cases(
    candidates: Candidates,
    n: int,
    *,
    folder: Path,
    estimated_dice: dict[str, float] | None = None,
    processes: int = 1,
    skip_bad: bool = False,
    log: Callable[[str], None] = print,
) -> list[Suggestion]:
    """Look at all images and choose n cases.

    Args:
        candidates: from `find_candidates`.
        n: number of suggestions.
        folder: the dataset's in nnUNet_preprocessed, for the features.
        estimated_dice: from `read_estimates`.
        processes: that read images at once.
        skip_bad: leave out images that cannot be read.
        log: takes warnings.

    Raises:
        MNError: when there are too few cases, or an image cannot be read.
    """
    for warning in candidates.warnings:
        log(warning)
    cases = candidates.unlabeled if estimated_dice is not None else candidates.images
    if estimated_dice is not None and (unknown := sorted(cases.keys() - estimated_dice.keys())):
        log(f"WARNING: the report says nothing of {name_some(unknown)}; they are left out")
        cases = {name: images for name, images in cases.items() if name in estimated_dice}
    if n > (most := len(cases.keys() & candidates.unlabeled.keys())):
        raise MNError(f"-n is {n}, but {most} cases can be suggested; lower it")
    describer = Describer(config=resolve(environment_layer()), description=candidates.description)
    features, faults = features_of(cases, describer, folder=folder, processes=processes, skip_bad=skip_bad)
    for fault in faults:
        log(f"WARNING: left out: {fault}")
    return suggest(features, n, labeled=candidates.labeled.keys(), estimated_dice=estimated_dice)


def read_estimates(report: Path) -> dict[str, float]:
    """The estimated Dice of unlabeled cases from the JSON of a report: the mean of those of their structures.

    Structures without an estimate do not count. A case that has none is left out.

    Raises:
        MNError: when it is none.
    """
    estimates: dict[str, list[float]] = {}
    try:
        rows: list[dict[str, Any]] = json.loads(report.read_bytes())["cases"]
        for row in rows:
            if row["role"] == "unlabeled" and row["estimated_dice"] is not None:
                estimates.setdefault(str(row["case"]), []).append(float(row["estimated_dice"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MNError(
            f"{report} is not the JSON file of a report ({type(error).__name__}: {error}); give report.json"
        ) from error
    return {case: fmean(of_structures) for case, of_structures in estimates.items()}


def write_chosen(
    folders: DatasetFolders, candidates: Candidates, chosen: Sequence[Suggestion], *, fold: int, force: bool
) -> tuple[Path, Path | None]:
    """Write `with_chosen` as `write_splits` does, with what else the user's file holds in its folds."""
    splits = with_chosen(candidates, [one.case for one in chosen], fold=fold)
    others = chain(unread_entries(folders.preprocessed, folders.raw_here()), repeat({}))
    kept = [split | other for split, other in zip(splits, others, strict=False)]
    return write_splits(folders, kept, force=force)


def with_chosen(candidates: Candidates, chosen: list[str], *, fold: int) -> list[Split]:
    """The splits once the chosen cases have labels: they are trained on in this fold. Other folds stay as they are.

    Cases whose images are not here stay in the fold's lists. Those in imagesUn need no list: they are found there.

    Args:
        candidates: from `find_candidates`.
        chosen: names of cases.
        fold: of the split file. Without one it becomes the only entry.
    """
    splits = [dict(entry) for entry in candidates.splits or [{"train": [], "val": [], "unlabeled": []}]]
    entry = splits[fold if candidates.splits else 0]
    inside = {name for name, images in candidates.images.items() if images[0].parent.name != IMAGES_UN.name}
    listed_elsewhere = set(entry["unlabeled"]) - candidates.images.keys()
    entry["train"] = sorted({*candidates.train, *chosen})
    entry["unlabeled"] = sorted((inside & candidates.unlabeled.keys() | listed_elsewhere) - set(chosen))
    return splits
