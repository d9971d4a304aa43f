"""Who is labeled, unlabeled or held out for validation."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunet_mn.bridge.cases.sources import SPLITS
from nnunet_mn.bridge.cases.splits import Split, read_splits
from nnunet_mn.errors import MNError


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


def _never_unlabeled(splits: list[Split] | None, part: str) -> list[str]:
    """Cases of this part in some fold that no fold lists as unlabeled."""
    unlabeled = {name for split in splits or () for name in split["unlabeled"]}
    return sorted({name for split in splits or () for name in split[part]} - unlabeled)


@dataclass(frozen=True)
class LabeledCases:
    """Cases whose labels planning may read, and a warning where no choice is clean."""

    names: tuple[str, ...]
    warning: str | None = None


def labeled_for_planning(training: Collection[str], splits: list[Split] | None) -> LabeledCases:
    """Choose the cases whose labels planning may read: those that no fold calls unlabeled.

    Plans serve all folds. Where every case that one fold trains on is unlabeled in another, as in splits drawn for
    experiments, the cases that any fold trains on with their labels serve, with a warning.

    Args:
        training: names of the training cases of the dataset.
        splits: from `cases.read_splits`.

    Raises:
        MNError: when there is none.
    """
    unlabeled = {name for split in splits or () for name in split["unlabeled"]}
    trained = {name for split in splits or () for name in split["train"]} or set(training)
    never = sorted(set(training) - unlabeled)
    if set(never) & trained:
        return LabeledCases(tuple(never))
    some = sorted(set(training) & trained)
    if not some:
        raise MNError("no training case is labeled in any fold of splits_final.json; put at least one into 'train'")
    return LabeledCases(
        tuple(some),
        f"WARNING: every fold's labeled cases are unlabeled in another fold, so that the plans, which serve all folds, "
        f"take intensities from the labels of all {len(some)} cases that some fold trains on; for a fold that knows "
        f"its own labels alone, plan with a splits_final.json of that one fold",
    )


def splits_for_planning(preprocessed: Path, raw: Path) -> tuple[list[Split] | None, list[str]]:
    """The splits that training will use: before the first planning those of the raw data, which nnU-Net then copies."""
    if (raw / SPLITS).is_file() and not (preprocessed / SPLITS).is_file():
        return read_splits(raw, None)
    return read_splits(preprocessed, raw)
