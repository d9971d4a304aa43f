"""`progress_mn.png`: the training of both networks, epoch by epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOR_3D, COLOR_2D, COLOR_SHARE = "#0072B2", "#D55E00", "#009E73"  # Okabe-Ito: told apart by color-blind readers


def plot_progress(logged: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Draw losses, pseudo-Dice, unlabeled share and learning rates.

    Args:
        logged: the trainer's log, one value an epoch under each key.
        path: the picture to write.
    """
    with matplotlib.rc_context(matplotlib.rcParamsDefault):  # nnU-Net sets fonts of its own size for all of matplotlib
        _draw(logged, path)


def _draw(logged: Mapping[str, Sequence[Any]], path: Path) -> None:
    figure = Figure(figsize=(9, 11))
    canvas = FigureCanvasAgg(figure)  # not pyplot: no global state, no display
    loss, dice, share, rate = figure.subplots(4, 1, sharex=True, height_ratios=(3, 3, 1.5, 2))
    # a layout engine would take as long as all the rest
    figure.subplots_adjust(left=0.12, right=0.82, bottom=0.05, top=0.985, hspace=0.07)
    curves = {
        "train_losses": ("3D, training", COLOR_3D, "-"),
        "val_losses": ("3D, validation", COLOR_3D, ":"),
        "train_losses_2d": ("2D, training", COLOR_2D, "-"),
        "val_losses_2d": ("2D, validation", COLOR_2D, ":"),
    }
    _lines(loss, logged, curves)
    loss.set_ylabel("loss")
    _lines(dice, logged, {"mean_fg_dice": ("3D", COLOR_3D, "-"), "mean_fg_dice_2d": ("2D", COLOR_2D, "-")})
    dice.set_ylabel("pseudo-Dice on\nvalidation patches")
    _lines(share, logged, {"unlabeled_fraction": ("unlabeled", COLOR_SHARE, "-")})
    share.set_ylabel("share of\nsamples")
    share.set_ylim(-0.02, 1)
    _lines(rate, logged, {"lrs": ("3D", COLOR_3D, "-"), "lrs_2d": ("2D", COLOR_2D, "-")})
    rate.set_ylabel("learning rate")
    rate.set_yscale("log")
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.print_figure(path, dpi=100)


def _lines(axes: Axes, logged: Mapping[str, Sequence[Any]], styles: Mapping[str, tuple[str, str, str]]) -> None:
    for key, (label, color, line) in styles.items():
        values = logged.get(key, ())
        if len(values) == 0:
            continue  # a student has no 2D network beside it
        axes.plot(range(len(values)), values, line, color=color, label=label, marker="." if len(values) < 30 else "")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
