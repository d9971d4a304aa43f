"""Generated datasets and the stock commands that run on them, for benchmarks/surface.py."""

import json
import multiprocessing
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import SimpleITK
import tifffile

from nnunet_mn.errors import MNError

TRAINER = "nnUNetTrainerMN_1epoch"
Shape = tuple[int, int, int]
CLASSES = {"background": 0, "front": 1, "back": 2}
OWN_NETWORK = '''
from torch import nn


class Decoder(nn.Module):
    def __init__(self, features, num_classes, deep_supervision):
        super().__init__()
        self.deep_supervision = deep_supervision
        self.head = nn.Conv3d(features, num_classes, 1)

    def forward(self, x):
        return [self.head(x)] if self.deep_supervision else self.head(x)


class OwnNetwork(nn.Module):
    """Three convolutions; nnU-Net's trainer switches `decoder.deep_supervision`."""

    def __init__(self, input_channels, num_classes, features, strides, deep_supervision=False):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(input_channels, features, 3, padding=1), nn.InstanceNorm3d(features), nn.ReLU()
        )
        self.decoder = Decoder(features, num_classes, deep_supervision)

    def forward(self, x):
        return self.decoder(self.stem(x))

    def compute_conv_feature_map_size(self, input_size):
        return 1
'''


def _folder(variable: str) -> Path:
    return Path(os.environ[variable])


@dataclass
class Dataset:
    """A generated dataset in folders of its own, and the commands run on it."""

    root: Path
    number: int
    ending: str = ".nii.gz"
    channels: tuple[str, ...] = ("MR",)
    labels: dict[str, Any] = field(default_factory=lambda: dict(CLASSES))
    regions_order: list[int] | None = None
    n_classes: int = 2
    shape: Shape = (24, 32, 28)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    n_labeled: int = 4
    n_val: int = 2
    plans: str = "nnUNetPlans"
    splits: list[dict[str, list[str]]] | None = None
    dataset_key: bool = False
    commands: int = 0

    @property
    def name(self) -> str:
        return f"Dataset{self.number}_Surface"

    @property
    def raw(self) -> Path:
        return _folder("nnUNet_raw") / self.name

    @property
    def preprocessed(self) -> Path:
        return _folder("nnUNet_preprocessed") / self.name

    def model(self, configuration: str = "3d_fullres", trainer: str = TRAINER) -> Path:
        return _folder("nnUNet_results") / self.name / f"{trainer}__{self.plans}__{configuration}"

    def run(self, *command: str, **environment: str) -> str:
        """Run one of nnU-Net's commands; its output."""
        self.commands += 1
        log = self.root / f"{self.commands:02d}_{command[0]}.txt"
        variables = {"nnUNet_n_proc_DA": "0" if command[0] == "nnUNetv2_train" else "1", **environment}
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file), changed_environment(variables):
            try:
                call(command)
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                print(error)
                raise MNError(f"{command[0]} failed: {error}") from error
        return log.read_text()

    def write(self) -> "Dataset":
        """Write labeled, validation, unlabeled and test cases."""
        for folder in (self.raw, self.preprocessed, self.model().parent):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("imagesTr", "labelsTr", "imagesUn", "imagesTs"):
            (self.raw / name).mkdir(parents=True)
        self.root.mkdir(parents=True, exist_ok=True)
        training = [f"case_{i}" for i in range(self.n_labeled + self.n_val)]
        for seed, case in enumerate([*training, "un_0", "un_1", "un_2", "test_0"]):
            folder = "imagesTr" if case in training else "imagesUn" if case.startswith("un") else "imagesTs"
            self._write_case(case, folder, seed)
        content: dict[str, Any] = {
            "channel_names": {str(i): name for i, name in enumerate(self.channels)},
            "labels": self.labels,
            "numTraining": len(training),
            "file_ending": self.ending,
        }
        if self.regions_order is not None:
            content["regions_class_order"] = self.regions_order
        if self.dataset_key:
            content["dataset"] = self._moved_away(training)
        (self.raw / "dataset.json").write_text(json.dumps(content))
        if self.splits is not None:
            (self.raw / "splits_final.json").write_text(json.dumps(self.splits))
        elif self.n_val:
            split = {"train": training[: self.n_labeled], "val": training[self.n_labeled :]}
            (self.raw / "splits_final.json").write_text(json.dumps([split]))
        return self

    def _moved_away(self, training: Sequence[str]) -> dict[str, Any]:
        """Put the training cases into a folder with another name, known by the key `dataset` alone."""
        (self.raw / "imagesTr").rename(self.raw / "elsewhere")
        return {
            case: {
                "images": [f"elsewhere/{case}_{c:04d}{self.ending}" for c in range(len(self.channels))],
                "label": f"labelsTr/{case}{self.ending}",
            }
            for case in training
        }

    def _write_case(self, case: str, folder: str, seed: int) -> None:
        rng = np.random.default_rng([self.number, seed])
        mask = np.zeros(self.shape, np.uint8)
        z, y, x = (np.array(self.shape) * rng.uniform(0.15, 0.25, 3)).astype(int)
        organ = mask[z : self.shape[0] - z, y : self.shape[1] - y, x : self.shape[2] - x]
        organ[:] = 1 + (np.arange(organ.shape[2]) * self.n_classes // organ.shape[2])
        if "ignore" in self.labels:
            mask[: self.shape[0] // 4] = self.labels["ignore"]
        for channel in range(len(self.channels)):
            image = 100.0 * (channel + 1) + 30 * mask + rng.normal(0, 10, self.shape)
            self._write_array(image.astype(np.float32), self.raw / folder / f"{case}_{channel:04d}{self.ending}")
        if folder == "imagesTr":
            self._write_array(mask, self.raw / "labelsTr" / f"{case}{self.ending}")

    def _write_array(self, array: np.ndarray, path: Path) -> None:
        if self.ending == ".tif":
            tifffile.imwrite(path, array, photometric="minisblack")
            stem = path.name.removesuffix(".tif")
            stem = stem if path.parent.name == "labelsTr" else stem[:-5]
            (path.parent / f"{stem}.json").write_text(json.dumps({"spacing": self.spacing}))
            return
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing(self.spacing[::-1])
        SimpleITK.WriteImage(image, str(path))

    def plan(self, *options: str, configurations: Sequence[str] = ("3d_fullres",), small: bool = True) -> None:
        """Plan, make the networks small, and preprocess."""
        common = ("-d", str(self.number), "-npfp", "1", "--no_pp")
        self.run("nnUNetv2_plan_and_preprocess", *common, *options)
        file = self.preprocessed / f"{self.plans}.json"
        plans = json.loads(file.read_text())
        for planned in plans["configurations"].values():
            kwargs = planned.get("architecture", {}).get("arch_kwargs", {})
            if small and "features_per_stage" in kwargs:
                kwargs["features_per_stage"] = [4] * kwargs["n_stages"]
        file.write_text(json.dumps(plans))
        which = ("-d", str(self.number), "-plans_name", self.plans, "-c", *configurations)
        self.run("nnUNetv2_preprocess", *which, "-np", *["1"] * len(configurations))

    def train(
        self, fold: int | str = 0, *options: str, configuration: str = "3d_fullres", trainer: str = TRAINER
    ) -> str:
        which = (str(self.number), configuration, str(fold), "-tr", trainer, "-p", self.plans, "-device", "cpu")
        return self.run("nnUNetv2_train", *which, *options)

    def predict(self, fold: int | str = 0, *options: str, configuration: str = "3d_fullres", out: str = "out") -> Path:
        """Predict the test case with stock's command and return the folder."""
        which = ("-d", str(self.number), "-c", configuration, "-f", str(fold), "-tr", TRAINER, "-p", self.plans)
        folders = ("-i", str(self.raw / "imagesTs"), "-o", str(self.root / out))
        fast = ("-device", "cpu", "-npp", "0", "-nps", "0", "--disable_tta")
        self.run("nnUNetv2_predict", *which, *folders, *fast, *options)
        expect((self.root / out / f"test_0{self.ending}").exists(), "nothing was predicted")
        return self.root / out


def call(command: Sequence[str]) -> None:
    """Call the function behind a console script."""
    (script,) = entry_points(group="console_scripts", name=command[0])
    arguments, sys.argv = sys.argv, list(command)
    try:
        script.load()()
    except SystemExit as error:
        if error.code not in (None, 0):
            raise
    finally:
        sys.argv = arguments


@contextmanager
def changed_environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def prepare_process(root: Path) -> None:
    """Set up folders, settings and threads; to be called before nnU-Net's import: older versions look only then."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(root / name)
    settings = {
        "epochs": "1",
        "backbone": "efficientnet-lite0",
        "iterations_per_epoch": "3",
        "val_iterations_per_epoch": "1",
    }
    os.environ.update({f"nnUNet_mn_{key}": value for key, value in settings.items()})
    os.environ.update(nnUNet_def_n_proc="1", nnUNet_compile="f")
    warnings.simplefilter("ignore")
    patch.object(multiprocessing, "get_context", lambda *_: SimpleNamespace(Pool=ThreadPool)).start()
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    stock = DatasetFingerprintExtractor.__init__

    def few_voxels(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e4

    DatasetFingerprintExtractor.__init__ = few_voxels


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise MNError(message)


def refused(command: Callable[[], object], sentence: str) -> None:
    """A command must end with this sentence."""
    try:
        command()
    except MNError as error:
        expect(sentence in str(error), f"it ended with: {error}")
        return
    raise MNError(f"it was not refused with '{sentence}'")
