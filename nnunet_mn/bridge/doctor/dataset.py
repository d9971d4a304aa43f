"""The doctor's checks of a dataset: plans, splits, cases, leaks, preprocessed files."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_mn.bridge.cases.dataset import CaseFolders, find_dataset
from nnunet_mn.bridge.cases.draw_splits import USUAL_FOLDS
from nnunet_mn.bridge.cases.planned import PlannedDataset, load_planned
from nnunet_mn.bridge.cases.preprocessed import complete_cases, dataset_class_of
from nnunet_mn.bridge.cases.raw_images import RawImages
from nnunet_mn.bridge.cases.roles import (
    FEWEST_FOR_STOCK_SPLIT,
    Roles,
    listed_split,
    roles_in_training,
    roles_of_all_folds,
)
from nnunet_mn.bridge.cases.sources import USUAL, UnlabeledCase, filled_folders
from nnunet_mn.bridge.cases.splits import Split, read_splits
from nnunet_mn.bridge.cases.unlabeled import find_unlabeled, find_unlabeled_of_all_folds
from nnunet_mn.bridge.doctor.environment import check_results, check_rights, check_weights
from nnunet_mn.bridge.doctor.page import Row, examine
from nnunet_mn.bridge.planning.checks import check_co_trainable
from nnunet_mn.bridge.planning.cost_model import cost_of_planned
from nnunet_mn.bridge.preprocessing.run import check_any_is_left, check_sound_and_no_copies, settings_of
from nnunet_mn.bridge.preprocessing.to_do import Survey, survey
from nnunet_mn.bridge.words import fault_of_path, name_some
from nnunet_mn.errors import MNError
from nnunet_mn.memory import GIB

MEASURED_BATCH = 4  # samples (docs/evidence.md)
TIGHT = 0.85  # share of the card; the estimate may be a tenth too low, and other processes take memory too

Look = Callable[[tuple[UnlabeledCase, ...]], Survey]


def check_dataset(number_or_name: str, *, plans: str, configuration: str) -> Iterator[Row]:
    """Rows about one dataset and one configuration of its plans."""
    try:
        folders = find_dataset(number_or_name)
    except MNError as error:
        yield Row("bad", "dataset", str(error))
        return
    try:
        planned = load_planned(folders, plans=plans, configuration=configuration)
        splits, warnings = read_splits(folders.preprocessed, folders.raw)
    except MNError as error:
        yield Row("bad", "dataset", str(error))
        yield from examine("labels", functools.partial(check_labels, folders.raw))
        return
    of_plans = examine("plans", functools.partial(check_plans, planned))
    yield from of_plans
    if all(row.state != "bad" for row in of_plans):
        yield from examine("GPU memory", functools.partial(check_memory, planned))
    yield from examine("2D weights", lambda: check_weights(planned.config()))
    yield from (_note("splits", warning) for warning in warnings)
    yield from examine("nnUNet_results", functools.partial(check_results, folders.name))
    folds: Sequence[int] = range(USUAL_FOLDS if splits is None else len(splits))
    if splits is None and len(complete_cases(planned.cases.labeled)) < FEWEST_FOR_STOCK_SPLIT:
        folds = (0,)  # each would have all cases
    elif splits is None:
        yield _note("splits", "there is no splits_final.json; nnU-Net will draw five folds of all cases with labels")
        yield from examine("splits", functools.partial(check_rights, "splits", folders.preprocessed))
    look = _looking_once(planned)
    for fold in folds:
        yield from examine(f"fold {fold}", functools.partial(check_fold, planned, splits, fold, look))
    yield from examine("unlabeled", functools.partial(check_unlabeled, planned, look))


def _looking_once(planned: PlannedDataset) -> Look:
    """A survey that looks at the same cases only once. Folds mostly share them, and new files may have to be read."""
    return functools.cache(lambda cases: survey(cases, planned.cases.unlabeled, settings_of(planned)))


def check_labels(folder: Path | None) -> list[Row]:
    """Whether nnU-Net can preprocess a raw dataset, if it is here: every case in imagesTr needs a label for that."""
    without = RawImages.read(folder).without_label if folder is not None else []
    if not without:
        return []
    finding = f"{len(without)} cases in imagesTr have no label ({name_some(without)}); move their images to imagesUn"
    return [Row("bad", "labels", f"{finding}: nnU-Net's preprocessing needs a label for each")]


def _note(topic: str, text: str) -> Row:
    return Row("note", topic, text.removeprefix("WARNING: "))


def check_plans(planned: PlannedDataset) -> list[Row]:
    """Whether M&N can train this configuration."""
    manager, name = planned.configuration_manager, planned.configuration
    check_co_trainable(manager, name, planned.config())
    patch = "x".join(str(n) for n in manager.patch_size)
    row = Row("good", "plans", f"{planned.plans_manager.plans_name}, {name}: patch {patch}, batch {manager.batch_size}")
    if manager.batch_size >= MEASURED_BATCH:
        return [row]
    text = f"M&N's gain was measured with batches of {MEASURED_BATCH}; MNPlanner plans such a batch where it fits"
    return [row, _note("plans", text)]


def check_memory(planned: PlannedDataset) -> list[Row]:
    """Whether both networks fit the first GPU. Without a GPU the row names their memory."""
    try:
        cost, warnings = cost_of_planned(planned)
    except MNError:
        raise
    except Exception as error:  # an architecture from elsewhere than nnU-Net may raise anything
        architecture = planned.configuration_manager.configuration.get("architecture", {}).get("network_class_name")
        return [_note("GPU memory", f"of {architecture} it cannot be estimated ({type(error).__name__}: {error})")]
    total = torch.cuda.mem_get_info(0)[1] / GIB if torch.cuda.is_available() else None
    return [judge(cost.peak_gib, total=total), *(_note("GPU memory", warning) for warning in warnings)]


def judge(needed: float, *, total: float | None) -> Row:
    """The row for networks of `needed` GiB, on a card of `total` GiB or without one."""
    text = f"both networks take about {needed:.1f} GiB in training"
    if total is None:
        return Row("good", "GPU memory", text)
    text += f", of the {total:.1f} GiB of GPU 0"
    remedy = "lower nnUNet_mn_slices_per_forward, or plan again with MNPlanner and a smaller -gpu_memory_target"
    if needed > total:
        return Row("bad", "GPU memory", f"{text}; {remedy}")
    if needed > TIGHT * total:
        return Row("note", "GPU memory", f"{text}: that is tight; if it fails, {remedy}")
    return Row("good", "GPU memory", text)


def check_fold(planned: PlannedDataset, splits: list[Split] | None, fold: int, look: Look) -> list[Row]:
    """Count the cases of a fold, and refuse missing ones and copies of validation cases."""
    topic, cases = f"fold {fold}", planned.cases
    here = sorted(dataset_class_of(cases.labeled).get_identifiers(str(cases.labeled)))  # as the trainer
    roles = roles_in_training(
        splits, fold, here, lambda: listed_split(_drawn(here) if splits is None else splits, fold, here)
    )
    if missing := sorted({*roles.labeled, *roles.val} - complete_cases(cases.labeled)):
        raise MNError(
            f"{len(missing)} of the split's cases ({name_some(missing)}) are not preprocessed in {cases.labeled}; put "
            f"their images into imagesTr and their labels into labelsTr, and run nnUNetv2_preprocess, or correct the "
            f"split"
        )
    counts = f"{len(roles.labeled)} labeled, {len(roles.val)} val"
    if _is_supervised(cases, roles, roles_of_all_folds(splits)):
        return [_note(topic, f"{counts}, no unlabeled: for nnUNetTrainer or nnUNetTrainerMNLabeledOnly")]
    found = find_unlabeled(cases, roles, planned.config().unlabeled_sources)
    state = look(found.cases)
    names = {case.name for case in found.cases} - state.skipped.keys()
    check_any_is_left(names)
    done = (names - {case.name for case in state.to_do}) & complete_cases(cases.unlabeled)
    alike = check_sound_and_no_copies(planned, roles, done)
    notes = [_note(topic, text) for text in (*roles.warnings, *found.warnings, *alike)]
    return [Row("good", topic, f"{counts}, {len(names)} unlabeled"), *notes]


def _drawn(cases: list[str]) -> list[Split]:
    """The split that nnU-Net's `do_split` will draw and write."""
    splits: list[Split] = generate_crossval_split(cases, seed=12345, n_splits=USUAL_FOLDS)
    return splits


def _is_supervised(cases: CaseFolders, of_fold: Roles, of_all: Roles) -> bool:
    """Whether a fold has no unlabeled case, but another fold has: it is for a fully supervised comparison."""
    elsewhere = bool(filled_folders(cases.raw, USUAL)) if cases.raw is not None else cases.unlabeled.is_dir()
    return bool(of_all.unlabeled) and not of_fold.unlabeled and not elsewhere


def check_unlabeled(planned: PlannedDataset, look: Look) -> list[Row]:
    """How many of the unlabeled cases of all folds are preprocessed, and whether an image cannot be opened."""
    found = find_unlabeled_of_all_folds(planned.cases, planned.config().unlabeled_sources)
    state = look(found.cases)
    images = [image for case in state.to_do for image in case.images]
    if faults := [fault for fault in map(fault_of_path, images) if fault is not None]:
        raise MNError(f"{name_some(faults)}; or leave them out with `nnunet-mn preprocess --skip-bad`")
    notes = [_note("unlabeled", f"left out by --skip-bad: {name_some(sorted(state.skipped))}")] if state.skipped else []
    if not state.to_do:
        n = len(found.cases) - len(state.skipped)
        return [Row("good", "unlabeled", f"{n} cases of all folds are preprocessed"), *notes]
    plans = planned.plans_manager.plans_name
    command = f"nnunet-mn preprocess -d {planned.folders.name} -c {planned.configuration} -p {plans}"
    text = (
        f"training will preprocess {len(state.to_do)} cases at its start, unless you run '{command}'. They are new or "
        f"changed. Preprocessing will show whether they can be read. Then the doctor and the training look for copies "
        f"of validation cases"
    )
    return [_note("unlabeled", text), *notes, *check_rights("unlabeled", planned.folders.preprocessed)]
