"""What a training cannot learn from is found before it reads it."""

import os
from pathlib import Path

import blosc2
import numpy as np
import pytest

from nnunet_mn.bridge.preprocessing import soundness
from nnunet_mn.bridge.preprocessing.soundness import check_sound, fault_of_volume, varies
from nnunet_mn.errors import MNError

Z_SCORE = ("ZScoreNormalization",)


def volume(*, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(channels, 40, 30, 20)).astype(np.float32)


def z_score(array: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return (array - array.mean()) / max(array.std(), 1e-8)


def test_noise_is_sound() -> None:
    assert fault_of_volume(volume(), Z_SCORE) is None


@pytest.mark.parametrize("value", [1e9, 1e20, 3e38])
def test_huge_voxel_is_found_after_normalization(value: float) -> None:
    array = volume()
    array[0, 3, 4, 5] = value
    assert fault_of_volume(z_score(array), Z_SCORE) is not None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_voxel_that_is_not_finite_is_found(value: float) -> None:
    array = volume()
    array[0, 3, 4, 5] = value
    assert fault_of_volume(array, Z_SCORE) == "holds voxels that are NaN or infinite"


def test_flat_channel_beside_others_is_a_fault_only_where_the_raw_image_varies() -> None:
    array = volume(channels=2)
    array[1] = 0
    assert fault_of_volume(array, Z_SCORE * 2) is None
    assert fault_of_volume(array, Z_SCORE * 2, varied=(True, False)) is None
    assert fault_of_volume(array, Z_SCORE * 2, varied=(True, True)) is not None


def test_values_in_small_units_are_sound_without_normalization() -> None:
    assert fault_of_volume(volume() * 1e-6, ("NoNormalization",)) is None
    assert fault_of_volume(volume() * 1e-6, Z_SCORE) is not None


def test_raw_channel_of_one_value_in_nearly_all_voxels_does_not_vary() -> None:
    array = np.zeros((40, 30, 20), np.int16)
    assert not varies(array)
    array[::2] = 1
    assert varies(array)


def save(folder: Path, name: str, array: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    blosc2.asarray(array, urlpath=str(folder / f"{name}.b2nd"), mode="w")
    return folder / f"{name}.b2nd"


def test_unsound_cases_are_named_and_sound_ones_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cases"
    save(folder, "good", volume())
    check_sound(folder, ["good"], Z_SCORE, unlabeled=tmp_path / "cases_unlabeled")
    save(folder, "flat", np.zeros_like(volume()))
    with pytest.raises(MNError, match="'flat' has the same value in nearly all voxels"):
        check_sound(folder, ["good", "flat"], Z_SCORE, unlabeled=tmp_path / "cases_unlabeled")
    monkeypatch.setattr(soundness, "fault_of_volume", lambda *_: "was read again")
    check_sound(folder, ["good"], Z_SCORE, unlabeled=tmp_path / "cases_unlabeled")
    os.utime(folder / "good.b2nd", (1, 1))
    with pytest.raises(MNError, match="'good' was read again"):
        check_sound(folder, ["good"], Z_SCORE, unlabeled=tmp_path / "cases_unlabeled")
    (tmp_path / "cases_unlabeled.looks-labeled.json").write_text("[")
    with pytest.raises(MNError, match="'good' was read again"):
        check_sound(folder, ["good"], Z_SCORE, unlabeled=tmp_path / "cases_unlabeled")


def test_sound_case_with_empty_boxes_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros((1, 128, 128, 128), np.float32)
    array[0, :8] = np.random.default_rng(0).normal(size=(8, 128, 128))
    save(tmp_path / "cases", "good", array)
    fault_of_volume, read = soundness.fault_of_volume, []
    monkeypatch.setattr(soundness, "fault_of_volume", lambda v, *more: read.append(v) or fault_of_volume(v, *more))
    check_sound(tmp_path / "cases", ["good"], Z_SCORE, unlabeled=tmp_path / "cases_unlabeled")
    assert np.array_equal(read[-1], array)
