"""The split file: reading and checking it."""

import json
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.cases.images import name_some
from nnunet_mn.bridge.cases.sources import SPLITS, check_case_name
from nnunet_mn.errors import MNError

Split = dict[str, list[str]]


def read_splits(preprocessed: Path, raw: Path | None) -> tuple[list[Split] | None, list[str]]:
    """Read and check the split file that nnU-Net uses.

    Args:
        preprocessed: the data set's folder in nnUNet_preprocessed; its file counts.
        raw: the data set's folder in nnUNet_raw, whose file nnU-Net copies only once, when it plans.

    Returns:
        One entry per fold, with `train`, `val` and `unlabeled` (None: there is no file yet), and warnings.

    Raises:
        MNError: when the file is broken, or when one that lists unlabeled cases was never copied.
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
    """Judge a split file that came after planning: ignoring one that lists unlabeled cases would leak their labels."""
    splits, _ = _read_split_file(file)
    if any(entry["unlabeled"] for entry in splits):
        raise MNError(
            f"{file} lists unlabeled cases, but nnU-Net copies it only when it plans; copy it to {preprocessed}"
        )
    return [f"WARNING: {file} is not used, since nnU-Net copies it only when it plans; copy it to {preprocessed}"]


def _differs(first: Path, second: Path) -> bool:
    try:
        return bool(json.loads(first.read_bytes()) != json.loads(second.read_bytes()))
    except ValueError:
        return True


def _read_split_file(file: Path) -> tuple[list[Split], list[str]]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise MNError(f"{file} cannot be read as JSON ({error}); restore it or write it anew") from error
    if not isinstance(content, list) or not content:
        raise MNError(f"{file} must hold a list of folds, but holds {str(content)[:60]!r}; write it anew")
    read = [_check_entry(entry, f"fold {fold} of {file}") for fold, entry in enumerate(content)]
    return [entry for entry, _ in read], [w for _, warnings in read for w in warnings]


def _check_entry(entry: Any, where: str) -> tuple[Split, list[str]]:
    """The three lists of a fold, each name once."""
    if not isinstance(entry, dict) or not {"train", "val"} <= set(entry):
        raise MNError(f"{where} must be a dictionary with the lists 'train' and 'val', but is {str(entry)[:60]!r}")
    lists: Split = {}
    for key in ("train", "val", "unlabeled"):
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
    # Stock nnU-Net takes such a split with a remark, so it is no error of ours either.
    both = sorted(set(lists["train"]) & set(lists["val"]))
    return lists, [f"WARNING: {where} lists {name_some(both)} under 'train' and 'val'"] if both else []
