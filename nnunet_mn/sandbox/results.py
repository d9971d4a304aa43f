"""The demo's numbers: nnU-Net's evaluation, surface distances, and a table of both models."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from nnunet_mn.distances import hausdorff_95
from nnunet_mn.sandbox.dataset import read_volume
from nnunet_mn.sandbox.phantoms import LABELS, SPACING

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
    seconds: float  # of the training command, nnU-Net's own validation included
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

    @property
    def models(self) -> tuple[ModelResult, ModelResult]:
        return self.baseline, self.mn

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
        plain: dict[str, Any] = _without_nan({**asdict(self), "means": means})
        return plain


def read_scores(summary: Path, test_labels: Path, predictions: Path) -> dict[str, dict[str, Score]]:
    """Dice from the file of nnU-Net's evaluation, and surface distances computed here.

    Args:
        summary: `summary.json` of `nnUNetv2_evaluate_simple`.
        test_labels, predictions: folders of the evaluated segmentations.
    """
    scores = {}
    for case in json.loads(summary.read_text(encoding="utf-8"))["metric_per_case"]:
        file = Path(case["prediction_file"]).name
        truth, prediction = read_volume(test_labels / file), read_volume(predictions / file)
        scores[file.removesuffix(".nii.gz")] = {
            cls: Score(
                dice=case["metrics"][str(label)]["Dice"],
                hd95_mm=hausdorff_95(truth == label, prediction == label, SPACING),
            )
            for cls, label in CLASSES.items()
        }
    return scores


def results_table(result: DemoResult) -> Table:
    """Both models side by side."""
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
        numbers = [*(f"{value:.3f}" for value in dice), *distances, f"{model.seconds:.0f} s"]
        table.add_row(model.name, *numbers)
    return table


def verdict(result: DemoResult) -> str:
    """The result in words, whoever won."""
    gain = result.mn.mean_dice - result.baseline.mean_dice
    cases = result.mn.scores
    better = sum(result.mn.case_dice(case) > result.baseline.case_dice(case) for case in cases)
    how = "better" if gain > 0 else "worse"
    comparison = (
        f"Both models: {result.updates} updates of the same 3D network with {result.n_labeled} labeled volumes. M&N "
        f"also saw {result.n_unlabeled} unlabeled volumes. Its mean Dice is {abs(gain):.3f} {how} "
        f"({better} of {len(cases)} test cases higher)."
    )
    caution = (
        "The data are generated, the network is small, and the training is short and has one seed. This shows that "
        "everything runs here, not what to expect on other data."
    )
    hurried = " With --quick the training is far too short to compare the models." if result.quick else ""
    return f"{comparison} {caution}{hurried}"


def _distance(model: ModelResult, cls: str) -> str:
    missed = f"\n({model.missed(cls)} missed)" if model.missed(cls) else ""
    return f"{model.hd95(cls):.1f}{missed}" if not math.isnan(model.hd95(cls)) else "all missed"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
