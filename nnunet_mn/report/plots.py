"""The plots of the page, as SVG."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_mn.report.progress import COLOR_2D, COLOR_3D, COLOR_SHARE

COLOR_JOINT = "#CC79A7"  # Okabe-Ito


@dataclass(frozen=True)
class Plot:
    """A picture for a page: its address, which holds the picture itself, and its content in words."""

    address: str
    words: str


def training_plots(log: Mapping[str, Sequence[Any]], seconds: Sequence[float]) -> list[Plot]:
    """The training by epoch: losses, Dice, learning rates, unlabeled share, and time.

    Args:
        log: nnU-Net's and M&N's lists, one value an epoch.
        seconds: of each epoch.
    """
    both = (("lrs", "3D", COLOR_3D, "-"), ("lrs_2d", "2D", COLOR_2D, "--"))
    return [
        _by_epoch("loss", log, *_LOSSES),
        _by_epoch("Dice on validation patches", log, *_DICE, ylim=(0, 1)),
        _by_epoch("learning rate", log, *both, yscale="log"),
        _by_epoch(
            "share of unlabeled samples", log, ("unlabeled_fraction", "unlabeled", COLOR_SHARE, "-"), ylim=(0, 1)
        ),
        _by_epoch("seconds an epoch", {"seconds": seconds}, ("seconds", "time", "0.3", "-")),
    ]


_LOSSES = (
    ("train_losses", "3D, training", COLOR_3D, "-"),
    ("val_losses", "3D, validation", COLOR_3D, ":"),
    ("train_losses_2d", "2D, training", COLOR_2D, "-"),
    ("val_losses_2d", "2D, validation", COLOR_2D, ":"),
)
_DICE = (("mean_fg_dice", "3D", COLOR_3D, "-"), ("mean_fg_dice_2d", "2D", COLOR_2D, "--"))


def _by_epoch(title: str, log: Mapping[str, Sequence[Any]], *lines: tuple[str, str, str, str], **axes_set: Any) -> Plot:
    with _axes(size=(4, 2.6)) as (axes, finished):
        for key, label, color, style in lines:
            values = log.get(key, ())
            axes.plot(
                range(len(values)), values, style, color=color, label=label, marker="." if len(values) < 30 else ""
            )
        axes.set(xlabel="epoch", **axes_set)
        axes.set_title(title, fontsize=10, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=8, frameon=False)
    return Plot(finished[0], f"{title} by epoch")


def plot_estimates(estimated: Sequence[float], true: Sequence[float]) -> Plot:
    """Each validation case: estimated against true Dice of the joint mask."""
    with _axes(size=(3.6, 3.4)) as (axes, finished):
        axes.plot((0, 1), (0, 1), ":", color="0.5", lw=1)
        axes.plot(estimated, true, "o", color=COLOR_JOINT, mec="0.2", mew=0.5, ms=6)
        low = max(0.0, float(np.floor(10 * min([*estimated, *true]))) / 10 - 0.05)
        axes.set(xlim=(low, 1), ylim=(low, 1), xlabel="estimated Dice", ylabel="true Dice")
        axes.grid(alpha=0.3)
    return Plot(finished[0], "estimated against true Dice of the validation cases")


@contextmanager
def _axes(*, size: tuple[float, float]) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on. At the end the list holds the picture's address."""
    finished: list[str] = []
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "svg.fonttype": "none", "svg.hashsalt": "nnunet-mn"}):
        figure = Figure(figsize=size, layout="constrained")
        canvas = FigureCanvasSVG(figure)  # not pyplot: no global state, no display
        yield figure.subplots(), finished
        stream = io.BytesIO()
        canvas.print_figure(stream, metadata={"Date": None}, facecolor="none")
    finished.append("data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode("ascii"))
