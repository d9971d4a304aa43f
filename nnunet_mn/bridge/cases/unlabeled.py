"""The unlabeled cases of a fold. Needs no torch."""

from dataclasses import dataclass, field, replace

from nnunet_mn.bridge.cases.dataset import CaseFolders
from nnunet_mn.bridge.cases.preprocessed import complete_cases
from nnunet_mn.bridge.cases.roles import Roles, roles_of_all_folds
from nnunet_mn.bridge.cases.sources import LAST_RESORTS, LISTED, SOURCES, USUAL, UnlabeledCase, filled_folders, search
from nnunet_mn.bridge.cases.splits import SPLITS, read_splits
from nnunet_mn.bridge.files import refusals_told
from nnunet_mn.bridge.words import name_some
from nnunet_mn.errors import MNError


@dataclass(frozen=True)
class UnlabeledCases:
    """The unlabeled cases of a fold, by name, and warnings for the user.

    `names_by_source` are all names in each searched folder of images. `write_wanted` records them.
    """

    cases: tuple[UnlabeledCase, ...]
    warnings: tuple[str, ...]
    names_by_source: dict[str, list[str]] = field(default_factory=dict)


@refusals_told()
def find_unlabeled(folders: CaseFolders, roles: Roles, sources: tuple[str, ...] | None) -> UnlabeledCases:
    """Find the unlabeled cases of a fold.

    Args:
        folders: of its cases. Without raw data the complete preprocessed cases count.
        roles: of the fold.
        sources: names of the `SOURCES` to search. None means the usual ones, and the last resorts if these have no
            case and their folders no visible entry.

    Raises:
        MNError: when there is none, when files are missing or in surplus, when one name has two images, or when a
            validation case is among them.
    """
    if both := sorted({*roles.labeled, *roles.val}.intersection(roles.unlabeled)):
        raise MNError(
            f"{name_some(both)} cannot be unlabeled and labeled or validation cases at once; correct {SPLITS}"
        )
    cases, warnings, names_by_source = search(folders, roles, sources or USUAL)
    filled = filled_folders(folders.raw, USUAL) if folders.raw is not None else []
    if not cases and sources is None and not filled:
        cases, more, more_names = search(folders, roles, LAST_RESORTS)
        warnings, names_by_source = warnings + more, names_by_source | more_names
    if not cases:
        raise MNError(_no_unlabeled_case(roles, sources, filled, warnings))
    for source in SOURCES:
        n = sum(case.source == source.name for case in cases)
        if n and source.warning:
            warnings.append(source.warning.format(n=n))
    warnings += _unused_labels(folders, roles)
    return UnlabeledCases(tuple(sorted(cases, key=lambda case: case.name)), tuple(warnings), names_by_source)


def _unused_labels(folders: CaseFolders, roles: Roles) -> list[str]:
    """Warnings about training cases that the fold does not use, such as those labeled since the planning."""
    preprocessed, used = complete_cases(folders.labeled), {*roles.labeled, *roles.val, *roles.unlabeled}
    warnings = []
    new, without_label = _others_in_raw(folders, known=preprocessed | used)
    if new:
        warnings.append(
            f"WARNING: {len(new)} case(s) in imagesTr have a label but are not preprocessed ({name_some(new)}). They "
            f"are not used: run nnUNetv2_preprocess, and add them to {SPLITS} if it exists"
        )
    if without_label:
        warnings.append(
            f"WARNING: {len(without_label)} case(s) in imagesTr have no label ({name_some(without_label)}). They are "
            f"not used: move their images to imagesUn"
        )
    if unlisted := sorted(preprocessed - used):
        warnings.append(
            f"WARNING: {len(unlisted)} preprocessed case(s) are in no list of the split ({name_some(unlisted)}). They "
            f"are not used: add them to {SPLITS}, unless they are kept for a test"
        )
    return warnings


def _others_in_raw(folders: CaseFolders, *, known: set[str]) -> tuple[list[str], list[str]]:
    """Other cases of imagesTr with a label and without one, if the raw dataset is on this machine."""
    raw = folders.raw_images
    others = [] if raw is None else [(name, raw.label_of(name)) for name in raw.training_cases if name not in known]
    with_label = [name for name, label in others if label.is_file()]
    return with_label, [name for name, label in others if not label.exists()]


def _no_unlabeled_case(roles: Roles, sources: tuple[str, ...] | None, filled: list[str], warnings: list[str]) -> str:
    searched = sources or (USUAL if filled else tuple(source.name for source in SOURCES))
    left_out = [name for name in (*([LISTED.name] if roles.unlabeled else []), *filled) if name not in searched]
    why = "".join(f"; {name} is not empty, but holds none" for name in filled if name in searched)
    why += "".join(f"; {name} is not empty, but not searched" for name in left_out)
    told = "".join(f" ({warning.removeprefix('WARNING: ')})" for warning in warnings)
    remedies = _remedies(searched, left_out) if sources else [source.remedy for source in SOURCES]
    places = f"sources: {', '.join(searched)}{why}{told}"
    return f"fold {roles.fold} has no unlabeled case ({places}): {', or '.join(remedies)}"


def _remedies(searched: tuple[str, ...], left_out: list[str]) -> list[str]:
    """Advice for a search of chosen sources: another choice where it finds something, else new cases."""
    if left_out:
        return [f"set nnUNet_mn_unlabeled_sources={','.join((*searched, *left_out))}"]
    remedies = []
    for source in SOURCES:
        if source.name in searched:
            remedies += [] if source.last_resort else [source.remedy]
        elif source.last_resort:  # its remedy names the setting
            remedies.append(source.remedy)
        else:
            remedies.append(f"{source.remedy}, with nnUNet_mn_unlabeled_sources={','.join((*searched, source.name))}")
    return remedies


@refusals_told()
def find_unlabeled_of_all_folds(folders: CaseFolders, sources: tuple[str, ...] | None) -> UnlabeledCases:
    """Find the unlabeled cases of all folds together.

    Args:
        folders, sources: as in `find_unlabeled`.

    Raises:
        MNError: when there is none, or something is wrong with one.
    """
    splits, warnings = read_splits(folders.labeled.parent, folders.raw)
    found = find_unlabeled(folders, roles_of_all_folds(splits, _training_cases(folders)), sources)
    return replace(found, warnings=(*warnings, *found.warnings))


def _training_cases(folders: CaseFolders) -> set[str]:
    """Names of all training cases, raw or preprocessed."""
    raw = folders.raw_images
    return complete_cases(folders.labeled).union(() if raw is None else raw.training_cases)
