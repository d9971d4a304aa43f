"""A picture of models side by side: contours on slices, learning curves, and Dice case by case."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

# Okabe-Ito: told apart by color-blind readers. Blue, vermilion and black are models, the others classes.
MODEL_COLORS = ("#0072B2", "#D55E00", "#000000")
CLASS_COLORS = ("#F0E442", "#56B4E9", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = ("o", "D", "_")


@dataclass(frozen=True)
class ShownSlice:
    """One slice of one case."""

    name: str
    image: NDArray[np.floating]  # (H, W)
    truth: NDArray[np.integer]  # (H, W)
    predictions: tuple[NDArray[np.integer], ...]  # (H, W) each, in the order of the models
    dice: tuple[float, ...]  # of the whole case, one a model


@dataclass(frozen=True)
class Curve:
    """A quantity by number of updates."""

    name: str
    updates: Sequence[int]
    values: Sequence[float]
    color: str
    line: str = "-"


def plot_comparison(
    path: Path,
    *,
    models: Sequence[str],
    classes: dict[str, int],
    slices: Sequence[ShownSlice],
    curves: Sequence[Curve],
    curves_label: str,
    case_dice: Sequence[Sequence[float]],
    aspect: float = 1.0,
) -> None:
    """Draw the picture.

    Args:
        path: of the PNG to write.
        models: names of the models.
        classes: names of the foreground classes and their labels.
        slices: one row each: truth, then the models that have a prediction there, the first ones.
        curves: learning curves.
        curves_label: of their vertical axis.
        case_dice: for each model the Dice of every test case, in one order.
        aspect: height of a pixel over its width.
    """
    figure = Figure(figsize=(11, 1.0 + 2.05 * len(slices)), layout="constrained")
    canvas = FigureCanvasAgg(figure)  # not pyplot: no global state, no display
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.35, 1))[0]
    n_drawn = len(slices[0].predictions)
    rows = left.subplots(len(slices), 1 + n_drawn, squeeze=False)
    for axes, shown in zip(rows, slices, strict=True):
        _draw_case(axes, shown, classes, aspect)
    for axes, title in zip(rows[0], ("truth", *models[:n_drawn]), strict=True):
        axes.set_title(title, fontsize=11)
    handles = [Line2D([], [], color=CLASS_COLORS[i], lw=2.5, label=name) for i, name in enumerate(classes)]
    legend = left.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=10)
    legend.get_frame().set(facecolor="0.35", edgecolor="none")
    for text in legend.get_texts():
        text.set_color("white")  # the contours' colors are chosen for dark images
    learning, cases = right.subplots(2, 1)
    _draw_curves(learning, curves, curves_label)
    _draw_dice(cases, models, case_dice)
    canvas.print_figure(path, dpi=120)


def _draw_case(axes: Sequence[Axes], shown: ShownSlice, classes: dict[str, int], aspect: float) -> None:
    """One row: the same slice with the contours of the truth and of each model."""
    low, high = np.percentile(shown.image, (1, 99.8))
    for place, segmentation in zip(axes, (shown.truth, *shown.predictions), strict=True):
        place.imshow(shown.image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="bilinear")
        for color, label in zip(CLASS_COLORS, classes.values(), strict=False):
            if (segmentation == label).any():
                place.contour(segmentation == label, [0.5], colors=color, linewidths=1.6)
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    for place, dice in zip(axes[1:], shown.dice, strict=True):
        place.text(0.03, 0.03, f"Dice {dice:.2f}", color="white", fontsize=9, transform=place.transAxes)
    axes[0].set_ylabel(shown.name, fontsize=9)


def _draw_curves(axes: Axes, curves: Sequence[Curve], label: str) -> None:
    for curve in curves:
        axes.plot(curve.updates, curve.values, curve.line, color=curve.color, label=curve.name, lw=1.8)
    axes.set(xlabel="updates", ylabel=label, ylim=(0, 1))
    axes.set_xlim(left=0)
    axes.legend(fontsize=9, frameon=False, loc="lower right")
    _tidy(axes)


def _draw_dice(axes: Axes, models: Sequence[str], case_dice: Sequence[Sequence[float]]) -> None:
    """Each test case as one column of dots, sorted by the first model; the lines are the means."""
    order = np.argsort(case_dice[0])
    for name, values, color, marker in zip(models, case_dice, MODEL_COLORS, _MARKERS, strict=False):
        mean = float(np.mean(values))
        axes.plot(np.asarray(values)[order], marker, color=color, ms=6, label=f"{name}: mean {mean:.3f}")
        axes.axhline(mean, color=color, lw=1, ls="--")
    axes.vlines(range(len(order)), *np.sort(np.asarray(case_dice), axis=0)[[0, -1]][:, order], color="0.7", zorder=0)
    axes.set(xlabel="test cases, sorted", ylabel="Dice on test cases", ylim=(0, 1), xticks=[])
    axes.legend(fontsize=9, frameon=False, loc="lower right")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
