"""Headers say what nnU-Net's readers say."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunet_mn.bridge.cases.headers import Header, read_headers
from nnunet_mn.bridge.cases.images import read_images
from nnunet_mn.errors import MNError


def _by_reader(reader: type[Any], image: Path) -> Header:
    data, properties = reader().read_images([str(image)])
    return Header(tuple(map(float, properties["spacing"])), data.shape[1:])


def _by_header(reader: type[Any], image: Path) -> Header:
    headers, unreadable = read_headers(reader, {"case": [image]}, processes=1)
    assert unreadable == {}
    return headers["case"]


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
def test_nifti_in_any_orientation(tmp_path: Path, reader: type[Any]) -> None:
    affine = np.array([[0, 0, -3.0, 0], [1.5, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])
    image = tmp_path / "a_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), affine), image)
    mine, theirs = _by_header(reader, image), _by_reader(reader, image)
    assert mine.shape == theirs.shape
    assert mine.spacing == pytest.approx(theirs.spacing)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_formats_of_itk(tmp_path: Path, volume_tools: Any, ending: str) -> None:
    image = tmp_path / f"a_0000{ending}"
    volume_tools.write(np.zeros((4, 5, 6), np.float32), image, spacing=(0.5, 1.0, 2.0))
    assert _by_header(SimpleITKIO, image) == _by_reader(SimpleITKIO, image) == Header((2.0, 1.0, 0.5), (4, 5, 6))


@pytest.mark.parametrize("spacing", [None, [3, 1, 1]])
def test_tiff_with_and_without_its_file_of_spacing(tmp_path: Path, spacing: list[float] | None) -> None:
    image = tmp_path / "a_0000.tif"
    tifffile.imwrite(image, np.zeros((4, 5, 6), np.uint16), photometric="minisblack")
    if spacing:
        (tmp_path / "a.json").write_text(json.dumps({"spacing": spacing}))
    assert _by_header(Tiff3DIO, image) == _by_reader(Tiff3DIO, image)


def test_broken_file_of_spacing_is_named(tmp_path: Path) -> None:
    image = tmp_path / "a_0000.tif"
    tifffile.imwrite(image, np.zeros((4, 5, 6), np.uint16), photometric="minisblack")
    (tmp_path / "a.json").write_text('{"spaces": [3, 1, 1]}')
    headers, unreadable = read_headers(Tiff3DIO, {"case": [image]}, processes=1)
    assert headers == {}
    assert "a.json holds no spacing of its image (KeyError: 'spacing')" in unreadable["case"]


def test_a_reader_of_the_users_own_reads_the_image(tmp_path: Path, volume_tools: Any) -> None:
    class Own(SimpleITKIO):
        pass

    image = tmp_path / "a_0000.nii.gz"
    volume_tools.write(np.zeros((4, 5, 6), np.float32), image)
    assert _by_header(Own, image).shape == (4, 5, 6)


def test_what_cannot_be_read_is_named(tmp_path: Path, volume_tools: Any) -> None:
    (tmp_path / "broken_0000.nii.gz").write_bytes(b"no image")
    volume_tools.write(np.zeros((1, 5, 6), np.float32), tmp_path / "flat_0000.nii.gz")
    cases = {name: [tmp_path / f"{name}_0000.nii.gz"] for name in ("broken", "flat")}
    headers, unreadable = read_headers(SimpleITKIO, cases, processes=1)
    assert headers == {}
    assert "broken_0000.nii.gz cannot be read" in unreadable["broken"]
    assert "shape (1, 5, 6)" in unreadable["flat"]


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIOWithReorient])
def test_channels_in_several_orientations_are_fine_for_a_reader_that_aligns_them(
    tmp_path: Path, reader: type[Any]
) -> None:
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32))
    files = [str(tmp_path / f"case_000{channel}.nii.gz") for channel in range(2)]
    SimpleITK.WriteImage(image, files[0])
    SimpleITK.WriteImage(SimpleITK.DICOMOrient(image, "RPS"), files[1])
    if reader is NibabelIOWithReorient:
        data, _ = read_images(reader(), files)
        np.testing.assert_array_equal(data[0], data[1])
    else:
        with pytest.raises(MNError, match="their directions differ; align them"):
            read_images(reader(), files)
