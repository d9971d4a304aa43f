"""The doctor's checks of a dataset: plans, splits, cases, leaks, what is preprocessed."""

import functools
from collections.abc import Iterator

from nnunet_mn.bridge.cases import Split, find_unlabeled, labeled_split, read_splits
from nnunet_mn.bridge.datasets import find_dataset
from nnunet_mn.bridge.doctor import Row, examine
from nnunet_mn.bridge.doctor_environment import check_weights
from nnunet_mn.bridge.manifest import complete_cases
from nnunet_mn.bridge.planned import PlannedDataset, load_planned
from nnunet_mn.bridge.preprocessing import refuse_copies_of_val
from nnunet_mn.errors import MNError

SMALLEST_BATCH = 2


def check_dataset(number_or_name: str, *, plans: str, configuration: str) -> Iterator[Row]:
    """Rows about one dataset and one configuration of its plans."""
    try:
        folders = find_dataset(number_or_name)
        planned = load_planned(folders, plans=plans, configuration=configuration)
    except MNError as error:
        yield Row("bad", "plans", str(error))
        return
    yield from examine("plans", functools.partial(check_plans, planned))
    yield from examine("2D weights", lambda: check_weights(planned.config()))
    try:
        splits, warnings = read_splits(folders.preprocessed, folders.raw)
    except MNError as error:
        yield Row("bad", "splits", str(error))
        return
    yield from (Row("note", "splits", warning.removeprefix("WARNING: ")) for warning in warnings)
    for fold in range(len(splits)) if splits is not None else ("all",):
        yield from examine(f"fold {fold}", functools.partial(check_fold, planned, splits, fold))


def check_plans(planned: PlannedDataset) -> list[Row]:
    """Whether M&N can train this configuration."""
    manager, name = planned.configuration_manager, planned.configuration
    if len(manager.patch_size) != 3 or manager.previous_stage_name is not None:
        raise MNError(f"configuration '{name}' cannot be co-trained; use 3d_fullres or 3d_lowres")
    if manager.batch_size < SMALLEST_BATCH:
        raise MNError(f"configuration '{name}' has a batch of {manager.batch_size}; set its batch_size to 2 or more")
    patch = "x".join(str(n) for n in manager.patch_size)
    return [
        Row("good", "plans", f"{planned.plans_manager.plans_name}, {name}: patch {patch}, batch {manager.batch_size}")
    ]


def check_fold(planned: PlannedDataset, splits: list[Split] | None, fold: int | str) -> list[Row]:
    """The counts of a fold, and cases that are where they must not be."""
    labeled_here = complete_cases(planned.labeled_folder)
    train, val = _stock_split(sorted(labeled_here), splits, fold)
    train, val, warnings = labeled_split(train, val, splits, fold)
    unlabeled = find_unlabeled(
        raw=planned.folders.raw,
        unlabeled_folder=planned.unlabeled_folder,
        dataset_json=planned.dataset_json,
        splits=splits,
        fold=fold,
        labeled=train,
        val=val,
        sources=planned.config().unlabeled_sources,
    )
    topic = f"fold {fold}"
    names = {case.name for case in unlabeled.cases}
    done = names & complete_cases(planned.unlabeled_folder)
    counts = f"{len(train)} labeled, {len(val)} val, {len(names)} unlabeled ({len(done)} of them preprocessed)"
    rows = [Row("good", topic, counts)]
    rows += [Row("note", topic, text.removeprefix("WARNING: ")) for text in (*warnings, *unlabeled.warnings)]
    if missing := {*train, *val} - labeled_here:
        raise MNError(
            f"{len(missing)} labeled cases ({', '.join(sorted(missing)[:3])}) are not preprocessed in "
            f"{planned.labeled_folder}; run nnUNetv2_preprocess, or correct the split"
        )
    if len(done) < len(names):
        command = f"nnunet-mn preprocess -d {planned.folders.name} -c {planned.configuration}"
        rows.append(Row("note", topic, f"training will preprocess {len(names) - len(done)} cases; or run '{command}'"))
    held_out = [name for name in val if name not in train]
    refuse_copies_of_val(planned.unlabeled_folder, planned.labeled_folder, held_out, unlabeled=done)
    return rows


def _stock_split(cases: list[str], splits: list[Split] | None, fold: int | str) -> tuple[list[str], list[str]]:
    """What nnU-Net would train on and validate on; without a split file it will draw five folds of these cases."""
    if splits is None or isinstance(fold, str):
        return cases, cases
    return splits[fold]["train"], splits[fold]["val"]
