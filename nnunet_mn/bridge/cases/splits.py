"""The split file: reading and checking it. Needs no torch."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.files import refusals_told
from nnunet_mn.bridge.words import name_some
from nnunet_mn.errors import MNError

SPLITS = "splits_final.json"
PARTS = ("train", "val", "unlabeled")  # of a fold

Split = dict[str, list[str]]


@refusals_told()
def read_splits(preprocessed: Path, raw: Path | None) -> tuple[list[Split] | None, list[str]]:
    """Read and check nnU-Net's split file.

    Args:
        preprocessed: the dataset's folder in nnUNet_preprocessed. Its file counts.
        raw: the dataset's folder in nnUNet_raw. nnU-Net copies its file only once, when it plans.

    Returns:
        One entry per fold with `train`, `val` and `unlabeled`, or None without a file; and warnings.

    Raises:
        MNError: when a file is broken or may not be read, or when the raw one lists unlabeled cases, but was never
            copied.
    """
    used = preprocessed / SPLITS
    other = raw / SPLITS if raw is not None and (raw / SPLITS).is_file() else None
    if not used.is_file():
        return None, _check_uncopied(other, preprocessed) if other is not None else []
    splits, warnings = _read_split_file(used)
    if other is not None and _differs(other, used):
        warnings.append(f"WARNING: {used} is used, but {other} differs from it; copy the one you mean over the other")
    return splits, warnings


def _check_uncopied(file: Path, preprocessed: Path) -> list[str]:
    """Judge a raw split file not yet copied by nnU-Net. Labels would leak if its unlabeled list were ignored."""
    splits, _ = _read_split_file(file)
    if any(entry["unlabeled"] for entry in splits):
        raise MNError(
            f"{file} lists unlabeled cases, but nnU-Net copies it only when it plans; copy it to {preprocessed}"
        )
    return [f"WARNING: {file} is not used: nnU-Net copies it only when it plans; copy it to {preprocessed}"]


@refusals_told()
def splits_for_planning(preprocessed: Path, raw: Path) -> tuple[list[Split] | None, list[str]]:
    """Read the split file of the coming training. Before the first planning it is the raw one: nnU-Net copies it."""
    if (raw / SPLITS).is_file() and not (preprocessed / SPLITS).is_file():
        return read_splits(raw, None)
    return read_splits(preprocessed, raw)


def check_agreement(preprocessed: Path, raw: Path) -> None:
    """Raise an MNError if nnU-Net would refuse to plan with the split files in these folders."""
    if planning_refuses(preprocessed / SPLITS, raw / SPLITS):
        raise MNError(
            f"{preprocessed / SPLITS} and {raw / SPLITS} do not agree in 'train' and 'val', and nnU-Net plans only if "
            f"they do; copy the one that is to hold over the other"
        )


@refusals_told()
def planning_refuses(used: Path, raw: Path) -> bool:
    """Whether nnU-Net would refuse to plan with both split files. Every fold of the raw one must be in the used one."""
    if not (used.is_file() and raw.is_file()):
        return False
    try:
        ours, theirs = ([(set(e["train"]), set(e["val"])) for e in json.loads(f.read_bytes())] for f in (used, raw))
    except (ValueError, KeyError, TypeError):  # broken
        return True
    return theirs != ours[: len(theirs)]


@refusals_told()
def unread_entries(preprocessed: Path, raw: Path) -> list[dict[str, Any]]:
    """What each fold in the file of `splits_for_planning` holds beside its lists. It is empty without a file."""
    file = next((folder / SPLITS for folder in (preprocessed, raw) if (folder / SPLITS).is_file()), None)
    content = _read_folds(file) if file is not None else []
    return [{key: value for key, value in entry.items() if key not in PARTS} for entry in content]


def check_case_name(name: str, where: str) -> str:
    """Return the name if it can be part of file names. nnU-Net takes `NAME_seg.b2nd` for the segmentation of NAME.

    Raises:
        MNError: when it cannot; the message names its place.
    """
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise MNError(f"{where} names a case {name!r}, which is no file name; correct it")
    if name.endswith("_seg"):
        raise MNError(f"{where} names a case '{name}', but nnU-Net takes names in '_seg' for segmentations; rename it")
    return name


def _differs(first: Path, second: Path) -> bool:
    try:
        return bool(json.loads(first.read_bytes()) != json.loads(second.read_bytes()))
    except ValueError:
        return True


def _read_split_file(file: Path) -> tuple[list[Split], list[str]]:
    read = [_check_entry(entry, f"fold {fold} of {file}") for fold, entry in enumerate(_read_folds(file))]
    return [entry for entry, _ in read], [w for _, warnings in read for w in warnings]


def _read_folds(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise MNError(f"{file} cannot be read as JSON ({error}); restore it or write it anew") from error
    if not isinstance(content, list) or not content:
        raise MNError(f"{file} must hold a list of folds, but holds {str(content)[:60]!r}; write it anew")
    return content


def _check_entry(entry: Any, where: str) -> tuple[Split, list[str]]:
    """The three lists of a fold with each name once, and warnings."""
    if not isinstance(entry, dict) or not {"train", "val"} <= set(entry):
        raise MNError(f"{where} must be a dictionary with the lists 'train' and 'val', but is {str(entry)[:60]!r}")
    lists: Split = {}
    for key in PARTS:
        names = entry.get(key, [])
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise MNError(f"'{key}' in {where} must be a list of case names, but is {str(names)[:60]!r}")
        lists[key] = list(dict.fromkeys(names))
    for name in lists["unlabeled"]:
        check_case_name(name, where)
    for key in ("train", "val"):
        both = sorted(set(lists["unlabeled"]) & set(lists[key]))
        if both:
            raise MNError(
                f"{where} lists {name_some(both)} under 'unlabeled' and '{key}'; remove them from one of the two"
            )
    # Stock nnU-Net takes such splits, the first one with a remark, so they are no errors of ours either.
    both = sorted(set(lists["train"]) & set(lists["val"]))
    warnings = [f"WARNING: {where} lists {name_some(both)} under 'train' and 'val'"] if both else []
    for key in sorted(set(entry) - set(PARTS)):
        if meant := get_close_matches(key, PARTS, n=1):
            warnings.append(f"WARNING: {where} has a list '{key}', which is not read; did you mean '{meant[0]}'?")
    return lists, warnings
