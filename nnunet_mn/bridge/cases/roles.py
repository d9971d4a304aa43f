"""Which cases are labeled, unlabeled or held out for validation, in one fold and in all folds. Needs no torch."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnunet_mn.bridge.cases.splits import PARTS, SPLITS, Split
from nnunet_mn.errors import MNError

FEWEST_FOR_STOCK_SPLIT = 5  # nnU-Net's KFold(5)


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The cases of one fold, or of all folds together, by name.

    Args:
        fold: its number, or "all".
        labeled: cases to train on with their labels.
        val: cases to validate on. They are the labeled ones if there are no others.
        unlabeled: the cases under `unlabeled` in the split file. Folders of images may hold more.
        mentioned: every case in any fold of the split file.
        validated: validation cases that this fold does not train on; for all folds, those that at least one does not.
        warnings: for the user.
    """

    fold: int | str
    labeled: tuple[str, ...]
    val: tuple[str, ...]
    unlabeled: tuple[str, ...]
    mentioned: frozenset[str]
    validated: frozenset[str]
    warnings: tuple[str, ...] = ()

    @property
    def held_out(self) -> list[str]:
        """Validation cases outside of the training cases."""
        labeled = set(self.labeled)
        return [name for name in self.val if name not in labeled]


def roles_in_training(
    splits: list[Split] | None,
    fold: int | str,
    cases: Sequence[str],
    stock_split: Callable[[], tuple[Iterable[str], Iterable[str]]],
) -> Roles:
    """The roles in the training of a fold.

    Args:
        splits, fold: from `read_splits`; a number or "all".
        cases: all preprocessed training cases.
        stock_split: nnU-Net's `do_split`. It is not called for fewer cases than it can divide.

    Raises:
        MNError: when nothing is preprocessed, or nothing is left to train on.
    """
    if splits is None and not cases:
        raise MNError(f"fold {fold} has no case: run nnUNetv2_preprocess for this dataset and configuration")
    if splits is not None or fold == "all" or len(cases) >= FEWEST_FOR_STOCK_SPLIT:
        train, val = stock_split()
        return roles_of_fold(splits, fold, train=train, val=val)
    warning = (
        f"WARNING: {len(cases)} labeled cases are too few for nnU-Net's 5 folds. All of them are trained on and "
        f"validation uses the same cases, so its Dice says nothing about new ones"
    )
    roles = roles_of_fold(splits, fold, train=sorted(cases), val=sorted(cases))
    return replace(roles, warnings=(warning, *roles.warnings))


def roles_of_fold(splits: list[Split] | None, fold: int | str, *, train: Iterable[str], val: Iterable[str]) -> Roles:
    """Take the fold's listed unlabeled cases out of nnU-Net's own split.

    Args:
        splits, fold: from `read_splits`; a number or "all".
        train, val: from nnU-Net's `do_split`.

    Raises:
        MNError: when nothing is left to train on.
    """
    unlabeled = listed_unlabeled(splits, fold)
    before = {*train, *val}
    removed = before.intersection(unlabeled)
    labeled, held_out = (tuple(str(name) for name in names if name not in removed) for names in (train, val))
    warnings = []
    if removed:
        does = "trains on every case" if fold == "all" else "draws a random 80:20 split of every case"
        warnings.append(
            f"WARNING: fold {fold} has no entry in {SPLITS}, so nnU-Net {does}. The {len(removed)} cases that any fold "
            f"calls unlabeled are left out of training and validation"
        )
    if not labeled:
        raise MNError(f"fold {fold} has no labeled case to train on; put at least one into 'train' of {SPLITS}")
    if not held_out:
        warnings.append(
            f"WARNING: fold {fold} has no validation case. Validation uses the labeled cases, so its Dice is too high"
        )
    return Roles(
        fold=fold,
        labeled=labeled,
        val=held_out or labeled,
        unlabeled=tuple(unlabeled),
        mentioned=_named(splits, *PARTS),
        validated=frozenset(held_out) - set(labeled),
        warnings=tuple(warnings),
    )


def roles_of_all_folds(splits: list[Split] | None, cases: Collection[str] = ()) -> Roles:
    """The roles for planning and preprocessing. Both serve all folds.

    A case is unlabeled here if any fold calls it so. A case may be labeled and for validation at once.

    Args:
        splits: from `read_splits`.
        cases: all training cases. Without a split file they are labeled, and each is for validation in one of
            nnU-Net's folds, if they are enough for these.
    """
    unlabeled = _named(splits, "unlabeled")
    validated = {name for split in splits or () for name in set(split["val"]) - set(split["train"])}
    if splits is None and len(cases) >= FEWEST_FOR_STOCK_SPLIT:
        validated = set(cases)
    return Roles(
        fold="all",
        labeled=tuple(sorted((set(cases) if splits is None else _named(splits, "train")) - unlabeled)),
        val=tuple(sorted(_named(splits, "val") - unlabeled)),
        unlabeled=tuple(sorted(unlabeled)),
        mentioned=_named(splits, *PARTS),
        validated=frozenset(validated - unlabeled),
    )


def listed_split(
    splits: list[Split] | None, fold: int | str, cases: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """nnU-Net's training and validation cases by the split file, as its `do_split` gives them.

    Args:
        splits, fold: from `read_splits`; a number or "all". Without a split file, both are all cases.
        cases: all preprocessed training cases. The random split of a fold that the file lacks depends on them.
    """
    if (entry := _entry(splits, fold)) is not None:
        return entry["train"], entry["val"]
    return (cases, cases) if splits is None or isinstance(fold, str) else _random_split(fold, sorted(cases))


def _random_split(fold: int, cases: Sequence[str]) -> tuple[list[str], list[str]]:
    """The seeded 80:20 split that nnU-Net's `do_split` draws for a fold that the split file lacks."""
    drawn = np.random.RandomState(12345 + fold).choice(len(cases), int(0.8 * len(cases)), replace=False).tolist()
    return [cases[i] for i in drawn], [case for i, case in enumerate(cases) if i not in drawn]


def listed_unlabeled(splits: list[Split] | None, fold: int | str) -> list[str]:
    """The fold's `unlabeled` list. For fold `all` and folds without an entry it is the union over all folds."""
    entry = _entry(splits, fold)
    return sorted(_named(splits, "unlabeled")) if entry is None else entry["unlabeled"]


def _entry(splits: list[Split] | None, fold: int | str) -> Split | None:
    """The entry of a fold, or None if stock nnU-Net would draw from every preprocessed case."""
    return splits[fold] if splits is not None and isinstance(fold, int) and fold < len(splits) else None


def _named(splits: list[Split] | None, *parts: str) -> frozenset[str]:
    """The union of these lists over all folds."""
    return frozenset(name for split in splits or () for part in parts for name in split[part])


def labeled_for_planning(cases: Collection[str], splits: list[Split] | None) -> tuple[list[str], list[str]]:
    """Choose the cases with labels for planning: all except the unlabeled ones of any fold.

    Plans serve all folds. In splits drawn for experiments, each training case of one fold may be unlabeled in
    another. Then the training cases of all folds are chosen, with a warning.

    Args:
        cases: names of all training cases.
        splits: from `read_splits`.

    Returns:
        Their names, and warnings.

    Raises:
        MNError: when there is none.
    """
    trained = set(cases) & (_named(splits, "train") or set(cases))
    never_unlabeled = sorted(set(cases) - _named(splits, "unlabeled"))
    if trained.intersection(never_unlabeled):
        return never_unlabeled, []
    if not trained:
        raise MNError(f"no training case is labeled in any fold of {SPLITS}; put at least one into 'train'")
    return sorted(trained), [
        f"WARNING: every fold's labeled cases are unlabeled in another fold. The plans serve all folds, so they take "
        f"intensities from the labels of all {len(trained)} cases that some fold trains on. For a fold that knows its "
        f"own labels alone, plan with a {SPLITS} of that one fold"
    ]
