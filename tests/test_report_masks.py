"""Masks and maps of the report as files, in the formats of nnU-Net's writers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mn.bridge.prediction.masks import mask_files, write_masks

SHAPE = (6, 8, 7)
SPACING = [3.0, 1.0, 1.5]
PROPERTIES = {
    "spacing": SPACING,
    "shape_before_cropping": SHAPE,
    "shape_after_cropping_and_before_resampling": SHAPE,
    "bbox_used_for_cropping": [[0, side] for side in SHAPE],
}


@pytest.fixture
def made_by(planned_dataset: Any) -> Any:
    """What `write_masks` asks of a predictor, of a planned dataset whose images are 3D TIFF files."""
    dataset = planned_dataset()
    plans = PlansManager({**dataset.plans, "image_reader_writer": "Tiff3DIO"})
    description = {**dataset.dataset_json, "file_ending": ".tif"}
    return SimpleNamespace(description=description, plans=plans, configuration=plans.get_configuration("3d_fullres"))


@pytest.fixture
def predicted() -> Any:
    """Label 1 in the lower half; label 0 above. The networks are unsure of everything."""
    logits = np.zeros((3, *SHAPE), np.float16)
    logits[1, :3], logits[0, 3:] = 9, 9
    return SimpleNamespace(logits=logits, uncertainty=np.full(SHAPE, 100, np.uint8))


def test_masks_in_tiff_files_keep_the_spacing_beside_them(tmp_path: Path, made_by: Any, predicted: Any) -> None:
    write_masks(tmp_path, "a.b", predicted, PROPERTIES, made_by)
    for file, most in zip(mask_files(tmp_path, "a.b", ".tif"), (1, 100), strict=True):
        array, properties = Tiff3DIO().read_seg(str(file))
        assert (array.shape, array.max()) == ((1, *SHAPE), most)
        assert properties["spacing"] == SPACING
        assert {found.name for found in file.parent.iterdir()} == {"a.b.tif", "a.b.json"}


def test_a_mask_that_is_there_stays_and_the_map_is_of_the_last_prediction(
    tmp_path: Path, made_by: Any, predicted: Any
) -> None:
    mask, uncertainty = mask_files(tmp_path, "a", ".tif")
    write_masks(tmp_path, "a", predicted, PROPERTIES, made_by)
    before = mask.read_bytes()
    predicted.logits[:], predicted.uncertainty[:] = 0, 40
    write_masks(tmp_path, "a", predicted, PROPERTIES, made_by)
    assert mask.read_bytes() == before
    assert Tiff3DIO().read_seg(str(uncertainty))[0].max() == 40


def test_a_nifti_file_cut_short_by_a_full_disk_does_not_stay(
    tmp_path: Path, made_by: Any, predicted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by.plans = PlansManager({**made_by.plans.plans, "image_reader_writer": "SimpleITKIO"})
    made_by.description["file_ending"] = ".nii.gz"
    geometry = {"spacing": (1.5, 1.0, 3.0), "origin": (0.0, 0.0, 0.0), "direction": np.eye(3).ravel()}
    properties = {**PROPERTIES, "sitk_stuff": geometry}
    write_masks(tmp_path / "whole", "a", predicted, properties, made_by)
    stock = SimpleITKIO.write_seg

    def cut_short(writer: Any, segmentation: Any, file: str, properties: Any) -> None:
        stock(writer, segmentation, file, properties)
        Path(file).write_bytes(Path(file).read_bytes()[:-30])

    monkeypatch.setattr(SimpleITKIO, "write_seg", cut_short)
    with pytest.raises(OSError, match=r"a\.nii\.gz was not written whole"):
        write_masks(tmp_path / "cut", "a", predicted, properties, made_by)
    assert [found.name for found in tmp_path.rglob("*.gz")] == ["a.nii.gz"] * 2  # both of the first call


def test_writer_that_fails_leaves_nothing(
    tmp_path: Path, made_by: Any, predicted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_written(writer: Any, segmentation: Any, file: str, properties: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Tiff3DIO, "write_seg", half_written)
    with pytest.raises(OSError, match="no space left"):
        write_masks(tmp_path, "a", predicted, PROPERTIES, made_by)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []
    assert list((tmp_path / "masks").iterdir()) == []
