"""The demo's folder: its paths, and the environment of its commands."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from nnunet_mn.config import ENVIRONMENT_PREFIX
from nnunet_mn.device import cpu_count
from nnunet_mn.errors import MNError
from nnunet_mn.networks.registry import EMBEDDED
from nnunet_mn.sandbox.dataset import DATASET_NAME

CONFIGURATION = "3d_fullres"
PLANS = "nnUNetDemoPlans"
PROCESSES = 1  # helper of a command: it imports for seconds and half a GiB, however small the data
_MARK = ".nnunet-mn-demo"


@dataclass(frozen=True)
class Workspace:
    """Paths below the demo's folder."""

    out: Path

    @property
    def raw(self) -> Path:
        return self.out / "nnUNet_raw" / DATASET_NAME

    @property
    def preprocessed(self) -> Path:
        return self.out / "nnUNet_preprocessed" / DATASET_NAME

    @property
    def results(self) -> Path:
        return self.out / "nnUNet_results" / DATASET_NAME

    @property
    def test_labels(self) -> Path:
        return self.out / "test_labels"

    @property
    def logs(self) -> Path:
        return self.out / "logs"

    @property
    def report(self) -> Path:
        """The folder of the report's page."""
        return self.out / "report"

    def model(self, trainer: str) -> Path:
        """nnU-Net's folder for fold 0 of a trainer."""
        return self.results / f"{trainer}__{PLANS}__{CONFIGURATION}" / "fold_0"

    def predictions(self, trainer: str) -> Path:
        """The folder for a trainer's segmentations of the test cases."""
        return self.out / "predictions" / trainer

    def prepare(self) -> None:
        """Make the folder, or clear the previous demo out of it.

        Raises:
            MNError: if it is a file, or holds anything but a demo's files.
        """
        if self.out.exists() and not self.out.is_dir():
            raise MNError(f"{self.out} is a file; give --out a folder that is empty or new")
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / _MARK).exists():
            raise MNError(f"{self.out} holds files that no demo has written; give --out a folder that is empty or new")
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / _MARK).touch()
        of_a_run = (self.raw, self.preprocessed, self.results, self.test_labels, self.logs, self.report)
        for folder in (*of_a_run, self.out / "predictions"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.out / "demo.json", self.out / "demo.png"):  # a failed run must not show an old result
            file.unlink(missing_ok=True)
        self.logs.mkdir()

    def environment(self, *, seed: int, epochs: int, iterations: int, val_iterations: int) -> dict[str, str]:
        """Variables for the commands: this process's, without its settings of M&N. Those would change the result."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
        settings = {
            "backbone": EMBEDDED,
            "optimizer_3d": "adamw",  # for both trainings: they differ in nothing but the unlabeled images
            "lr_3d": 3e-3,  # for both as well; above the default: the trainings are short
            "lr_2d": 3e-3,
            "slice_step": 4,  # below the default: the scans are small
            "seed": seed,
            "epochs": epochs,
            "iterations_per_epoch": iterations,
            "val_iterations_per_epoch": val_iterations,
        }
        return {
            "OMP_WAIT_POLICY": "PASSIVE",  # a spinning thread takes its CPU from the loader: up to 4 times slower
            **kept,
            **{f"{ENVIRONMENT_PREFIX}{field}": str(value) for field, value in settings.items()},
            "nnUNet_raw": str(self.raw.parent),
            "nnUNet_preprocessed": str(self.preprocessed.parent),
            "nnUNet_results": str(self.results.parent),
            "nnUNet_n_proc_DA": str(max(1, min(4, cpu_count() // 2))),  # the other half trains
            "nnUNet_def_n_proc": str(PROCESSES),
            "nnUNet_compile": "f",  # compiling would take longer than it saves
        }
