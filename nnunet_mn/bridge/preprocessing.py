"""Preprocess the unlabeled cases with the plans' own preprocessor: resumable, once, and from images alone."""

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunet_mn.bridge.exclusive import Part, staging_folder
from nnunet_mn.bridge.images import name_some
from nnunet_mn.bridge.manifest import Manifest, append, complete_cases, settings_hash
from nnunet_mn.bridge.pool import map_in_processes
from nnunet_mn.bridge.prepare import Job, hash_voxels, measure, not_written, prepare_case, probe
from nnunet_mn.bridge.sources import UnlabeledCase
from nnunet_mn.bridge.survey import survey
from nnunet_mn.errors import MNError

MOST_BAD = 20  # bad images before it is taken for a fault of the whole data set


class Preprocessed(NamedTuple):
    """Names of the cases that can be trained on, and of those left out with the reason."""

    names: tuple[str, ...]
    skipped: dict[str, str]


def unlabeled_folder(preprocessed_dataset_folder: Path) -> Path:
    """The folder of the unlabeled cases, beside that of the labeled ones.

    Args:
        preprocessed_dataset_folder: nnUNet_preprocessed/DATASET/<data_identifier>.
    """
    return preprocessed_dataset_folder.with_name(f"{preprocessed_dataset_folder.name}_unlabeled")


def preprocess_unlabeled(
    cases: Sequence[UnlabeledCase],
    *,
    folder: Path,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict[str, Any],
    num_processes: int,
    num_parts: int = 1,
    part_id: int = 0,
    skip_bad: bool = False,
    log: Callable[[str], None] = print,
) -> Preprocessed:
    """Preprocess the cases that are missing, or whose images or plans changed; of two at once, one waits.

    Args:
        cases: from `cases.find_unlabeled`.
        folder: from `unlabeled_folder`.
        plans_manager, configuration_manager, dataset_json: nnU-Net's.
        num_processes: 1 means this process.
        num_parts, part_id: take every n-th case only, from this one on.
        skip_bad: leave bad images out, now and later, instead of raising.
        log: takes lines for the user.

    Raises:
        MNError: for bad images, once all others are done; when raw data are missing; when writing fails.
    """
    if num_processes < 1 or not 0 <= part_id < num_parts:
        raise MNError(
            f"{num_processes} processes for part {part_id} of {num_parts} cannot be: take at least 1 process, and a "
            f"part from 0 to one less than their number"
        )
    mine = sorted(cases, key=lambda case: case.name)[part_id::num_parts]
    settings = settings_hash(plans_manager.plans, configuration_manager.configuration, dataset_json)
    found = survey(mine, folder, settings)
    if found.to_do or (found.renewed and os.access(folder.parent, os.W_OK)):
        part = Part(folder, part_id, num_parts)
        try:
            folder.mkdir(exist_ok=True)
            with staging_folder(part, log) as staging:
                again = survey(found.to_do, folder, settings)  # another process may have done it meanwhile
                job = Job(folder, staging, plans_manager.plans, configuration_manager, dataset_json, settings)
                manifest = part.file(".jsonl")
                for record in found.renewed + again.renewed:
                    append(manifest, record)
                bad = _run(job, again.to_do, num_processes, manifest, skip_bad=skip_bad)
        except OSError as error:
            raise not_written(folder, error) from error
        found.skipped |= again.skipped | bad
    for name, reason in found.skipped.items():
        log(f"WARNING: the unlabeled case '{name}' is left out: {reason}")
    return Preprocessed(tuple(c.name for c in mine if c.name not in found.skipped), found.skipped)


def _run(job: Job, cases: Sequence[UnlabeledCase], processes: int, manifest: Path, *, skip_bad: bool) -> dict[str, str]:
    """Preprocess the cases and record each; bad ones are returned with the reason, or raised at the end."""
    bad: dict[str, str] = {}
    if not cases:
        return bad
    results = map_in_processes(functools.partial(prepare_case, job), cases, processes=min(processes, len(cases)))
    with contextlib.closing(results), tqdm(total=len(cases), desc="Preprocessing unlabeled cases") as bar:
        for record in results:
            bar.update()
            if record.skipped is None:
                append(manifest, record)
                continue
            bad[record.name] = record.skipped
            if skip_bad:
                (job.folder / f"{record.name}.b2nd").unlink(missing_ok=True)  # of an image that was good once
                append(manifest, record)
            elif len(bad) == MOST_BAD:
                break
    if bad and not skip_bad:
        raise MNError(
            f"{len(bad)} unlabeled case(s) cannot be used, the others are kept: {'; '.join(bad.values())}; or leave "
            f"them out with `nnunet-mn preprocess --skip-bad`"
        )
    return bad


def refuse_copies_of_val(
    folder: Path, val_folder: Path, val: Sequence[str], *, unlabeled: Collection[str] | None = None
) -> None:
    """Make sure that no unlabeled case is a validation case under another name.

    Args:
        folder: of the preprocessed unlabeled cases.
        val_folder: of the preprocessed labeled cases.
        val: names of the validation cases.
        unlabeled: names of the cases in use; None means all in the folder that are not called like a validation case.

    Raises:
        MNError: naming the cases whose preprocessed voxels are equal, or one that cannot be read.
    """
    names = complete_cases(folder) - set(val) if unlabeled is None else unlabeled
    if not val or not names:
        return
    known = _by_look(folder, names)
    shapes = {shape for shape, _ in known}
    dataset = infer_dataset_class(str(val_folder))(str(val_folder), list(val))
    copies: list[str] = []
    for name in val:
        try:
            volume = dataset.load_case(name)[0]  # (C, Z, Y, X)
            shape = tuple(volume.shape)
            equal_look = known.get((shape, probe(volume)), {}) if shape in shapes else {}
            equal = equal_look.get(hash_voxels(volume[:]), []) if equal_look else []
        except (OSError, RuntimeError, ValueError) as error:
            raise MNError(
                f"the preprocessed case '{name}' in {val_folder} cannot be read ({error}); run nnUNetv2_preprocess "
                f"again"
            ) from error
        copies += [f"'{other}' (of '{name}')" for other in equal]
    if copies:
        raise MNError(f"unlabeled cases are copies of validation cases: {name_some(copies)}; remove them")


def _by_look(folder: Path, names: Collection[str]) -> dict[tuple[tuple[int, ...], str], dict[str, list[str]]]:
    """Names of unlabeled cases by what is cheap to know of their voxels (shape, middle slice), then by hash of all."""
    manifest = Manifest.read(folder)
    known: dict[tuple[tuple[int, ...], str], dict[str, list[str]]] = {}
    for name in names:
        record = manifest.get(name)
        recorded = record.voxels if record is not None else None
        try:
            voxels = recorded or measure(folder / f"{name}.b2nd")
        except (OSError, RuntimeError, ValueError) as error:
            raise MNError(
                f"the preprocessed case '{name}' in {folder} cannot be read ({error}); delete its file {name}.b2nd and "
                f"run `nnunet-mn preprocess` for this data set"
            ) from error
        known.setdefault((voxels.shape, voxels.probe), {}).setdefault(voxels.sha256, []).append(name)
    return known
