"""nnU-Net's own logger of Weights & Biases (`nnUNet_wandb_enabled=1`) carries the 2D network's curves too."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.logging import nnunet_logger

from nnunet_mn.bridge.registration import trainers_path

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # nnU-Net and its plots warn

CURVES = {
    "train_losses", "train_losses_2d", "val_losses_2d", "mean_fg_dice_2d", "lrs_2d", "unlabeled_fraction",
    "dice_per_class_or_region_2d/class_1", "dice_per_class_or_region_2d/class_2",
}  # fmt: skip
SETTINGS = {
    "backbone": "efficientnet-lite0", "adaptation": "frozen", "epochs": 2, "iterations_per_epoch": 4,
    "val_iterations_per_epoch": 1, "supervised_fraction": 0.25,
}  # fmt: skip


class Run:
    """What is asked of a run of wandb."""

    step = 0

    def __init__(self, **_: Any) -> None:
        self.logged: dict[str, list[tuple[int, float]]] = {}
        self.summary: dict[str, Any] = {}
        self.config = SimpleNamespace(update=lambda _: None)

    def log(self, values: dict[str, float], *, step: int) -> None:
        for key, value in values.items():
            self.logged.setdefault(key, []).append((step, value))


@pytest.mark.skipif(not hasattr(nnunet_logger, "WandbLogger"), reason="this nnU-Net has no such logger")
def test_every_curve_has_a_value_for_each_epoch(
    planned_dataset: Callable[..., Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, run = planned_dataset(), Run()
    monkeypatch.setattr(nnunet_logger, "wandb", SimpleNamespace(init=lambda **_: run))
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"nnUNet_mn_{name}", str(value))
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_path()))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    trainer = get_trainer_from_args(str(dataset.number), "3d_fullres", 0, "nnUNetTrainerMN", device=torch.device("cpu"))
    trainer.run_training()
    for curve in CURVES:
        assert [epoch for epoch, _ in run.logged[curve]] == [0, 1], curve
    share = [value for _, value in run.logged["unlabeled_fraction"]]
    assert share == trainer.logger.local_logger.my_fantastic_logging["unlabeled_fraction"]
    assert 0 <= share[0] < share[1]


def test_the_library_writes_them_offline(site_of: Callable[..., Any], train: Callable[[Any], tuple[int, str]]) -> None:
    pytest.importorskip("wandb")
    site = site_of()
    site.validate = False
    site.set(**SETTINGS)
    site.environment |= {"nnUNet_wandb_enabled": "1", "nnUNet_wandb_mode": "offline"}
    code, output = train(site)
    assert code == 0, output[-3000:]
    (file,) = site.fold.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()  # its names stand there as they are
    assert [curve for curve in CURVES if curve.encode() not in written] == []
