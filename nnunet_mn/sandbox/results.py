"""The demo's numbers: nnU-Net's evaluation, surface distances, and a table of all models."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from nnunet_mn.bridge.files import without_nan
from nnunet_mn.distances import hausdorff_95
from nnunet_mn.sandbox.dataset import read_volume
from nnunet_mn.sandbox.phantoms import LABELS
from nnunet_mn.sandbox.volumes import SPACING

CLASSES = {name: label for name, label in LABELS.items() if label > 0}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One class of one test case; the distance is NaN if the class was missed altogether."""

    dice: float
    hd95_mm: float


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """The scores and curves of one trainer."""

    name: str
    trainer: str
    seconds: float | None  # of the training command, its validation included; None: made of the model above
    scores: dict[str, dict[str, Score]]  # by test case and class
    curves: dict[str, list[float]]  # a value per epoch

    def dice(self, cls: str) -> float:
        """Mean Dice of a class over the test cases."""
        return float(np.mean([case[cls].dice for case in self.scores.values()]))

    def hd95(self, cls: str) -> float:
        """Mean distance in mm over the test cases with the class found."""
        found = [case[cls].hd95_mm for case in self.scores.values() if not math.isnan(case[cls].hd95_mm)]
        return float(np.mean(found)) if found else math.nan

    def missed(self, cls: str) -> int:
        """The number of test cases without any voxel of the class found."""
        return sum(math.isnan(case[cls].hd95_mm) for case in self.scores.values())

    def case_dice(self, case: str) -> float:
        """Mean Dice of the classes in one test case."""
        return float(np.mean([score.dice for score in self.scores[case].values()]))

    @property
    def mean_dice(self) -> float:
        """Mean over classes and test cases."""
        return float(np.mean([self.dice(cls) for cls in CLASSES]))


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All measurements of one demo."""

    seed: int
    quick: bool
    updates: int  # of the 3D network, the same for both models
    n_labeled: int
    n_unlabeled: int
    n_test: int
    seconds: float
    baseline: ModelResult
    mn: ModelResult
    joint: ModelResult

    @property
    def models(self) -> tuple[ModelResult, ...]:
        return self.baseline, self.mn, self.joint

    def to_dict(self) -> dict[str, Any]:
        """All numbers, with means, ready for JSON; NaN becomes None."""
        means = {
            model.name: {
                "dice": {cls: model.dice(cls) for cls in CLASSES} | {"mean": model.mean_dice},
                "hd95_mm": {cls: model.hd95(cls) for cls in CLASSES},
                "missed": {cls: model.missed(cls) for cls in CLASSES},
            }
            for model in self.models
        }
        plain: dict[str, Any] = without_nan({**asdict(self), "means": means})
        return plain


def read_scores(test_labels: Path, predictions: Path) -> dict[str, dict[str, Score]]:
    """Dice by nnU-Net's evaluation, and surface distances computed here.

    Args:
        test_labels, predictions: folders of the same cases, as `CASE.nii.gz`.
    """
    # Here, not above: the display should not wait for torch. The command would start processes of its own.
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    scores = {}
    for file in sorted(test_labels.glob("*.nii.gz")):
        truth, prediction = read_volume(file), read_volume(predictions / file.name)
        found = compute_metrics(str(file), str(predictions / file.name), SimpleITKIO(), list(CLASSES.values()))
        scores[file.name.removesuffix(".nii.gz")] = {
            cls: Score(
                dice=float(found["metrics"][label]["Dice"]),
                hd95_mm=hausdorff_95(truth == label, prediction == label, SPACING),
            )
            for cls, label in CLASSES.items()
        }
    return scores


def results_table(result: DemoResult) -> Table:
    """All models, one below the other."""
    table = Table(title=f"means over {result.n_test} test cases after {result.updates} updates")
    table.add_column("", no_wrap=True)
    for name in (*CLASSES, "mean"):
        table.add_column(f"Dice\n{name}", justify="right", no_wrap=True)
    for name in CLASSES:
        table.add_column(f"HD95 {name}\nin mm", justify="right", no_wrap=True)
    table.add_column("training", justify="right", no_wrap=True)
    for model in result.models:
        dice = [*(model.dice(cls) for cls in CLASSES), model.mean_dice]
        distances = [_distance(model, cls) for cls in CLASSES]
        seconds = "as above" if model.seconds is None else f"{model.seconds:.0f} s"
        numbers = [*(f"{value:.3f}" for value in dice), *distances, seconds]
        table.add_row(model.name, *numbers)
    return table


def verdict(result: DemoResult) -> str:
    """The result in words, whoever won."""
    comparison = (
        f"Both trainings: {result.updates} updates of the same 3D network with {result.n_labeled} labeled volumes. M&N "
        f"also saw {result.n_unlabeled} unlabeled volumes. {_against_baseline(result, result.mn, 'Its mean Dice')} "
        f"{_against_baseline(result, result.joint, 'With both of its networks (joint) it')}"
    )
    data = (
        "The data are generated, for a case that unlabeled images can help with: the labeled scans come from one "
        "scanner, the unlabeled and test scans from another, which shades its images."
    )
    caution = (
        "The network is small, and the training is short and has one seed. This shows that everything runs here, not "
        "what to expect on other data."
    )
    hurried = " With --quick the training is far too short to compare the models." if result.quick else ""
    return f"{comparison} {data} {caution}{hurried}"


def _against_baseline(result: DemoResult, model: ModelResult, subject: str) -> str:
    """A sentence about the difference of a model to labeled-only."""
    gain = model.mean_dice - result.baseline.mean_dice
    better = sum(model.case_dice(case) > result.baseline.case_dice(case) for case in model.scores)
    how = "better" if gain > 0 else "worse"
    return f"{subject} is {abs(gain):.3f} {how} ({better} of {len(model.scores)} test cases higher)."


def _distance(model: ModelResult, cls: str) -> str:
    missed = f"\n({model.missed(cls)} missed)" if model.missed(cls) else ""
    return f"{model.hd95(cls):.1f}{missed}" if not math.isnan(model.hd95(cls)) else "all missed"
