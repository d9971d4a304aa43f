"""One run from its training to its record."""

import datetime
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evidence import records
from evidence.ensemble import ensemble
from evidence.runs import Run
from evidence.self_training import pseudo_labeled
from evidence.training import train, train_networks_before, validate_joint
from evidence.workspace import Scale, Workspace, scale_key
from filelock import FileLock, Timeout

from nnunet_mn.bridge.model_folders import FINAL
from nnunet_mn.bridge.reading import read
from nnunet_mn.bridge.versions import package_versions
from nnunet_mn.errors import MNError


def execute(run: Run, space: Workspace, on_epoch: Callable[[int], None], until: float = math.inf) -> records.Record:
    """Train and evaluate; an interrupted training goes on.

    Args:
        until: the time (`time.monotonic`) after which no epoch may begin. A validation that has begun is finished.

    Raises:
        OutOfTimeError: when that time has come.
        MNError: when a command fails, with its log, or another command works on the same run.
    """
    try:
        with FileLock(space.log(run.name).with_suffix(".lock"), timeout=0):
            return _execute(run, space, on_epoch, until)
    except Timeout:
        raise MNError(
            f"another command works on {run.name} in {space.folder}: wait for it, or give --work another folder"
        ) from None


def _execute(run: Run, space: Workspace, on_epoch: Callable[[int], None], until: float) -> records.Record:
    where = pseudo_labeled(run, space, until) if run.method.teaches_itself else space
    train_networks_before(run, space, on_epoch, until)
    start = time.monotonic()
    if run.method.ensemble_of:
        folder = ensemble(run, space)
    elif run.method.joins is not None:
        folder = validate_joint(run, space)
    else:
        folder = train(run, where, on_epoch, until)
    seconds = time.monotonic() - start
    scores = records.score(folder / "validation" / "summary.json", space.dataset / "labelsTr")
    return records.Record(
        dataset=space.dataset.name,
        method=run.method.name,
        fold=run.fold,
        seed=run.seed,
        n_labeled=len(space.split(run.fold)["train"]),
        scale=scale_key(space.scale),
        updates=space.scale.updates,
        seconds=round(seconds, 1),
        config=run.settings(space.scale) if run.method.ensemble_of else _config(folder / FINAL, run, space.scale),
        versions=package_versions(),
        date=datetime.date.today().isoformat(),
        dice=scores.dice,
        hd95=scores.hd95,
        volume=scores.volume,
    )


def _config(checkpoint: Path, run: Run, scale: Scale) -> dict[str, Any]:
    """M&N's resolved settings from the checkpoint; for other trainers the given ones."""
    stored = read(checkpoint).get("mn")
    if stored is None:
        return run.settings(scale)
    return {name: value for name, value in stored["config"].items() if name != "teacher_folder"}  # of this machine
