"""The plots of the page, as SVG."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_mn.report.progress import COLOR_2D, COLOR_3D, COLOR_SHARE

COLOR_JOINT = "#CC79A7"  # Okabe-Ito


class Plot:
    """A figure that becomes a picture for a page: `with Plot(...) as axes: ...`, then `address`."""

    def __init__(self, columns: int, *, size: tuple[float, float]) -> None:
        self.columns, self.size = columns, size
        self.address = ""

    @contextmanager
    def axes(self) -> Iterator[Sequence[Axes]]:
        """Draw on these. At the end the picture is made."""
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, "svg.fonttype": "none", "svg.hashsalt": "nnunet-mn"}):
            figure = Figure(figsize=self.size, layout="constrained")
            canvas = FigureCanvasSVG(figure)
            yield figure.subplots(1, self.columns, squeeze=False)[0]
            stream = io.BytesIO()
            canvas.print_figure(stream, metadata={"Date": None}, facecolor="none")
        self.address = "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def plot_losses(log: Mapping[str, Sequence[Any]]) -> str:
    """Losses, Dice, and schedule of both networks by epoch. The address of the picture is returned."""
    plot = Plot(2, size=(9, 3))
    with plot.axes() as (loss, dice):
        _line(loss, log, "train_losses", "3D, training", COLOR_3D, "-")
        _line(loss, log, "val_losses", "3D, validation", COLOR_3D, ":")
        _line(loss, log, "train_losses_2d", "2D, training", COLOR_2D, "-")
        _line(loss, log, "val_losses_2d", "2D, validation", COLOR_2D, ":")
        _finish(loss, "loss")
        _line(dice, log, "mean_fg_dice", "3D", COLOR_3D, "-")
        _line(dice, log, "mean_fg_dice_2d", "2D", COLOR_2D, "--")
        dice.set_ylim(0, 1)
        _finish(dice, "Dice on validation patches")
    return plot.address


def plot_schedule(log: Mapping[str, Sequence[Any]], seconds: Sequence[float]) -> str:
    """Learning rates, unlabeled share, and time by epoch."""
    plot = Plot(3, size=(9, 2.4))
    with plot.axes() as (rate, share, time):
        _line(rate, log, "lrs", "3D", COLOR_3D, "-")
        _line(rate, log, "lrs_2d", "2D", COLOR_2D, "--")
        rate.set_yscale("log")
        _finish(rate, "learning rate")
        _line(share, log, "unlabeled_fraction", "unlabeled", COLOR_SHARE, "-")
        share.set_ylim(-0.02, 1)
        _finish(share, "share of unlabeled samples")
        _line(time, {"seconds": seconds}, "seconds", "both networks", "0.3", "-")
        time.set_ylim(bottom=0)
        _finish(time, "seconds an epoch")
    return plot.address


def plot_estimates(estimated: Sequence[float], true: Sequence[float]) -> str:
    """Each validation case: estimated against true Dice of the joint mask."""
    plot = Plot(1, size=(3.6, 3.4))
    with plot.axes() as (axes,):
        axes.plot((0, 1), (0, 1), ":", color="0.5", lw=1)
        axes.plot(estimated, true, "o", color=COLOR_JOINT, mec="0.2", mew=0.5, ms=6)
        low = max(0.0, float(np.floor(10 * min([*estimated, *true]))) / 10 - 0.05)
        axes.set(xlim=(low, 1), ylim=(low, 1), xlabel="estimated Dice", ylabel="true Dice")
        axes.grid(alpha=0.3)
    return plot.address


def _line(axes: Axes, log: Mapping[str, Sequence[Any]], key: str, label: str, color: str, style: str) -> None:
    values = log.get(key, ())
    axes.plot(range(len(values)), values, style, color=color, label=label, marker="." if len(values) < 30 else "")


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.lines) > 1:
        axes.legend(fontsize=8, frameon=False)
