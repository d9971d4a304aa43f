"""Raw image files: the cases of a folder, and whether a case can be read and used."""

import contextlib
import filecmp
import gzip
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import SimpleITK
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_mn.bridge.cases.tiff import fault_of_spacing
from nnunet_mn.bridge.words import fault_of_path, name_some, printable
from nnunet_mn.errors import MNError


class BadImageError(MNError):
    """An unusable image. With `--skip-bad` its case is left out."""


class ImageFolder(NamedTuple):
    """The image files of a folder, sorted into cases.

    Attributes:
        cases: file names of each case, in the order of the channels.
        unnamed: files with the right ending, but without the channel's number.
        ignored: visible files with another ending.
        folders: visible folders inside of it.
    """

    cases: dict[str, list[str]]
    unnamed: list[str]
    ignored: list[str]
    folders: list[str]


def visible_entries(folder: Path) -> list[tuple[str, bool]]:
    """The sorted names in a folder, each with whether it is a folder. A missing folder holds none.

    Raises:
        MNError: when the folder cannot be listed, as a link without a target.
    """
    if fault := fault_of_path(folder):
        raise MNError(fault)
    try:
        with os.scandir(folder) as entries:
            return sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MNError(f"{folder} cannot be listed ({error.strerror}); correct or remove it") from error


def scan_folder(folder: Path, *, ending: str) -> ImageFolder:
    """Sort the files `NAME_0000.ext` of a folder into cases.

    Args:
        folder: as in `visible_entries`. A link without a target counts as a file.
        ending: of image files, with the leading dot.

    Raises:
        MNError: as `visible_entries`.
    """
    found = ImageFolder({}, [], [], [])
    for file, is_folder in visible_entries(folder):
        stem = file.removesuffix(ending)
        channel = stem[-4:]
        if is_folder:
            found.folders.append(file)
        elif stem == file:
            found.ignored.append(file)
        elif len(stem) > 5 and stem[-5] == "_" and channel.isascii() and channel.isdigit():
            found.cases.setdefault(printable(stem[:-5]), []).append(file)
        else:
            found.unnamed.append(file)
    return found


def check_channels(name: str, files: Sequence[str], *, folder: Path, ending: str, channels: int) -> None:
    """Raise an MNError with the names of a case's missing and surplus files."""
    expected = [f"{name}_{c:04d}{ending}" for c in range(channels)]
    if list(files) == expected or (
        list(files) == expected[:1] and _read_header(folder / expected[0]).GetDimension() == 4
    ):
        return  # one 4D file may hold all channels
    missing = [f for f in expected if f not in files]
    surplus = [f for f in files if f not in expected]
    wrong = [f"{what} {name_some(which)}" for what, which in (("lacks", missing), ("has in surplus", surplus)) if which]
    raise MNError(
        f"case '{name}' in {folder} {' and '.join(wrong)}: dataset.json names {channels} channel(s), so it needs "
        f"{name_some(expected)}; add or remove these files"
    )


def reader_of(dataset_json: dict[str, Any], image: Path) -> Any:
    """nnU-Net's reader of a dataset, chosen as stock does, with one of its images.

    Two readers know the ending `.tif`. Stock takes the first that reads the image.
    """
    reader = determine_reader_writer_from_dataset_json(dataset_json, verbose=False)
    if reader is NaturalImage2DIO:
        unheard = io.StringIO()
        with (
            contextlib.redirect_stdout(unheard),
            contextlib.redirect_stderr(unheard),
            contextlib.suppress(RuntimeError),  # raised if none reads it
        ):
            reader = determine_reader_writer_from_dataset_json(dataset_json, str(image), verbose=False)
    return reader()


def read_images(
    reader: Any, images: Sequence[str], *, channels: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the files of one case with one of nnU-Net's readers, and refuse data unfit for training.

    Args:
        reader: an instance of nnU-Net's reader.
        images: one file per channel.
        channels: the number to insist on.

    Returns:
        Voxels (C, Z, Y, X) and the reader's properties.

    Raises:
        BadImageError: naming the file, when one is unreadable or unusable.
    """
    try:
        for image in images:
            _check_header(image)
        data, properties = _read_aside(reader, images)
        for image in images:
            check_nifti(image)
    except BadImageError:
        raise
    except MemoryError as error:
        raise MNError(f"{images[0]} does not fit into memory: use fewer processes or a machine with more") from error
    except Exception as error:  # every reader and file format has errors of its own
        raise BadImageError(_why_unreadable(reader, images, error)) from error
    _check_voxels(data, properties, images, channels)
    if not isinstance(reader, NibabelIOWithReorient):
        _check_directions(images)
    return data, properties


def _read_aside(reader: Any, images: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Read with what the reader prints on standard error: a command's JSON may be on standard output."""
    with contextlib.redirect_stdout(sys.stderr):
        data, properties = reader.read_images(list(images))
    return data, properties


def _why_unreadable(reader: Any, images: Sequence[str], error: Exception) -> str:
    """Find the file at fault: nnU-Net's readers do not say it."""
    geometry = []
    for image in images:
        try:
            data, properties = _read_aside(reader, [image])
            check_nifti(image)
        except Exception as own:
            reason = " ".join(str(own).split()) or type(own).__name__
            return f"{image} cannot be read ({reason[-200:]}); restore it or remove the case"
        geometry.append(f"{image} of shape {data.shape[1:]} and spacing {tuple(map(float, properties['spacing']))}")
    if len(images) > 1:
        return f"the channels of one case differ in geometry: {'; '.join(geometry)}; resample them to one grid"
    return f"{images[0]} cannot be read ({error}); restore it or remove the case"


def _check_voxels(data: np.ndarray, properties: dict[str, Any], images: Sequence[str], channels: int | None) -> None:
    """Raise a BadImageError for an array (C, Z, Y, X) unfit for training. nnU-Net reads it without a word."""
    named = name_some(list(images))
    spacing = np.asarray(properties["spacing"], dtype=float)
    if channels is not None and data.shape[0] != channels:
        raise BadImageError(
            f"{named} has {data.shape[0]} channel(s), but dataset.json names {channels}; correct one of them"
        )
    if min(data.shape[1:]) < 2:
        raise BadImageError(f"{named} has shape {data.shape[1:]}, but M&N needs 3D volumes; remove the case")
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise BadImageError(f"{named} has spacing {tuple(spacing.tolist())}; write a positive one into its header")
    for number, channel in enumerate(data):
        _check_finite(channel, images[min(number, len(images) - 1)])  # one 4D file may hold all channels
    if data.min() == data.max():
        raise BadImageError(f"{named} has the same value, {float(data.flat[0]):g}, in every voxel; remove the case")


def _check_header(image: str) -> None:
    if fault := fault_of_path(image) or fault_of_values(_read_header(Path(image)), image) or fault_of_spacing(image):
        raise BadImageError(fault)


def fault_of_values(header: SimpleITK.ImageFileReader, image: str) -> str | None:
    """A sentence if an image has several values per voxel, as colors are."""
    if (values := header.GetNumberOfComponents()) > 1:
        return f"{image} has {values} values per voxel, as a color image; write one file per channel, or gray values"
    return None


def check_nifti(image: str) -> None:
    """Read a NIfTI file a second time. ITK reads NaNs, and the rest of a truncated file, as zeros.

    Raises:
        BadImageError: when voxels are NaN or infinite.
        OSError, ValueError, EOFError: when the file is truncated.
    """
    if image.endswith((".nii", ".nii.gz")):
        stored = _load_nifti(image).dataobj
        _check_finite(np.asanyarray(stored.get_unscaled() if hasattr(stored, "get_unscaled") else stored), image)


def _load_nifti(image: str) -> Any:
    """Like ITK, read a file whose name has the wrong ending: `.nii.gz` without compression, or `.nii` with it."""
    with open(image, "rb") as stream:
        is_compressed = stream.read(2) == b"\x1f\x8b"
    if is_compressed == image.endswith(".gz"):
        return nibabel.load(image)
    whole = Path(image).read_bytes()
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(whole) if is_compressed else whole)


def _check_finite(array: np.ndarray, image: str) -> None:
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise BadImageError(f"{image} has {count} voxels that are NaN or infinite; replace them or remove the case")


def _read_header(image: Path) -> SimpleITK.ImageFileReader:
    """ITK's reader with the header of a file. Formats unknown to ITK leave it at its defaults."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(image))
    with contextlib.suppress(RuntimeError):  # nnU-Net reads no direction from other formats
        reader.ReadImageInformation()
    return reader


def _check_directions(images: Sequence[str]) -> None:
    """Raise a BadImageError for channels with different directions. nnU-Net's reader only prints a remark."""
    headers = {image: _read_header(Path(image)) for image in images} if len(images) > 1 else {}
    directions = {i: np.asarray(header.GetDirection()) for i, header in headers.items() if header.GetDimension() == 3}
    first = next(iter(directions), "")
    for image, direction in directions.items():
        if not np.allclose(direction, directions[first], atol=1e-3):
            raise BadImageError(
                f"{first} and {image} are channels of one case, but their directions differ; align them"
            )


def same_voxels(first: Sequence[Path], second: Sequence[Path], *, dataset_json: dict[str, Any]) -> bool:
    """Whether two cases hold the same voxels. Their files may differ.

    Raises:
        BadImageError: when files differ in bytes and one cannot be read.
    """
    for image in (*first, *second):
        if fault := fault_of_path(image):
            raise BadImageError(fault)
    if len(first) == len(second) and all(filecmp.cmp(a, b, shallow=False) for a, b in zip(first, second, strict=True)):
        return True
    reader = reader_of(dataset_json, first[0])
    voxels, _ = read_images(reader, [str(p) for p in first])
    others, _ = read_images(reader, [str(p) for p in second])
    return bool(np.array_equal(voxels, others))
