"""Trainings that an earlier version began go on. tests/checkpoints/README.md says how the files were made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_mn.bridge.reading import read
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
    site.name, site.validate = name, False
    shutil.copy(version / "nnUNetPlans.json", site.preprocessed)
    site.fold.mkdir(parents=True)
    shutil.copy(version / "checkpoint_latest.pth", site.fold)
    site.arguments.append("--c")
    site.set(backbone=earlier["mn"]["config"]["backbone"], epochs=earlier["current_epoch"] + 1)
    code, output = train(site)
    assert code == 0, output[-3000:]
    assert f"Epoch {earlier['current_epoch']}\n" in output
    final = read(site.fold / "checkpoint_final.pth")
    for key in ("train_losses", "train_losses_2d", "mean_fg_dice_2d"):
        assert final["logging"][key][:-1] == earlier["logging"][key]
    assert final["current_epoch"] == earlier["current_epoch"] + 1


def test_settings_that_were_removed_are_among_them() -> None:
    stored = read(VERSIONS[0] / "checkpoint_latest.pth")["mn"]["config"]
    assert set(REMOVED) <= set(stored)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda folder: folder.name)
def test_the_files_stay_small(version: Path) -> None:
    assert sum(file.stat().st_size for file in version.rglob("*")) < 300_000
