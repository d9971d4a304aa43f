"""The demo's picture: its slices and curves."""

import numpy as np

from nnunet_mn.sandbox.comparison import MODEL_COLORS, Curve, ShownSlice, plot_comparison
from nnunet_mn.sandbox.dataset import read_volume
from nnunet_mn.sandbox.results import CLASSES, DemoResult
from nnunet_mn.sandbox.workspace import Workspace


def draw(result: DemoResult, space: Workspace, *, iterations: int) -> None:
    """Write `demo.png`.

    Args:
        result: all measurements.
        space: the folder of the images and segmentations.
        iterations: updates per epoch.
    """
    plot_comparison(
        space.out / "demo.png",
        models=[model.name for model in result.models],
        classes=CLASSES,
        slices=[_shown(result, space, case) for case in typical_cases(result)],
        curves=_curves(result, iterations),
        curves_label="Dice on the labeled cases (fit)",
        case_dice=[[model.case_dice(case) for case in result.mn.scores] for model in result.models],
    )


def typical_cases(result: DemoResult) -> list[str]:
    """The test cases at the quartiles of the difference between the models, not the best-looking ones."""
    ranked = sorted(result.mn.scores, key=lambda case: result.mn.case_dice(case) - result.baseline.case_dice(case))
    return [ranked[round(share * (len(ranked) - 1))] for share in (0.75, 0.5, 0.25)]


def _shown(result: DemoResult, space: Workspace, case: str) -> ShownSlice:
    """The slice of a test case with most of the organ."""
    truth = read_volume(space.test_labels / f"{case}.nii.gz")
    z = int(np.argmax((truth > 0).sum((1, 2))))
    image = read_volume(space.raw / "imagesTs" / f"{case}_0000.nii.gz")
    drawn = (result.baseline, result.mn)  # contours of a third model would make the slices too small
    predictions = [read_volume(space.predictions(model.trainer) / f"{case}.nii.gz")[z] for model in drawn]
    dice = tuple(model.case_dice(case) for model in drawn)
    return ShownSlice(case.replace("_", " "), image[z], truth[z], tuple(predictions), dice)


def _curves(result: DemoResult, iterations: int) -> list[Curve]:
    """Pseudo-Dice by updates: the baseline, and both networks of M&N."""

    def curve(name: str, values: list[float], color: str, line: str = "-") -> Curve:
        return Curve(name, [iterations * (i + 1) for i in range(len(values))], values, color, line)

    return [
        curve("labeled only", result.baseline.curves["mean_fg_dice"], MODEL_COLORS[0]),
        curve("M&N", result.mn.curves["mean_fg_dice"], MODEL_COLORS[1]),
        curve("M&N, its 2D network", result.mn.curves["mean_fg_dice_2d"], MODEL_COLORS[1], ":"),
    ]
