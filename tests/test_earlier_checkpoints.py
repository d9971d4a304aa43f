"""Trainings that an earlier version began go on. tests/checkpoints/README.md says how the files were made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_mn.bridge.reading import read
from nnunet_mn.bridge.training.joint_model import joint_model, read_trained
from nnunet_mn.config import REMOVED

pytestmark = pytest.mark.slow

VERSIONS = sorted(folder for folder in (Path(__file__).parent / "checkpoints").iterdir() if folder.is_dir())


@pytest.mark.parametrize("version", VERSIONS, ids=lambda folder: folder.name)
def test_a_training_of_an_earlier_version_goes_on(
    version: Path, site_of: Callable[..., Any], train: Callable[[Any], tuple[int, str]]
) -> None:
    earlier = read(version / "checkpoint_latest.pth")
    site = site_of()
    name = json.loads((version / "nnUNetPlans.json").read_text())["dataset_name"]
    for folder in (site.raw, site.preprocessed):
        folder.rename(folder.with_name(name))
    site.name, site.validate, site.draw = name, False, True
    shutil.copy(version / "nnUNetPlans.json", site.preprocessed)
    site.fold.mkdir(parents=True)
    shutil.copy(version / "checkpoint_latest.pth", site.fold)
    site.arguments.append("--c")
    site.set(backbone=earlier["mn"]["config"]["backbone"], epochs=earlier["current_epoch"] + 1)
    code, output = train(site)
    assert code == 0, output[-3000:]
    assert f"Epoch {earlier['current_epoch']}\n" in output
    assert all((site.fold / name).is_file() for name in ("progress.png", "progress_mn.png"))
    final = read(site.fold / "checkpoint_final.pth")
    for key in ("train_losses", "train_losses_2d", "mean_fg_dice_2d"):
        assert final["logging"][key][:-1] == earlier["logging"][key]
    assert final["current_epoch"] == earlier["current_epoch"] + 1


@pytest.mark.parametrize("version", VERSIONS, ids=lambda folder: folder.name)
def test_both_networks_of_an_earlier_version_predict_together(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent)  # its stored settings name the 2D network from here
    file = tmp_path / "fold_0" / "checkpoint_final.pth"
    file.parent.mkdir()
    shutil.copy(version / "checkpoint_latest.pth", file)
    shutil.copy(version / "nnUNetPlans.json", tmp_path / "plans.json")
    labels = {"background": 0, "front": 1, "back": 2}
    description = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    checkpoint = read_trained(file)
    joint = joint_model(file, checkpoint, "3d_fullres").network
    learned = checkpoint["mn"]["network_2d"]
    of_2d = joint.network_2d.network.state_dict()
    assert learned
    assert all(torch.equal(of_2d[name], tensor) for name, tensor in learned.items())


def test_settings_that_were_removed_are_among_them() -> None:
    stored = read(VERSIONS[0] / "checkpoint_latest.pth")["mn"]["config"]
    assert set(REMOVED) <= set(stored)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda folder: folder.name)
def test_the_files_stay_small(version: Path) -> None:
    assert sum(file.stat().st_size for file in version.rglob("*")) < 300_000
