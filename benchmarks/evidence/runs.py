"""One run of one method: its name, its settings, and where its model lies."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.methods import METHODS, Method
from evidence.workspace import CONFIGURATION_2D, PLANS, PLANS_2D, Scale, Workspace, scale_key

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.config import Layer, MNConfig, resolve
from nnunet_mn.errors import MNError

VAL_UPDATES_PER_EPOCH = 1  # for the log alone: the final checkpoint counts
BACKBONE = "efficientnet-lite0"


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

    def epochs(self, scale: Scale) -> int:
        """Epochs of the training."""
        return round(self.method.length * scale.updates / scale.updates_per_epoch)

    def settings(self, scale: Scale) -> dict[str, str]:
        """Fields of MNConfig: of every run, of the scale, and of the method. A later one wins."""
        return {
            "backbone": BACKBONE,
            "seed": str(self.seed),
            "epochs": str(self.epochs(scale)),
            "iterations_per_epoch": str(scale.updates_per_epoch),
            "val_iterations_per_epoch": str(VAL_UPDATES_PER_EPOCH),
            **({"checkpoint_every": "1"} if scale.planned else {}),
            **dict(scale.settings),
            **self.method.settings,
        }

    def resolved(self, scale: Scale) -> MNConfig:
        """The settings, with the defaults of now."""
        return resolve(Layer("the benchmark", self.settings(scale)))

    def other(self, method: str) -> "Run":
        """The run of another method with the same labels and seed."""
        return Run(method=METHODS[method], fold=self.fold, seed=self.seed)

    @property
    def owner(self) -> "Run":
        """The run in whose result folder the model lies: a joint model lies beside the one that was trained."""
        return self if self.method.joins is None else self.other(self.method.joins)

    @property
    def plans(self) -> str:
        """The name of nnU-Net's plans."""
        return PLANS_2D if self.method.configuration == CONFIGURATION_2D else PLANS

    @property
    def arguments(self) -> list[str]:
        """The model, as arguments of `nnUNetv2_predict` and of `nnunet-mn join`."""
        method = self.method
        return ["-c", method.configuration, "-f", str(self.fold), "-tr", str(method.trainer), "-p", self.plans]

    def model(self, space: Workspace) -> Path:
        """nnU-Net's folder of the model."""
        name = f"{self.method.trainer}__{self.plans}__{self.method.configuration}"
        return space.results(self.owner.name) / space.dataset.name / name

    def fold_folder(self, space: Workspace) -> Path:
        """The fold's folder in it."""
        return self.model(space) / f"fold_{self.fold}"

    def teacher(self, space: Workspace) -> Path | None:
        """The folder of the model that teaches this run, or None."""
        taught_by = self.method.taught_by
        return None if taught_by is None else self.other(taught_by).model(space)


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


def _fold_of_all_labels(splits: list[dict[str, Any]]) -> int:
    complete = [fold for fold, split in enumerate(splits) if not split.get("unlabeled")]
    if not complete:
        raise MNError("splits_final.json has no fold without unlabeled cases, which the upper bound needs")
    return max(complete, key=lambda fold: len(splits[fold]["train"]))


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
