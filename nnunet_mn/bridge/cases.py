"""Who is labeled, unlabeled or held out for validation."""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.images import name_some
from nnunet_mn.bridge.sources import SPLITS, KnownCases, UnlabeledCase, check_case_name, find_preprocessed, find_raw
from nnunet_mn.config import UNLABELED_SOURCES
from nnunet_mn.errors import MNError

Split = dict[str, list[str]]


@dataclass(frozen=True)
class UnlabeledCases:
    """The unlabeled cases of a fold, by name, and what the user should know about them."""

    cases: tuple[UnlabeledCase, ...]
    warnings: tuple[str, ...]


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


def _entry(splits: list[Split] | None, fold: int | str) -> Split | None:
    """The entry of a fold, or None where stock nnU-Net would train on every preprocessed case."""
    return splits[fold] if splits is not None and isinstance(fold, int) and fold < len(splits) else None


def listed_unlabeled(splits: list[Split] | None, fold: int | str) -> list[str]:
    """The fold's `unlabeled` list; for fold `all` and folds that the file lacks, the union over all folds."""
    entry = _entry(splits, fold)
    return entry["unlabeled"] if entry is not None else sorted({n for e in splits or () for n in e["unlabeled"]})


def labeled_split(
    train: Iterable[str], val: Iterable[str], splits: list[Split] | None, fold: int | str
) -> tuple[list[str], list[str], list[str]]:
    """Take every case that the split calls unlabeled out of nnU-Net's own split.

    Args:
        train, val: what nnU-Net's do_split returned.
        splits: from `read_splits`.
        fold: its number, or "all".

    Returns:
        The labeled cases to train on, those to validate on, and warnings.

    Raises:
        MNError: when nothing is left to train on.
    """
    unlabeled = set(listed_unlabeled(splits, fold))
    before = {*train, *val}
    train, val = ([str(name) for name in names if name not in unlabeled] for names in (train, val))
    warnings = []
    if removed := before & unlabeled:
        warnings.append(
            f"WARNING: fold {fold} has no entry in {SPLITS}, so that nnU-Net trains on every case: the {len(removed)} "
            f"that any fold calls unlabeled are left out of training and validation"
        )
    if not train:
        raise MNError(f"fold {fold} has no labeled case to train on; put at least one into 'train' of {SPLITS}")
    if not val:
        warnings.append(f"WARNING: fold {fold} has no validation case, so that the labeled ones serve, which flatters")
        val = list(train)
    return train, val, warnings


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
