"""The record of a finished run: one JSON line. Every table is made from these lines."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnunet_mn.distances import hausdorff_95
from nnunet_mn.sandbox.dataset import read_volume

Half = Literal["tune", "report", "all"]  # all: both halves together


@dataclass(frozen=True, kw_only=True)
class Record:
    """One training, evaluated on the fold's validation cases. No method trains on them.

    Args:
        dataset: the raw dataset's folder name.
        method, fold, seed: of the run.
        n_labeled: labeled cases of the fold.
        scale: of plans, see `workspace.scale_key`.
        updates: of the 3D network.
        seconds: of the training command, with nnU-Net's own validation.
        config: M&N's settings from the checkpoint; for the labeled-only trainer the given ones.
        versions: of packages.
        date: of the run.
        dice: case -> class -> nnU-Net's Dice.
        hd95: case -> class -> mm, None if truth or prediction is empty.
        volume: case -> class -> predicted voxels as a share of the true ones, None if truth is empty; the earliest
            runs lack it.
    """

    dataset: str
    method: str
    fold: int
    seed: int
    n_labeled: int
    scale: str
    updates: int
    seconds: float
    config: dict[str, Any]
    versions: dict[str, str]
    date: str
    dice: dict[str, dict[str, float]]
    hd95: dict[str, dict[str, float | None]]
    volume: dict[str, dict[str, float | None]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for two records of the same run."""
        return self.dataset, self.method, self.fold, self.seed, self.scale, self.updates

    def cases(self, half: Half) -> list[str]:
        """The validation cases, by name, for choosing defaults (`tune`), for the table (`report`), or all of them."""
        names = sorted(self.dice)
        middle = len(names) // 2
        return {"tune": names[:middle], "report": names[middle:], "all": names}[half]

    def case_dice(self, half: Half) -> np.ndarray:
        """Mean Dice over classes, for each case of a half."""
        return np.array([np.mean(list(self.dice[case].values())) for case in self.cases(half)])

    def class_dice(self, half: Half, label: str) -> float:
        """Mean Dice of a class over the cases of a half."""
        return float(np.mean([self.dice[case][label] for case in self.cases(half)]))

    def mean_hd95(self, half: Half) -> float:
        """Mean distance in mm over cases and classes with voxels in both masks."""
        return _mean(value for case in self.cases(half) for value in self.hd95[case].values())

    def mean_volume(self, half: Half, label: str) -> float:
        """Mean predicted volume of a class as a share of the true one; NaN if the run has not recorded it."""
        return _mean(self.volume[case][label] for case in self.cases(half) if case in self.volume)

    def missed(self, half: Half) -> int:
        """Number of classes of cases missed altogether."""
        return sum(value is None for case in self.cases(half) for value in self.hd95[case].values())

    @property
    def labels(self) -> list[str]:
        """The classes."""
        return sorted(next(iter(self.dice.values())))


def read(file: Path) -> list[Record]:
    """All records of a file; none if there is no file."""
    if not file.exists():
        return []
    return [Record(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines() if line]


def append(file: Path, record: Record) -> None:
    """Add a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(record)) + "\n")


@dataclass(frozen=True)
class Scores:
    """As in `Record`."""

    dice: dict[str, dict[str, float]]
    hd95: dict[str, dict[str, float | None]]
    volume: dict[str, dict[str, float | None]]


def score(summary: Path, truths: Path) -> Scores:
    """Dice and volumes from nnU-Net's own evaluation, and surface distances, of every case and class.

    Args:
        summary: `validation/summary.json` of a training; the segmentations lie beside it.
        truths: folder of the true segmentations.
    """
    scores = Scores({}, {}, {})
    for case in json.loads(summary.read_text(encoding="utf-8"))["metric_per_case"]:
        file = Path(case["prediction_file"]).name
        name, metrics = file.split(".")[0], case["metrics"]
        truth, prediction = read_volume(truths / file), read_volume(summary.parent / file)
        scores.dice[name] = {label: of["Dice"] for label, of in metrics.items()}
        scores.volume[name] = {label: _share(of["n_pred"], of["n_ref"]) for label, of in metrics.items()}
        scores.hd95[name] = {
            label: _finite(hausdorff_95(truth == int(label), prediction == int(label), _spacing(truths / file)))
            for label in metrics
        }
    return scores


def _mean(values: Iterable[float | None]) -> float:
    """Mean of the values other than None; NaN of none."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else float("nan")


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 3) if whole else None


def _finite(value: float) -> float | None:
    return round(value, 3) if np.isfinite(value) else None


def _spacing(file: Path) -> tuple[float, ...]:
    """Voxel size in mm along the axes of `read_volume`."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return tuple(reader.GetSpacing()[::-1])
