"""Who is labeled, unlabeled or held out for validation: in one fold, and in all folds together. Needs no torch."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from nnunet_mn.bridge.cases.splits import PARTS, SPLITS, Split
from nnunet_mn.errors import MNError

FEWEST_FOR_STOCK_SPLIT = 5  # nnU-Net's KFold(5)


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The cases of one fold, or of all folds together, by name.

    Args:
        fold: its number, or "all".
        labeled: cases to train on with their labels.
        val: cases to validate on. They are the labeled ones where there are no others.
        unlabeled: cases that the split file lists as unlabeled. Folders of images may hold more.
        mentioned: every case that the split file names in any fold.
        warnings: what the user should know.
    """

    fold: int | str
    labeled: tuple[str, ...]
    val: tuple[str, ...]
    unlabeled: tuple[str, ...]
    mentioned: frozenset[str]
    warnings: tuple[str, ...] = ()

    @property
    def held_out(self) -> list[str]:
        """Validation cases that are not trained on."""
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
        stock_split: nnU-Net's `do_split`. It is not called where there are too few cases for it.

    Raises:
        MNError: when nothing is left to train on.
    """
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
    """Take every case that the split file calls unlabeled out of nnU-Net's own split.

    Args:
        splits, fold: from `read_splits`; a number or "all".
        train, val: what nnU-Net's `do_split` returned.

    Raises:
        MNError: when nothing is left to train on.
    """
    unlabeled = listed_unlabeled(splits, fold)
    before = {*train, *val}
    removed = before.intersection(unlabeled)
    labeled, held_out = (tuple(str(name) for name in names if name not in removed) for names in (train, val))
    warnings = []
    if removed:
        warnings.append(
            f"WARNING: fold {fold} has no entry in {SPLITS}, so nnU-Net trains on every case. The {len(removed)} cases "
            f"that any fold calls unlabeled are left out of training and validation"
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
        warnings=tuple(warnings),
    )


def roles_of_all_folds(splits: list[Split] | None, cases: Collection[str] = ()) -> Roles:
    """The roles for planning and preprocessing. Both serve all folds.

    A case that any fold calls unlabeled is unlabeled here. A case may be labeled and for validation at once.

    Args:
        splits: from `read_splits`.
        cases: all training cases. They are labeled where there is no split file.
    """
    unlabeled = _named(splits, "unlabeled")
    return Roles(
        fold="all",
        labeled=tuple(sorted((set(cases) if splits is None else _named(splits, "train")) - unlabeled)),
        val=tuple(sorted(_named(splits, "val") - unlabeled)),
        unlabeled=tuple(sorted(unlabeled)),
        mentioned=_named(splits, *PARTS),
    )


def listed_split(
    splits: list[Split] | None, fold: int | str, cases: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """What nnU-Net trains on and validates on by the split file. For a fold without an entry these are all cases."""
    entry = _entry(splits, fold)
    return (cases, cases) if entry is None else (entry["train"], entry["val"])


def listed_unlabeled(splits: list[Split] | None, fold: int | str) -> list[str]:
    """The fold's `unlabeled` list. For fold `all` and folds without an entry it is the union over all folds."""
    entry = _entry(splits, fold)
    return sorted(_named(splits, "unlabeled")) if entry is None else entry["unlabeled"]


def _entry(splits: list[Split] | None, fold: int | str) -> Split | None:
    """The entry of a fold, or None where stock nnU-Net would train on every preprocessed case."""
    return splits[fold] if splits is not None and isinstance(fold, int) and fold < len(splits) else None


def _named(splits: list[Split] | None, *parts: str) -> frozenset[str]:
    """The cases that any fold names in some of its lists."""
    return frozenset(name for split in splits or () for part in parts for name in split[part])


def labeled_for_planning(cases: Collection[str], splits: list[Split] | None) -> tuple[list[str], list[str]]:
    """Choose the cases whose labels planning may read: those that no fold calls unlabeled.

    Plans serve all folds. In splits that were drawn for experiments, every case that one fold trains on may be
    unlabeled in another. Then the cases that any fold trains on are chosen, with a warning.

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
