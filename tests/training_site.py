"""A planned dataset and a training command for a test to spoil, and a server for such commands and for scripts."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from nnunet_mn.bridge.registration import trainers_path

SERVER = Path(__file__).with_name("train_server.py")
SETTINGS = {
    "backbone": "efficientnet-lite0", "adaptation": "frozen", "seed": 1, "epochs": 1, "iterations_per_epoch": 2,
    "val_iterations_per_epoch": 1, "supervised_fraction": 0,
}  # fmt: skip


@dataclass
class Site:
    """A planned dataset and a command. A test may spoil both."""

    root: Path
    name: str
    names: dict[str, tuple[str, ...]]
    environment: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    configuration: str = "3d_fullres"
    trainer: str = "nnUNetTrainerMN"
    validate: bool = True  # at the end, as the command does; its two processes take seconds to start
    draw: bool = False  # the plots of each epoch, without validation; with it they are always drawn

    @property
    def output(self) -> Path:
        return self.root / "output.txt"

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / self.name

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / self.name

    @property
    def cases(self) -> Path:
        return self.preprocessed / "nnUNetPlans_3d_fullres"

    @property
    def fold(self) -> Path:
        return self.root / "nnUNet_results" / self.name / f"{self.trainer}__nnUNetPlans__3d_fullres" / "fold_0"

    def set(self, **settings: Any) -> None:
        self.environment |= {f"nnUNet_mn_{key}": str(value) for key, value in settings.items()}

    def unlabeled_image(self, name: str = "bad_0000.nii.gz") -> Path:
        folder = self.raw / "imagesUn"
        folder.mkdir(exist_ok=True)
        return folder / name

    def write(self, array: np.ndarray, name: str = "bad_0000.nii.gz", **geometry: Any) -> None:
        image = SimpleITK.GetImageFromArray(array)
        for key, value in geometry.items():
            getattr(image, f"Set{key}")(value)
        SimpleITK.WriteImage(image, str(self.unlabeled_image(name)), useCompression=True)

    def plans(self, **changes: Any) -> None:
        file = self.preprocessed / "nnUNetPlans.json"
        content = json.loads(file.read_text())
        content["configurations"]["3d_fullres"] |= changes
        file.write_text(json.dumps(content))

    def split(self, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        for folder in (self.raw, self.preprocessed):
            (folder / "splits_final.json").write_text(text)

    def entry(self, **changes: Any) -> list[dict[str, Any]]:
        entry = {"train": self.names["labeled"], "val": self.names["val"], "unlabeled": self.names["unlabeled"]}
        return [{key: value for key, value in (entry | changes).items() if value is not None}]


class Server:
    """Runs nnU-Net's commands, each time in a fork of one process.

    Args:
        environment: of the process. Commands have its variables but for those that they are given.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=SERVER.parent,
            env=environment,
        )  # fmt: skip

    def __call__(self, site: Site) -> tuple[int, str]:
        """Train; return exit code and output."""
        self.start(site)
        return self.end(site)

    def start(self, site: Site) -> int:
        """Begin a training and return the number of its process."""
        arguments = [site.name, site.configuration, "0", "-tr", site.trainer, "-device", "cpu", *site.arguments]
        environment = {
            **{f"nnUNet_mn_{key}": str(value) for key, value in SETTINGS.items()},
            **{name: str(site.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
            "nnUNet_extTrainer": str(trainers_path()), "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1",
            "HF_HUB_OFFLINE": "1", **site.environment,
        }  # fmt: skip
        kind = "command" if site.validate else "train and draw" if site.draw else "train"
        self._begin(kind, [["nnUNetv2_train", *arguments]], environment, [site.output])
        return self._answer()

    def end(self, site: Site) -> tuple[int, str]:
        """Wait for the training; return exit code and output."""
        return self._answer(), site.output.read_text()

    def command(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> tuple[int, str]:
        """Run any command of this Python environment; return exit code and output."""
        (ended,) = self._run("command", [command], environment, output)
        return ended

    def python(self, *scripts: Sequence[str], output: Path, **environment: str) -> list[tuple[int, str]]:
        """Run Python files with their arguments, all at once; return exit code and output of each."""
        return self._run("python", scripts, {**os.environ, **environment}, output)

    def _run(
        self, kind: str, commands: Sequence[Sequence[str]], environment: Mapping[str, str], output: Path
    ) -> list[tuple[int, str]]:
        outputs = [output.with_name(f"{output.name}.{i}") if i else output for i in range(len(commands))]
        self._begin(kind, commands, environment, outputs)
        for _ in commands:
            self._answer()
        return [(self._answer(), file.read_text()) for file in outputs]

    def _begin(
        self, kind: str, commands: Sequence[Sequence[str]], environment: Mapping[str, str], outputs: Sequence[Path]
    ) -> None:
        requests = []
        for command, output in zip(commands, outputs, strict=True):
            output.touch()  # the number may come before the first line of output
            request = {"kind": kind, "command": list(map(str, command)), "output": str(output)}
            requests.append({**request, "environment": dict(environment)})
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(requests) + "\n")
        self.process.stdin.flush()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate(timeout=600)


def copy_of(dataset: Any, root: Path) -> Site:
    """A site with a copy of a planned dataset."""
    site = Site(root, dataset.name, {"labeled": dataset.labeled, "val": dataset.val, "unlabeled": dataset.unlabeled})
    shutil.copytree(dataset.raw, site.raw)
    shutil.copytree(dataset.preprocessed, site.preprocessed, ignore=shutil.ignore_patterns("*_unlabeled*"))
    return site
