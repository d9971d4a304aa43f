"""The sources of unlabeled cases. A new place is one more entry in `SOURCES`. Needs no torch."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nnunet_mn.bridge.cases.dataset import CaseFolders
from nnunet_mn.bridge.cases.images import same_voxels, visible_entries
from nnunet_mn.bridge.cases.manifest import Manifest
from nnunet_mn.bridge.cases.preprocessed import complete_cases
from nnunet_mn.bridge.cases.raw_images import RawImages
from nnunet_mn.bridge.cases.roles import Roles
from nnunet_mn.bridge.cases.splits import SPLITS
from nnunet_mn.bridge.cases.tiff import spacing_file
from nnunet_mn.bridge.cases.wanted import read_wanted
from nnunet_mn.bridge.words import name_some
from nnunet_mn.errors import MNError


@dataclass(frozen=True, slots=True)
class UnlabeledCase:
    """One unlabeled case. Without raw data on this machine it has no images."""

    name: str
    images: tuple[Path, ...]
    source: str

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the case is read from: its images, and for TIFF stacks the one with their spacing."""
        beside = spacing_file(self.images[0]) if self.images else None
        return self.images if beside is None else (*self.images, beside)


class Found(NamedTuple):
    """Cases, warnings, and all names in each searched folder of images. Without raw data there are no such names."""

    cases: list[UnlabeledCase]
    warnings: list[str]
    names_by_source: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A place with unlabeled cases.

    Args:
        name: of the place in the setting `unlabeled_sources`.
        remedy: advice for a fold without unlabeled cases.
        warning: about its cases, for the user. `{n}` stands for their number.
        last_resort: it is searched by default only if all other places are empty.
    """

    name: str
    remedy: str
    warning: str = ""
    last_resort: bool = False

    @abstractmethod
    def find(self, raw: RawImages, roles: Roles) -> tuple[list[UnlabeledCase], list[str]]:
        """The cases in this place, and warnings.

        Raises:
            MNError: when files are missing or in surplus.
        """


class SplitList(Source):
    """The training cases under `unlabeled` in the split file."""

    def find(self, raw: RawImages, roles: Roles) -> tuple[list[UnlabeledCase], list[str]]:
        found = {name: raw.of_training_case(name) for name in roles.unlabeled}
        for name, images in found.items():
            if images is None and raw.has_training_images:
                raise MNError(
                    f"{SPLITS} lists '{name}' under 'unlabeled', but imagesTr of {raw.folder} has no image of it; add "
                    f"one, or take the name off the list: cases of imagesUn need no list"
                )
        return [UnlabeledCase(name, images or (), self.name) for name, images in found.items()], []


class FolderOfImages(Source):
    """A folder of the raw dataset, called like the source, with images named like those of imagesTr."""

    def find(self, raw: RawImages, roles: Roles) -> tuple[list[UnlabeledCase], list[str]]:
        cases, warnings = raw.in_folder(self.name)
        return [UnlabeledCase(name, images, self.name) for name, images in cases.items()], warnings


LISTED = SplitList(name="split", remedy=f"list names under 'unlabeled' in its entry of {SPLITS} in nnUNet_preprocessed")
IMAGES_UN = FolderOfImages(name="imagesUn", remedy="put images into imagesUn of the raw dataset")
IMAGES_TS = FolderOfImages(
    name="imagesTs",
    remedy="use the test images in imagesTs with nnUNet_mn_unlabeled_sources=imagesTs",
    warning="WARNING: {n} images of imagesTs are used as unlabeled ones. The training is transductive: results on "
    "these images do not show how it does on new ones. Other unlabeled images belong in a folder called imagesUn",
    last_resort=True,
)
SOURCES: tuple[Source, ...] = (LISTED, IMAGES_UN, IMAGES_TS)
USUAL, LAST_RESORTS = (tuple(s.name for s in SOURCES if s.last_resort is wanted) for wanted in (False, True))


def search(folders: CaseFolders, roles: Roles, names: Collection[str]) -> Found:
    """Unite the cases of the sources with these names. Each name comes once.

    Raises:
        MNError: when files are missing or in surplus, when one name has two images, or for a validation case.
    """
    sources = [source for source in SOURCES if source.name in names]
    raw = folders.raw_images
    if raw is None or (_holds_none(raw, names) and complete_cases(folders.unlabeled)):
        return Found(_search_preprocessed(folders.unlabeled, roles, sources), [], {})
    return _search_raw(raw, roles, sources, folders.unlabeled)


def _holds_none(raw: RawImages, names: Collection[str]) -> bool:
    """Whether the images of a raw dataset are gone. People delete them after preprocessing."""
    return not (raw.has_training_images or filled_folders(raw.folder, names))


def filled_folders(raw: Path, names: Collection[str]) -> list[str]:
    """The folders of unlabeled images with a visible entry, among the sources with these names."""
    folders = [source.name for source in SOURCES if isinstance(source, FolderOfImages) and source.name in names]
    return [name for name in folders if visible_entries(raw / name)]


def _search_raw(raw: RawImages, roles: Roles, sources: Sequence[Source], preprocessed: Path) -> Found:
    same = functools.partial(same_voxels, dataset_json=raw.description)
    labeled = frozenset(roles.labeled)
    found: dict[str, UnlabeledCase] = {}
    warnings: list[str] = []
    names_by_source: dict[str, list[str]] = {}
    for source in sources:
        cases, more = _of_missing_folder(source, raw, roles, preprocessed) or source.find(raw, roles)
        warnings += more
        if source.name != LISTED.name:
            names_by_source[source.name] = [case.name for case in cases]
        for case in cases:
            if case.name in roles.validated:
                raise MNError(f"{case.images[0]} is called like the validation case '{case.name}'; rename or remove it")
            if case.name in labeled:  # already known with its label
                _check_same(case.images, raw.of_training_case(case.name), case.name, same)
            elif case.name in found and found[case.name].images:  # a listed one has none without imagesTr
                _check_same(case.images, found[case.name].images, case.name, same)
            else:
                found[case.name] = case
    return Found(list(found.values()), warnings, names_by_source)


def _of_missing_folder(
    source: Source, raw: RawImages, roles: Roles, preprocessed: Path
) -> tuple[list[UnlabeledCase], list[str]] | None:
    """The recorded and preprocessed cases of a folder of images that is gone; None if there are none."""
    folder = raw.folder / source.name
    if not isinstance(source, FolderOfImages) or folder.exists() or folder.is_symlink():
        return None
    complete, others = complete_cases(preprocessed), {*roles.labeled, *roles.validated}
    kept = [n for n in (read_wanted(preprocessed) or {}).get(source.name, ()) if n in complete and n not in others]
    if not kept:
        return None
    told = (
        f"WARNING: {folder} is gone. Its {len(kept)} preprocessed case(s) are used ({name_some(kept)}): put the folder "
        f"back, or delete {preprocessed} to train without them"
    )
    return [UnlabeledCase(name, (), source.name) for name in kept], [told]


def _check_same(
    images: tuple[Path, ...], others: tuple[Path, ...] | None, name: str, same: Callable[..., bool]
) -> None:
    if others is not None and not same(images, others):
        raise MNError(f"two different images are called '{name}': {others[0]} and {images[0]}; rename one of them")


def _search_preprocessed(folder: Path, roles: Roles, sources: Sequence[Source]) -> list[UnlabeledCase]:
    """The unlabeled cases without raw data: the split's list, and the recorded names of the folders."""
    names = {source.name for source in sources}
    found = dict.fromkeys(roles.unlabeled, LISTED.name) if LISTED.name in names else {}
    complete, wanted = complete_cases(folder), read_wanted(folder)
    if wanted is None:
        wanted = _preprocessed_by_source(folder, complete - roles.mentioned)
    for source in names - {LISTED.name}:
        for name in wanted.get(source, ()):
            # a case that the split mentions may be passed over in preprocessing
            if name in complete or name not in roles.mentioned:
                found.setdefault(name, source)
    known = {*roles.labeled, *roles.val}
    return [UnlabeledCase(name, (), source) for name, source in found.items() if name not in known]


def _preprocessed_by_source(folder: Path, cases: Collection[str]) -> dict[str, list[str]]:
    """Preprocessed cases by the source in their record. It stands in where an older version left no wanted names."""
    records, folders = Manifest.read(folder), {source.name for source in SOURCES} - {LISTED.name}
    by_source: dict[str, list[str]] = {}
    for name in cases:
        record = records.get(name)
        source = record.source if record is not None and record.source in folders else IMAGES_UN.name
        by_source.setdefault(source, []).append(name)
    return by_source
