"""A whole training by two processes: one stops both, both go on, one writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_mn.bridge.training.ddp import own_seed
from nnunet_mn.schedule import Schedule, UnlabeledCounts

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("one_training_rank.py")
FIELDS = {"backbone": "efficientnet-lite0", "adaptation": "frozen", "batch": "replace", "seed": 1, "epochs": 2,
          "iterations_per_epoch": 4, "val_iterations_per_epoch": 1, "supervised_fraction": 0.25,
          "checkpoint_every": 1}  # fmt: skip


def _run(train: Any, folder: Path, name: str, dataset: Any, *arguments: str, workers: str) -> list[tuple[int, str]]:
    environment = {
        **{f"nnUNet_mn_{field}": str(value) for field, value in FIELDS.items()},
        "nnUNet_results": str(folder / "results"),
        "nnUNet_n_proc_DA": workers,
    }
    ranks = [(SCRIPT, str(rank), folder / name, str(dataset.number), *arguments) for rank in (0, 1)]
    return train.python(*ranks, output=folder / f"{name}.txt", **environment)  # type: ignore[no-any-return]


def test_two_ranks_stop_together_go_on_together_and_agree_to_the_bit(
    fresh_planned_dataset: Callable[..., Any], train: Any, tmp_path: Path
) -> None:
    dataset = fresh_planned_dataset()
    plans = dataset.plans
    plans["configurations"]["3d_fullres"]["batch_size"] = 3
    (dataset.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    for code, output in _run(train, tmp_path, "first", dataset, "2", workers="1"):
        assert code == 1, output
        assert "in epoch 0 after iteration 2 of 4; run the same command with --c to go on" in output
    for code, output in _run(train, tmp_path, "second", dataset, "0", "--c", workers="0"):
        assert code == 0, output
    first, second = (
        [torch.load(f"{tmp_path / name}.rank_{rank}", weights_only=False) for rank in (0, 1)]
        for name in ("first", "second")
    )
    for ranks in (first, second):
        assert ranks[0]["weights"].keys() == ranks[1]["weights"].keys()
        assert all(torch.equal(value, ranks[1]["weights"][name]) for name, value in ranks[0]["weights"].items())
    assert [len(rank["labeled"]) for rank in (*first, *second)] == [2, 2, 6, 6]
    assert [rank["seed"] for rank in first] == [1, 2]
    assert [rank["seed"] for rank in second] == [1, own_seed(1, rank=1, done=2)]  # the first one's state is stored
    labeled = [a + b for a, b in zip(*(rank["labeled"] for rank in second), strict=True)]
    assert min(labeled) >= 1
    assert any(rank == 0 for rank in second[1]["labeled"])  # one part was all unlabeled
    log = second[0]["log"]
    assert log["train_losses_2d"] == second[1]["log"]["train_losses_2d"]
    assert log["mean_fg_dice_2d"] == second[1]["log"]["mean_fg_dice_2d"] or np.isnan(log["mean_fg_dice_2d"]).any()
    counts = UnlabeledCounts(Schedule(total=8, supervised=2), batch_size=3, batch="replace")
    drawn = [counts.of(iteration) for iteration in range(8)]
    assert [3 - n for n in labeled] == drawn[2:]
    assert log["unlabeled_fraction"] == pytest.approx([sum(drawn[:4]) / 12, sum(drawn[4:]) / 12])
    fold = next((tmp_path / "results" / dataset.name).glob("*/fold_0"))
    assert not list(fold.glob("*.tmp"))
    assert (fold / "checkpoint_final.pth").is_file()


def test_no_two_ranks_and_no_two_resumptions_share_a_seed() -> None:
    seeds = {own_seed(1, rank, done) for rank in range(64) for done in range(0, 250_000, 250)}
    assert len(seeds) == 64 * 1000
    assert (own_seed(5, 0), own_seed(None, 1, 2)) == (5, None)
