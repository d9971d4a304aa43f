"""Train the networks of a run, and those before them, and predict, with nnU-Net's own commands."""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

from evidence.runs import Run, note_settings
from evidence.workspace import CONFIGURATION_2D, Workspace
from filelock import FileLock

from nnunet_mn.bridge.model_folders import BASELINE_TRAINER, FINAL
from nnunet_mn.bridge.stock_commands import epoch_begun, run_stock
from nnunet_mn.errors import MNError


class OutOfTimeError(MNError):
    """The time for all trainings is over. What has been trained stays, and goes on another time."""


def train(run: Run, space: Workspace, on_epoch: Callable[[int], None], until: float = math.inf) -> Path:
    """Run or resume `nnUNetv2_train` to its end. Returns the fold's result folder.

    Raises:
        OutOfTimeError: when an epoch would begin after `until`.
        MNError: when the command fails.
    """
    folder = run.fold_folder(space)

    def follow(line: str) -> None:
        epoch = epoch_begun(line)
        if epoch is not None:
            on_epoch(epoch)

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "training.lock"):  # self-training may want a model still trained by another job
        note_settings(space.results(run.name), run.resolved(space.scale))
        if not (folder / "validation" / "summary.json").exists():
            if run.method.configuration == CONFIGURATION_2D:
                space.prepare_2d()
            _train(run, space, folder, follow, until)
    return folder


def _train(run: Run, space: Workspace, folder: Path, follow: Callable[[str], None], until: float) -> None:
    command = _training_command(run, space)
    if (folder / "checkpoint_latest.pth").exists() or (folder / FINAL).exists():
        command.append("--c")
    settings = run.settings(space.scale)
    if (teacher := run.teacher(space)) is not None:
        settings["teacher_folder"] = str(teacher)
    environment = space.environment(settings, run=run.name)
    stopped = False

    def follow_until(line: str) -> signal.Signals | None:
        nonlocal stopped
        follow(line)
        if stopped or epoch_begun(line) is None or time.monotonic() < until:
            return None  # at the beginning of an epoch nnU-Net writes no checkpoint: none is cut off
        stopped = True
        return signal.SIGINT if run.method.trainer == BASELINE_TRAINER else signal.SIGTERM  # M&N saves its state

    try:
        run_stock(command, environment=environment, log=space.log(run.name), on_line=follow_until)
    except MNError as error:
        if stopped:
            raise OutOfTimeError(f"{run.name} was stopped in the middle") from error
        raise


def _training_command(run: Run, space: Workspace) -> list[str]:
    command = ["nnUNetv2_train", space.dataset_id, run.method.configuration, str(run.fold)]
    return [*command, "-tr", str(run.method.trainer), "-p", run.plans, "-device", space.device]


def train_networks_before(run: Run, space: Workspace, on_epoch: Callable[[int], None], until: float) -> None:
    """Train the networks that teach this run, or that predict together in it, and those before them.

    Raises:
        OutOfTimeError: when an epoch would begin after `until`.
        MNError: when a command fails.
    """
    method = run.method
    for needed in filter(None, (method.taught_by, method.joins, *method.ensemble_of)):
        other = run.other(needed)
        final = other.fold_folder(space) / FINAL
        if not final.exists():
            train_networks_before(other, space, on_epoch, until)
        if other.method.joins is None:
            train(other, space, on_epoch, until)
        elif not final.exists():
            _join(other, space)


def _join(run: Run, space: Workspace) -> None:
    """Join the networks of the finished run that this one names."""
    command = ["nnunet-mn", "join", "-d", space.dataset_id, *run.owner.arguments, "--force"]
    with FileLock(space.results(run.owner.name) / "joining.lock"):  # another run may be taught by them
        run_stock(command, environment=_joint_environment(run, space), log=space.log(run.name))


def validate_joint(run: Run, space: Workspace) -> Path:
    """Join the networks of a finished run and let nnU-Net validate them. Returns the fold's result folder."""
    _join(run, space)
    command = [*_training_command(run, space), "--val"]
    run_stock(command, environment=_joint_environment(run, space), log=space.log(run.name))
    return run.fold_folder(space)


def _joint_environment(run: Run, space: Workspace) -> dict[str, str]:
    return space.environment(run.settings(space.scale), run=run.owner.name)


def predict(run: Run, space: Workspace, images: Path, output: Path, *options: str) -> None:
    """Let the model of a finished run segment a folder of images, with nnU-Net's command."""
    command = ["nnUNetv2_predict", "-d", space.dataset_id, *run.arguments, "-device", space.device]
    command += ["-npp", "1", "-nps", "1", "-i", str(images), "-o", str(output), "--continue_prediction", *options]
    log = space.log(f"{run.name}_predict_{images.name}")
    run_stock(command, environment=space.environment({}, run=run.owner.name), log=log)
