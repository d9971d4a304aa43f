"""Spacing and shape of images from their headers, equal to the values of nnU-Net's readers."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import SimpleITK
import tifffile
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from tqdm import tqdm

from nnunet_mn.bridge.cases.images import BadImageError, fault_of_values
from nnunet_mn.bridge.cases.tiff import fault_of_spacing, read_spacing, spacing_file
from nnunet_mn.bridge.processes import map_in_processes
from nnunet_mn.bridge.words import fault_of_path

MOST_VOXELS = 10_000  # along one axis
OTHER_UNIT = 100.0  # mean ratio of spacings; m or µm instead of mm make it 1000
FEWER = "a smaller nnUNet_def_n_proc, or -np or -npfp of nnU-Net's command"

_orientation: Any = nibabel.io_orientation


class Header(NamedTuple):
    """Spacing in mm and shape in voxels of a volume, z first."""

    spacing: tuple[float, ...]
    shape: tuple[int, ...]


def fault_of_unit(header: Header, spacing: Sequence[float]) -> str | None:
    """A sentence if the spacing of a volume seems to have another unit than it should.

    Args:
        header: of the volume.
        spacing: what the volume is resampled to, in mm and in the same order of axes.
    """
    ratio = np.divide(header.spacing, spacing)
    sides = np.round(ratio * header.shape)
    if min(sides) >= 1 and max(sides) <= MOST_VOXELS and 1 / OTHER_UNIT < np.prod(ratio) ** (1 / 3) < OTHER_UNIT:
        return None
    worst = int(np.argmax(np.abs(np.log(ratio))))
    return (
        f"spacing {header.spacing[worst]:g} mm against {spacing[worst]:g} mm of the plans would make "
        f"{sides[worst]:,.0f} voxels a side: check the unit"
    )


def read_headers(
    reader: type[Any], cases: Mapping[str, Sequence[Path]], *, processes: int
) -> tuple[dict[str, Header], dict[str, str]]:
    """Read the header of each case's first channel, with a progress bar.

    Args:
        reader: nnU-Net's reader of the dataset. For an unknown one, images are read whole.
        cases: image files by case name.
        processes: how many; 1 means this process.

    Returns:
        Headers by name, and why the other cases have none.
    """
    headers, unreadable = {}, {}
    results = map_in_processes(partial(_read, reader), cases.items(), processes=processes, remedy=FEWER)
    for name, found in tqdm(results, total=len(cases), desc="Reading image headers"):
        if isinstance(found, Header):
            headers[name] = found
        else:
            unreadable[name] = found
    return dict(sorted(headers.items())), unreadable  # sorted: results come as they are done


def _read(reader: type[Any], case: tuple[str, Sequence[Path]]) -> tuple[str, Header | str]:
    name, images = case
    if fault := fault_of_path(images[0]) or fault_of_spacing(images[0]):
        return name, fault
    try:
        header = _READERS.get(reader, partial(_whole, reader))([str(image) for image in images])
    except BadImageError as error:
        return name, str(error)
    except Exception as error:  # every reader and file format has errors of its own
        return name, f"{images[0]} cannot be read ({' '.join(str(error).split())[-200:] or type(error).__name__})"
    if len(header.shape) != 3 or min(header.shape) < 2 or not (np.asarray(header.spacing) > 0).all():
        return name, f"{images[0]} has shape {header.shape} and spacing {header.spacing}, but M&N needs 3D volumes"
    return name, Header(tuple(map(float, header.spacing)), tuple(map(int, header.shape)))


def _itk(images: Sequence[str]) -> Header:
    header = SimpleITK.ImageFileReader()
    header.SetFileName(images[0])
    header.ReadImageInformation()
    if fault := fault_of_values(header, images[0]):
        raise BadImageError(fault)
    # of four axes the first of ITK's reversed order holds the channels
    spacing, shape = header.GetSpacing()[::-1][-3:], header.GetSize()[::-1][-3:]
    return Header(tuple(map(abs, spacing)), shape)


def _nibabel(images: Sequence[str]) -> Header:
    image: Any = nibabel.load(images[0])
    return Header(image.header.get_zooms()[::-1], image.shape[::-1])


def _nibabel_reoriented(images: Sequence[str]) -> Header:
    image: Any = nibabel.load(images[0])
    order = np.argsort(_orientation(image.affine)[:, 0])  # of the axes once they point along x, y, z
    zooms = image.header.get_zooms()
    return Header(tuple(zooms[axis] for axis in order)[::-1], tuple(image.shape[axis] for axis in order)[::-1])


def _tiff(images: Sequence[str]) -> Header:
    with tifffile.TiffFile(images[0]) as file:
        shape = file.series[0].shape
    beside = spacing_file(images[0])
    return Header(tuple(read_spacing(beside)) if beside is not None else (1.0, 1.0, 1.0), shape)  # as nnU-Net does


def _whole(reader: type[Any], images: Sequence[str]) -> Header:
    data, properties = reader().read_images(images)
    return Header(tuple(properties["spacing"]), data.shape[1:])


_READERS: dict[type[Any], Callable[[Sequence[str]], Header]] = {
    SimpleITKIO: _itk,
    NibabelIO: _nibabel,
    NibabelIOWithReorient: _nibabel_reoriented,
    Tiff3DIO: _tiff,
}
