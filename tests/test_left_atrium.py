"""The challenge's scans as a raw dataset of nnU-Net."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "left_atrium.py"
TRAIN, TEST = [f"T{i:02}" for i in range(9, -1, -1)], ["X1", "X2"]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for name in TRAIN + TEST:
        folder = tmp_path / "scans" / name
        folder.mkdir(parents=True)
        mask = np.zeros((4, 5, 6), np.uint8)
        mask[1:3, 1:3, 2] = 255
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask.astype(np.float32)), str(folder / "lgemri.nrrd"))
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask), str(folder / "laendo.nrrd"))
    (tmp_path / "train.list").write_text("\n".join(TRAIN) + "\n")
    (tmp_path / "test.list").write_text("\n".join(TEST))
    return tmp_path


def convert(folder: Path) -> subprocess.CompletedProcess[str]:
    lists = [str(folder / "train.list"), str(folder / "test.list")]
    command = [sys.executable, str(SCRIPT), str(folder / "scans"), *lists, "--raw", str(folder / "raw")]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_first_of_the_list_are_labeled_and_test_cases_are_only_evaluated(scans: Path) -> None:
    done = convert(scans)
    assert done.returncode == 0, done.stderr
    dataset = scans / "raw" / "Dataset501_LeftAtrium"
    four, eight, all_labels = json.loads((dataset / "splits_final.json").read_bytes())
    assert (four["train"], four["unlabeled"]) == (TRAIN[:4], TRAIN[4:])
    assert (eight["train"], all_labels["train"], all_labels["unlabeled"]) == (TRAIN[:8], TRAIN, [])
    assert four["val"] == eight["val"] == all_labels["val"] == TEST
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(dataset / "labelsTr" / "X1.nrrd")))
    assert (mask.sum(), mask.max()) == (4, 1)
    description = json.loads((dataset / "dataset.json").read_bytes())
    assert len(list((dataset / "imagesTr").iterdir())) == description["numTraining"] == 12
    again = convert(scans)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_a_missing_scan_is_named_and_nothing_is_written(scans: Path) -> None:
    (scans / "scans" / "X2" / "lgemri.nrrd").unlink()
    done = convert(scans)
    assert done.returncode == 2
    assert "'X2'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (scans / "raw").exists()
