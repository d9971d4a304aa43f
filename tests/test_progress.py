import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from nnunet_mn.report.progress import plot_progress

KEYS = ("train_losses", "val_losses", "train_losses_2d", "val_losses_2d", "mean_fg_dice", "mean_fg_dice_2d",
        "unlabeled_fraction", "lrs", "lrs_2d")  # fmt: skip


@pytest.mark.parametrize("epochs", [1, 3, 100])
def test_curves_are_drawn_whatever_the_number_of_epochs(tmp_path, epochs):
    plot_progress({key: list(np.linspace(0.9, 0.1, epochs)) for key in KEYS}, tmp_path / "progress_mn.png")
    assert imread(tmp_path / "progress_mn.png").std() > 0


def test_the_picture_does_not_depend_on_styles_that_nnunet_sets_for_its_own(tmp_path):
    logged = {key: [0.5, 0.4] for key in KEYS}
    plot_progress(logged, tmp_path / "before.png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        plot_progress(logged, tmp_path / "after.png")
    assert np.array_equal(imread(tmp_path / "before.png"), imread(tmp_path / "after.png"))


def test_an_epoch_without_any_foreground_leaves_a_gap(tmp_path):
    plot_progress({key: [float("nan"), 0.5, 0.6] for key in KEYS}, tmp_path / "progress_mn.png")
    assert (tmp_path / "progress_mn.png").stat().st_size > 0
