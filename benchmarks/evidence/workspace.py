"""The benchmark's folder: one preprocessing for all methods, a result folder for each, small plans."""

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.stock_commands import run_stock
from nnunet_mn.config import ENVIRONMENT_PREFIX, MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.sandbox.small_plans import small_plans

CONFIGURATION = "3d_fullres"
PLANS = "nnUNetBenchmarkPlans"
CONFIGURATION_2D = "2d"
PLANS_2D = f"{PLANS}2d"
TRAINERS = Path(__file__).parent / "trainers"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How small the trainings are: the same for every method.

    Args:
        updates: of the 3D network.
        spacing: mm along each axis; None as planned.
        patch_size, batch_size, features: of the small plans.
        settings: fields of MNConfig for every training, by name; a method's own win over them.
        planned: patch, batch and network are nnU-Net's own, and the sizes above do not count.
    """

    updates: int
    spacing: tuple[float, float, float] | None
    patch_size: tuple[int, int, int]
    batch_size: int
    features: tuple[int, ...]
    settings: tuple[tuple[str, str], ...] = ()
    planned: bool = False

    @property
    def updates_per_epoch(self) -> int:
        """Few: a training stops between two epochs where its time is up."""
        return 100 if self.planned else 50

    @property
    def text(self) -> str:
        """For the table's heading."""
        spacing = "" if self.spacing is None else f"{'x'.join(f'{s:g}' for s in self.spacing)} mm voxels, "
        network = (
            f"patch {'x'.join(map(str, self.patch_size))}, batch {self.batch_size}, "
            f"U-Net of {self.features[0]} to {self.features[-1]} channels"
        )
        settings = "".join(f", {text}" for text in _texts(self.settings))
        return f"{self.updates} updates, {spacing}{'plans as they are' if self.planned else network}{settings}"


@dataclass(frozen=True)
class Workspace:
    """Paths for one dataset and scale, below a folder of the user's choice.

    Args:
        dataset: the raw dataset; only read.
        folder: for all output.
        scale: of all trainings.
        device: nnU-Net's `-device`. On a card nnU-Net decides itself on workers and on compiling.
    """

    dataset: Path
    folder: Path
    scale: Scale
    device: str = "cpu"

    @property
    def dataset_id(self) -> str:
        return str(int(self.dataset.name[len("Dataset") :][:3]))

    def split(self, fold: int) -> dict[str, list[str]]:
        """The names of a fold's cases: `train`, `val` and `unlabeled`."""
        found: dict[str, list[str]] = json.loads((self.dataset / "splits_final.json").read_bytes())[fold]
        return found

    @property
    def description(self) -> dict[str, Any]:
        """The dataset's `dataset.json`."""
        found: dict[str, Any] = json.loads((self.dataset / "dataset.json").read_bytes())
        return found

    def link_images(self, cases: Sequence[str], folder: Path) -> None:
        """Link the images of cases into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        ending = self.description["file_ending"]
        for case in cases:
            for image in (self.dataset / "imagesTr").glob(f"{case}_????{ending}"):
                link(image, folder)

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed" / self.dataset.name

    def results(self, run: str) -> Path:
        """`nnUNet_results` of one run: runs of different settings must not share it."""
        return self.folder / "runs" / trainings_key(self.scale) / run

    def log(self, name: str) -> Path:
        """The file for a command's output."""
        path = self.folder / "logs" / trainings_key(self.scale) / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def environment(self, settings: Mapping[str, str], *, run: str) -> dict[str, str]:
        """Variables of a child: this process's, but for settings of M&N other than those given."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
        # Loading takes a tenth of a step on a CPU; as many processes as jobs, not twice as many.
        on_cpu = {"OMP_WAIT_POLICY": "PASSIVE", "nnUNet_n_proc_DA": "0"} if self.device == "cpu" else {}
        return {
            **on_cpu,
            **kept,
            **{f"{ENVIRONMENT_PREFIX}{field}": value for field, value in settings.items()},
            "nnUNet_raw": str(self.dataset.parent.resolve()),
            "nnUNet_preprocessed": str(self.preprocessed.parent),
            "nnUNet_results": str(self.results(run)),
            "nnUNet_extTrainer": str(TRAINERS),
            **({"nnUNet_def_n_proc": "1", "nnUNet_compile": "f"} if self.device == "cpu" else {}),
        }

    def prepare(self) -> None:
        """Plan and preprocess once, with nnU-Net's commands; the small plans are derived from its own.

        Raises:
            MNError: when the folder holds the preprocessing of another scale, or a command fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "preparing.lock"):  # two commands may begin at once
            self._prepare()

    def _prepare(self) -> None:
        done = self.preprocessed / "benchmark_is_prepared"
        if done.exists():
            if done.read_text() != plans_key(self.scale):
                raise MNError(f"{self.folder} holds a benchmark of another scale; give --work a new folder")
            return
        shutil.rmtree(self.preprocessed, ignore_errors=True)
        plan = ("nnUNetv2_plan_and_preprocess", "-d", self.dataset_id, "-c", CONFIGURATION, "--no_pp")
        run_stock(plan, environment=self._planning_environment(), log=self.log("plan"))
        self._preprocess(CONFIGURATION, PLANS)
        write_whole(done, plans_key(self.scale))

    def prepare_2d(self) -> None:
        """Preprocess once for nnU-Net's 2D configuration. `prepare` comes before.

        Raises:
            MNError: when the command fails.
        """
        done = self.preprocessed / "2d_is_prepared"
        with FileLock(self.preprocessed / "2d.lock"):  # several jobs may want it
            if not done.exists():
                self._preprocess(CONFIGURATION_2D, PLANS_2D)
                done.touch()

    def _preprocess(self, configuration: str, plans: str) -> None:
        """Derive the small plans of a configuration from nnU-Net's own, and preprocess."""
        stock = json.loads((self.preprocessed / "nnUNetPlans.json").read_bytes())
        small = small_plans_of(stock, self.scale, configuration, plans)
        write_whole(self.preprocessed / f"{plans}.json", json.dumps(small, indent=4))
        command = ("nnUNetv2_preprocess", "-d", self.dataset_id, "-c", configuration, "-plans_name", plans, "-np", "2")
        run_stock(command, environment=self._planning_environment(), log=self.log(f"preprocess_{configuration}"))

    def _planning_environment(self) -> dict[str, str]:
        return {**self.environment({}, run="none"), "nnUNet_n_proc_DA": "1"}  # planning crashes with 0


def link(file: Path, folder: Path) -> None:
    """Link a file into a folder."""
    target = folder / file.name
    if not target.exists():
        target.symlink_to(file.resolve())


def scale_key(scale: Scale) -> str:
    """A name for plans and settings: it tells the results of a method apart."""
    return "_".join([plans_key(scale), *_texts(scale.settings)])


def trainings_key(scale: Scale) -> str:
    """A part of a file name: it tells trainings of the same plans apart."""
    return "_".join([f"{scale.updates}_updates", *_texts(scale.settings)])


def _texts(settings: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(settings)]


def plans_key(scale: Scale) -> str:
    """A name for the plans of a scale."""
    spacing = "planned" if scale.spacing is None else "x".join(f"{s:g}" for s in scale.spacing)
    if scale.planned:
        return f"{spacing}_planned"
    numbers: Sequence[Sequence[int]] = (scale.patch_size, (scale.batch_size,), scale.features)
    return "_".join([spacing, *("x".join(map(str, part)) for part in numbers)])


def options(key: str, updates: int) -> str:
    """The command-line options of `accuracy.py run` for a scale: the inverse of `scale_key`."""
    spacing, rest = key.split("_", 1)
    parts = [f"--updates {updates}"]
    if spacing != "planned":
        parts.append(f"--spacing {spacing.replace('x', ' ')}")
    if rest.startswith("planned"):
        parts.append("--planned")
        settings = rest.split("_", 1)[1:]
    else:
        patch_size, batch_size, features, *settings = rest.split("_", 3)
        parts += [f"--patch-size {patch_size.replace('x', ' ')}", f"--batch-size {batch_size}"]
        parts.append(f"--features {features.replace('x', ',')}")
    if settings:
        names = "|".join(field.name for field in fields(MNConfig))
        parts.append("--settings " + re.sub(f"_({names})=", r",\1=", settings[0]))
    return " ".join(parts)


def small_plans_of(stock: dict[str, Any], scale: Scale, configuration: str, name: str) -> dict[str, Any]:
    """The plans of a scale. A batch of the 2D configuration has as many voxels as one of the 3D configuration."""
    chosen = stock["configurations"][configuration]
    n_axes = len(chosen["spacing"])  # 2D: the last two
    if scale.spacing is not None:
        spacing = scale.spacing[-n_axes:]
        ratio = [new / old for new, old in zip(spacing, chosen["spacing"], strict=True)]
        median = chosen["median_image_size_in_voxels"]
        chosen["median_image_size_in_voxels"] = [n / r for n, r in zip(median, ratio, strict=True)]
        chosen["spacing"] = list(spacing)
    chosen["data_identifier"] = f"{name}_{configuration}"
    if scale.planned:
        return {**stock, "plans_name": name}
    slices = math.prod(scale.patch_size[:-n_axes])
    return small_plans(
        stock,
        name=name,
        patch_size=scale.patch_size[-n_axes:],
        batch_size=scale.batch_size * slices,
        features=scale.features,
        configuration=configuration,
    )
