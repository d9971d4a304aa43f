"""One run of one method, through the stock commands: train, validate, evaluate."""

import datetime
import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evidence import records
from evidence.methods import BASELINE, METHODS, Method
from evidence.workspace import CONFIGURATION, PLANS, Scale, Workspace, scale_key, trainings_key
from filelock import FileLock

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.model_folders import CHECKPOINT
from nnunet_mn.bridge.reading import read
from nnunet_mn.bridge.stock_commands import epoch_begun, run_stock
from nnunet_mn.bridge.versions import package_versions
from nnunet_mn.config import Layer, MNConfig, resolve
from nnunet_mn.errors import MNError

VAL_UPDATES_PER_EPOCH = 1  # for the log alone: the final checkpoint counts
BACKBONE = "efficientnet-lite0"
LIKE_STOCK = ("nnUNetTrainerMNLabeledOnly", "nnUNetTrainerCopyPaste")  # a signal ends them; M&N saves its state first


class OutOfTimeError(MNError):
    """The time for all trainings is over. What has been trained stays, and goes on another time."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a method on the labels of a fold, with a seed."""

    method: Method
    fold: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method.name}_fold{self.fold}_seed{self.seed}"

    def key(self, space: Workspace) -> tuple[Any, ...]:
        """As `Record.key`."""
        scale = space.scale
        return space.dataset.name, self.method.name, self.fold, self.seed, scale_key(scale), scale.updates


def plan_runs(methods: list[Method], folds: list[int], seeds: list[int], splits: list[dict[str, Any]]) -> list[Run]:
    """All runs of the comparison; the upper bound has one fold of its own.

    Raises:
        MNError: when a fold does not exist, or none has all labels.
    """
    for fold in folds:
        if not 0 <= fold < len(splits):
            raise MNError(f"fold {fold} is not in splits_final.json, which has 0 to {len(splits) - 1}")
    runs = []
    for method in methods:
        for fold in [_fold_of_all_labels(splits)] if method.all_labels else folds:
            runs += [Run(method=method, fold=fold, seed=seed) for seed in seeds]
    return runs


def execute(run: Run, space: Workspace, on_epoch: Callable[[int], None], until: float = math.inf) -> records.Record:
    """Train and evaluate; an interrupted training goes on.

    Args:
        until: the time (`time.monotonic`) after which no epoch may begin. A validation that has begun is finished.

    Raises:
        OutOfTimeError: when that time has come.
        MNError: when a command fails, with its log.
    """
    where = _pseudo_labeled(run, space, until) if run.method.teaches_itself else space
    train_networks_before(run, space, on_epoch, until)
    start = time.monotonic()
    folder = train(run, where, on_epoch, until) if run.method.joins is None else _validate_joint(run, space)
    seconds = time.monotonic() - start
    scores = records.score(folder / "validation" / "summary.json", space.dataset / "labelsTr")
    splits = json.loads((space.dataset / "splits_final.json").read_bytes())
    return records.Record(
        dataset=space.dataset.name,
        method=run.method.name,
        fold=run.fold,
        seed=run.seed,
        n_labeled=len(splits[run.fold]["train"]),
        scale=scale_key(space.scale),
        updates=space.scale.updates,
        seconds=round(seconds, 1),
        config=_config(folder / CHECKPOINT, run, space.scale),
        versions=package_versions(),
        date=datetime.date.today().isoformat(),
        dice=scores.dice,
        hd95=scores.hd95,
        volume=scores.volume,
    )


def train(run: Run, space: Workspace, on_epoch: Callable[[int], None], until: float = math.inf) -> Path:
    """Run or resume `nnUNetv2_train` to its end. Returns the fold's result folder.

    Raises:
        OutOfTimeError: when an epoch would begin after `until`.
        MNError: when the command fails.
    """
    folder = _model(run, space) / f"fold_{run.fold}"

    def follow(line: str) -> None:
        epoch = epoch_begun(line)
        if epoch is not None:
            on_epoch(epoch)

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "training.lock"):  # self-training may want a model still trained by another job
        note_settings(space.results(run.name), _resolved(run, space.scale))
        if not (folder / "validation" / "summary.json").exists():
            _train(run, space, folder, follow, until)
    return folder


def _other(run: Run, method: str) -> Run:
    """The run of another method with the same labels and seed."""
    return Run(method=METHODS[method], fold=run.fold, seed=run.seed)


def _owner(run: Run) -> Run:
    """The run in whose result folder the model lies: a joint model lies beside the one that was trained."""
    return run if run.method.joins is None else _other(run, run.method.joins)


def teacher_folder(run: Run, space: Workspace) -> Path | None:
    """The folder of the model that teaches this run, or None."""
    taught_by = run.method.taught_by
    return None if taught_by is None else _model(_other(run, taught_by), space)


def _model(run: Run, space: Workspace) -> Path:
    """nnU-Net's folder of a model."""
    return space.results(_owner(run).name) / space.dataset.name / f"{run.method.trainer}__{PLANS}__{CONFIGURATION}"


def train_networks_before(run: Run, space: Workspace, on_epoch: Callable[[int], None], until: float) -> None:
    """Train the networks that teach this run, or that it joins, and those before them.

    Raises:
        OutOfTimeError: when an epoch would begin after `until`.
        MNError: when a command fails.
    """
    if (needed := run.method.taught_by or run.method.joins) is None:
        return
    other = _other(run, needed)
    final = _model(other, space) / f"fold_{run.fold}" / CHECKPOINT
    if not final.exists():
        train_networks_before(other, space, on_epoch, until)
    if other.method.joins is None:
        train(other, space, on_epoch, until)
    elif not final.exists():
        _join(other, space)


def _join(run: Run, space: Workspace) -> None:
    """Join the networks of the finished run that this one names."""
    command = ["nnunet-mn", "join", "-d", space.dataset_id, "-c", CONFIGURATION, "-f", str(run.fold), "-p", PLANS]
    command += ["-tr", str(METHODS[str(run.method.joins)].trainer), "--force"]
    run_stock(command, environment=_joint_environment(run, space), log=space.log(run.name))


def _validate_joint(run: Run, space: Workspace) -> Path:
    """Join the networks of a finished run and let nnU-Net validate them. Returns the fold's result folder."""
    _join(run, space)
    command = ["nnUNetv2_train", space.dataset_id, CONFIGURATION, str(run.fold), "-tr", str(run.method.trainer)]
    command += ["-p", PLANS, "-device", space.device, "--val"]
    run_stock(command, environment=_joint_environment(run, space), log=space.log(run.name))
    return _model(run, space) / f"fold_{run.fold}"


def _joint_environment(run: Run, space: Workspace) -> dict[str, str]:
    return space.environment(_settings(run, space.scale), run=_owner(run).name)


def note_settings(folder: Path, config: MNConfig) -> None:
    """Note the settings of a run. Defaults may have changed since an earlier part of it.

    Raises:
        MNError: when the folder holds a training with others.
    """
    noted, now = folder / "settings.json", config.to_dict()
    if not noted.exists():
        if any(folder.rglob("checkpoint_*.pth")):
            raise MNError(f"{folder} holds a training of unknown settings: delete it")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(noted, json.dumps(now, indent=2))
        return
    then = {**MNConfig().to_dict(), **json.loads(noted.read_bytes())}  # a newer setting was off then
    changed = [f"{name} {then.get(name)!r} (now {now.get(name)!r})"
               for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]  # fmt: skip
    if changed:
        raise MNError(f"{folder} holds a training with other settings, {', '.join(changed)}: delete it")


def _train(run: Run, space: Workspace, folder: Path, follow: Callable[[str], None], until: float) -> None:
    command = ["nnUNetv2_train", space.dataset_id, CONFIGURATION, str(run.fold), "-tr", run.method.trainer]
    command += ["-p", PLANS, "-device", space.device]
    if (folder / "checkpoint_latest.pth").exists() or (folder / CHECKPOINT).exists():
        command.append("--c")
    settings = _settings(run, space.scale)
    if (teacher := teacher_folder(run, space)) is not None:
        settings["teacher_folder"] = str(teacher)
    environment = space.environment(settings, run=run.name)
    stopped = False

    def follow_until(line: str) -> signal.Signals | None:
        nonlocal stopped
        follow(line)
        if stopped or epoch_begun(line) is None or time.monotonic() < until:
            return None  # at the beginning of an epoch nnU-Net writes no checkpoint: none is cut off
        stopped = True
        return signal.SIGINT if run.method.trainer in LIKE_STOCK else signal.SIGTERM

    try:
        run_stock(command, environment=environment, log=space.log(run.name), on_line=follow_until)
    except MNError as error:
        if stopped:
            raise OutOfTimeError(f"{run.name} was stopped in the middle") from error
        raise


def epochs(run: Run, scale: Scale) -> int:
    """Epochs of a run."""
    return round(run.method.length * scale.updates / scale.updates_per_epoch)


def _settings(run: Run, scale: Scale) -> dict[str, str]:
    return {
        "backbone": BACKBONE,
        "seed": str(run.seed),
        "epochs": str(epochs(run, scale)),
        "iterations_per_epoch": str(scale.updates_per_epoch),
        "val_iterations_per_epoch": str(VAL_UPDATES_PER_EPOCH),
        **({"checkpoint_every": "1"} if scale.planned else {}),
        **dict(scale.settings),
        **run.method.settings,
    }


def _resolved(run: Run, scale: Scale) -> MNConfig:
    """With the defaults of now."""
    return resolve(Layer("the benchmark", _settings(run, scale)))


def _config(checkpoint: Path, run: Run, scale: Scale) -> dict[str, Any]:
    """M&N's resolved settings from the checkpoint; for other trainers the given ones."""
    stored = read(checkpoint).get("mn")
    if stored is None:
        return _settings(run, scale)
    return {name: value for name, value in stored["config"].items() if name != "teacher_folder"}  # of this machine


def _fold_of_all_labels(splits: list[dict[str, Any]]) -> int:
    complete = [fold for fold, split in enumerate(splits) if not split.get("unlabeled")]
    if not complete:
        raise MNError("splits_final.json has no fold without unlabeled cases, which the upper bound needs")
    return max(complete, key=lambda fold: len(splits[fold]["train"]))


def _pseudo_labeled(run: Run, space: Workspace, until: float) -> Workspace:
    """A copy of the dataset with the labeled-only model's predictions as the unlabeled cases' labels."""
    folder = space.folder / "self_training" / trainings_key(space.scale) / f"fold{run.fold}_seed{run.seed}"
    dataset = folder / "nnUNet_raw" / space.dataset.name
    teacher = Run(method=METHODS[_teacher(run.method)], fold=run.fold, seed=run.seed)
    note_settings(folder, _resolved(teacher, space.scale))  # its masks stay when its training is deleted
    train(teacher, space, lambda epoch: None, until)
    split = json.loads((space.dataset / "splits_final.json").read_bytes())[run.fold]
    description = json.loads((space.dataset / "dataset.json").read_bytes())
    ending = description["file_ending"]
    for part in ("imagesTr", "labelsTr", "unlabeled"):
        (folder / part if part == "unlabeled" else dataset / part).mkdir(parents=True, exist_ok=True)
    for case in split["train"] + split["val"] + split["unlabeled"]:
        for image in (space.dataset / "imagesTr").glob(f"{case}_????{ending}"):
            _link(image, dataset / "imagesTr")
            if case in split["unlabeled"]:
                _link(image, folder / "unlabeled")
    for case in split["train"] + split["val"]:
        _link(space.dataset / "labelsTr" / f"{case}{ending}", dataset / "labelsTr")
    predict = ["nnUNetv2_predict", "-d", space.dataset_id, "-c", CONFIGURATION, "-f", str(run.fold)]
    predict += ["-tr", teacher.method.trainer, "-p", PLANS, "-device", space.device, "-npp", "1", "-nps", "1"]
    predict += ["-i", str(folder / "unlabeled"), "-o", str(dataset / "labelsTr"), "--continue_prediction"]
    run_stock(predict, environment=space.environment({}, run=teacher.name), log=space.log(f"{run.name}_predict"))
    _remove_extras(dataset / "labelsTr", ending)
    both = {"train": sorted(split["train"] + split["unlabeled"]), "val": split["val"]}
    splits = [both] * (run.fold + 1)  # nnU-Net is asked for the same fold
    write_whole(dataset / "splits_final.json", json.dumps(splits))
    total = sum(map(len, both.values()))
    write_whole(dataset / "dataset.json", json.dumps({**description, "numTraining": total}))
    copied = replace(space, dataset=dataset, folder=folder)
    copied.prepare()
    return copied


def _teacher(method: Method) -> str:
    """The labeled-only method with the same settings."""
    for other in METHODS.values():
        same = (other.trainer, other.settings) == (method.trainer, method.settings)
        if same and not (other.all_labels or other.teaches_itself):
            return other.name
    return BASELINE


def _link(file: Path, folder: Path) -> None:
    link = folder / file.name
    if not link.exists():
        link.symlink_to(file.resolve())


def _remove_extras(labels: Path, ending: str) -> None:
    """Remove everything but segmentations from a folder of nnU-Net's predictions."""
    for file in labels.iterdir():
        if not file.name.endswith(ending):
            file.unlink()
