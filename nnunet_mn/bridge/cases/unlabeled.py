"""The unlabeled cases of a fold. Needs no torch."""

from dataclasses import dataclass

from nnunet_mn.bridge.cases.dataset import CaseFolders
from nnunet_mn.bridge.cases.images import name_some
from nnunet_mn.bridge.cases.roles import Roles, roles_of_all_folds
from nnunet_mn.bridge.cases.sources import SOURCES, UnlabeledCase, search
from nnunet_mn.bridge.cases.splits import SPLITS, read_splits
from nnunet_mn.errors import MNError


@dataclass(frozen=True)
class UnlabeledCases:
    """The unlabeled cases of a fold, by name, and warnings for the user."""

    cases: tuple[UnlabeledCase, ...]
    warnings: tuple[str, ...]


def find_unlabeled(folders: CaseFolders, roles: Roles, sources: tuple[str, ...] | None) -> UnlabeledCases:
    """Find the unlabeled cases of a fold.

    Args:
        folders: of its cases. Without raw data the complete preprocessed cases count.
        roles: of the fold.
        sources: names of the `SOURCES` to search. None means the usual ones, and the last resorts if these are empty.

    Raises:
        MNError: when there is none, when files are missing or in surplus, when one name has two images, or when a
            validation case is among them.
    """
    if both := sorted({*roles.labeled, *roles.val}.intersection(roles.unlabeled)):
        raise MNError(
            f"{name_some(both)} cannot be unlabeled and labeled or validation cases at once; correct {SPLITS}"
        )
    usual, last = ([source.name for source in SOURCES if source.last_resort is wanted] for wanted in (False, True))
    cases, warnings = search(folders, roles, sources or usual)
    if not cases and sources is None:
        cases, more = search(folders, roles, last)
        warnings += more
    if not cases:
        names = sources or [source.name for source in SOURCES]
        raise MNError(
            f"fold {roles.fold} has no unlabeled case (sources: {', '.join(names)}): "
            f"{', or '.join(source.remedy for source in SOURCES)}"
        )
    for source in SOURCES:
        n = sum(case.source == source.name for case in cases)
        if n and source.warning:
            warnings.append(source.warning.format(n=n))
    return UnlabeledCases(tuple(sorted(cases, key=lambda case: case.name)), tuple(warnings))


def find_unlabeled_of_all_folds(folders: CaseFolders, sources: tuple[str, ...] | None) -> UnlabeledCases:
    """Find the unlabeled cases of all folds together.

    Args:
        folders, sources: as in `find_unlabeled`.

    Raises:
        MNError: when there is none, or something is wrong with one.
    """
    splits, warnings = read_splits(folders.labeled.parent, folders.raw)
    found = find_unlabeled(folders, roles_of_all_folds(splits), sources)
    return UnlabeledCases(found.cases, (*warnings, *found.warnings))
