"""Preprocess the unlabeled cases with the plans' own preprocessor, from their images alone. It can be resumed."""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from nnunet_mn.bridge.cases.manifest import Manifest, Record, append, settings_hash
from nnunet_mn.bridge.cases.planned import PlannedDataset
from nnunet_mn.bridge.cases.preprocessed import dataset_class_of
from nnunet_mn.bridge.cases.roles import Roles
from nnunet_mn.bridge.cases.sources import UnlabeledCase
from nnunet_mn.bridge.cases.unlabeled import find_unlabeled
from nnunet_mn.bridge.cases.wanted import write_wanted
from nnunet_mn.bridge.files import refusals_told, share, why_no_lock
from nnunet_mn.bridge.preprocessing.leaks import refuse_copies_of_val
from nnunet_mn.bridge.preprocessing.lock import Part, file_lock, staging_folder
from nnunet_mn.bridge.preprocessing.one_case import Job, not_written, prepare_case
from nnunet_mn.bridge.preprocessing.soundness import check_sound
from nnunet_mn.bridge.preprocessing.to_do import survey
from nnunet_mn.bridge.processes import map_in_processes
from nnunet_mn.errors import MNError

FEWER = "a smaller nnUNet_def_n_proc, or -np of `nnunet-mn preprocess`: finished cases are kept"
MOST_BAD = 20  # bad images; from here on it is a fault of the whole dataset


class Preprocessed(NamedTuple):
    """Names of the cases for training, and of the others with the reason for leaving them out."""

    names: tuple[str, ...]
    skipped: dict[str, str]


def prepare_unlabeled(
    planned: PlannedDataset,
    roles: Roles,
    sources: tuple[str, ...] | None,
    *,
    num_processes: int,
    log: Callable[[str], None],
) -> Preprocessed:
    """Find the unlabeled cases of a fold, preprocess missing ones, and refuse copies of validation cases.

    Args:
        planned: the dataset and its plans.
        roles: of the fold.
        sources: as in `find_unlabeled`.
        num_processes: 1 means this process.
        log: takes lines for the user.

    Raises:
        MNError: when there is no unlabeled case, or something is wrong with one.
    """
    found = find_unlabeled(planned.cases, roles, sources)
    for warning in found.warnings:
        log(warning)
    write_wanted(planned.cases.unlabeled, found.names_by_source)
    done = preprocess_unlabeled(found.cases, planned, num_processes=num_processes, log=log)
    check_any_is_left(done.names)
    for warning in check_sound_and_no_copies(planned, roles, done.names):
        log(warning)
    return done


def check_any_is_left(names: Collection[str]) -> None:
    """Raise an MNError if no unlabeled case is left to train on."""
    if not names:
        raise MNError("every unlabeled case was left out by --skip-bad: repair their images, or add other cases")


@refusals_told()
def check_sound_and_no_copies(planned: PlannedDataset, roles: Roles, unlabeled: Collection[str]) -> list[str]:
    """Check what a training will read: no case is unsound, and no unlabeled one is a validation case.

    Args:
        planned: the dataset and its plans.
        roles: of the fold.
        unlabeled: names of its preprocessed unlabeled cases.

    Returns:
        Warnings.

    Raises:
        MNError: naming the wrong cases.
    """
    cases, schemes = planned.cases, planned.configuration_manager.normalization_schemes
    check_sound(cases.labeled, sorted({*roles.labeled, *roles.val}), schemes, unlabeled=cases.unlabeled)
    if unlabeled:
        dataset_class_of(cases.unlabeled)  # nnU-Net's loader ends at any other file there
    manifest = Manifest.read(cases.unlabeled)
    records = ((name, manifest.get(name)) for name in unlabeled)
    unchecked = [name for name, r in records if r is None or r.voxels is None or not r.voxels.thumbnail]
    check_sound(cases.unlabeled, unchecked, schemes, unlabeled=cases.unlabeled)
    return refuse_copies_of_val(cases.unlabeled, cases.labeled, roles.held_out, unlabeled=unlabeled)


@refusals_told()
def preprocess_unlabeled(
    cases: Sequence[UnlabeledCase],
    planned: PlannedDataset,
    *,
    num_processes: int,
    num_parts: int = 1,
    part_id: int = 0,
    skip_bad: bool = False,
    log: Callable[[str], None] = print,
) -> Preprocessed:
    """Preprocess missing cases and cases with changed images or plans. Of two processes at once, one waits.

    Args:
        cases: from `find_unlabeled`.
        planned: the dataset and its plans.
        num_processes: 1 means this process.
        num_parts, part_id: take every n-th case only, from this one on.
        skip_bad: leave bad images out, now and later, instead of raising.
        log: takes lines for the user.

    Raises:
        MNError: for bad images, once all others are done or `MOST_BAD` are bad; when raw data are missing; when
            writing fails.
    """
    if num_processes < 1 or not 0 <= part_id < num_parts:
        raise MNError(
            f"{num_processes} processes for part {part_id} of {num_parts} are impossible: take at least 1 process, and "
            f"a part from 0 to one less than the number of parts"
        )
    mine = sorted(cases, key=lambda case: case.name)[part_id::num_parts]
    folder, description = planned.cases.unlabeled, planned.dataset_json
    plans, configuration = planned.plans_manager.plans, planned.configuration_manager
    settings = settings_of(planned)
    begun_ns = time.time_ns()
    found, part = survey(mine, folder, settings), Part(folder, part_id, num_parts)
    if found.to_do:
        try:
            _make_folder(folder)
            with staging_folder(part, log) as staging:
                again = survey(found.to_do, folder, settings)  # another process may have done it meanwhile
                job = Job(folder, staging, plans, configuration, description, settings, begun_ns)
                manifest = _manifest(part)
                for record in found.renewed + again.renewed:
                    append(manifest, record)
                bad = _run(job, again.to_do, num_processes, manifest, skip_bad=skip_bad)
        except OSError as error:
            raise not_written(folder, error) from error
        found.skipped |= again.skipped | bad
    elif found.renewed:
        _renew(part, found.renewed)
    for name, reason in found.skipped.items():
        log(f"WARNING: the unlabeled case '{name}' is left out: {reason}")
    return Preprocessed(tuple(c.name for c in mine if c.name not in found.skipped), found.skipped)


def settings_of(planned: PlannedDataset) -> str:
    """A hash of all that decides how a case is preprocessed."""
    configuration = planned.configuration_manager.configuration
    return settings_hash(planned.plans_manager.plans, configuration, planned.dataset_json)


def _make_folder(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        share(folder)


def _manifest(part: Part) -> Path:
    """The file for the records of a part."""
    file = part.file(".jsonl")
    if not file.exists():
        file.touch()
        share(file)
    return file


def _renew(part: Part, records: Sequence[Record]) -> None:
    """Record new time stamps. Where nothing may be written, or another process works, images are read again instead."""
    lock = part.file(".lock")
    with (
        contextlib.suppress(OSError),
        contextlib.nullcontext() if why_no_lock(lock) is not None else file_lock(lock, timeout=0),
    ):
        manifest = _manifest(part)
        for record in records:
            append(manifest, record)


def _run(job: Job, cases: Sequence[UnlabeledCase], processes: int, manifest: Path, *, skip_bad: bool) -> dict[str, str]:
    """Preprocess the cases and record each. Bad ones are returned with the reason, or raised at the end."""
    bad: dict[str, str] = {}
    if not cases:
        return bad
    work, workers = functools.partial(prepare_case, job), min(processes, len(cases))
    results = map_in_processes(work, cases, processes=workers, remedy=FEWER)
    with contextlib.closing(results), tqdm(total=len(cases), desc="Preprocessing unlabeled cases") as bar:
        for record in results:
            bar.update()
            if record.skipped is None:
                append(manifest, record)
                continue
            bad[record.name] = record.skipped
            if skip_bad:
                for ending in (".b2nd", "_seg.b2nd", ".pkl"):  # the image was good once
                    (job.folder / f"{record.name}{ending}").unlink(missing_ok=True)
                append(manifest, record)
            elif len(bad) == MOST_BAD:
                break
    if bad and not skip_bad:
        kept = "the others are kept" if len(bad) < MOST_BAD else "the run stops there and keeps finished cases"
        raise MNError(
            f"{len(bad)} unlabeled case(s) cannot be used, {kept}: {'; '.join(bad.values())}; or leave "
            f"them out with `nnunet-mn preprocess --skip-bad`"
        )
    return bad
