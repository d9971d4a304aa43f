"""The spacing of a TIFF stack. nnU-Net's reader takes it from the file NAME.json beside NAME_0000.tif."""

import json
import math
from pathlib import Path

ENDINGS = (".tif", ".tiff")


def spacing_file(image: str | Path) -> Path | None:
    """The file beside an image that holds its spacing, or None if there is none."""
    path = Path(image)
    file = path.with_name(f"{path.stem[: -len('_0000')]}.json")
    return file if path.suffix.lower() in ENDINGS and file.is_file() else None


def read_spacing(file: Path) -> list[float]:
    """The spacing in such a file, in mm and z first.

    Raises:
        ValueError, TypeError, KeyError: when it holds none.
    """
    spacing = [float(number) for number in json.loads(file.read_bytes())["spacing"]]
    if len(spacing) != 3 or not all(0 < number < math.inf for number in spacing):
        raise ValueError(f"{spacing} is no spacing of three axes")
    return spacing


def fault_of_spacing(image: str | Path) -> str | None:
    """A sentence if the file beside an image holds no spacing."""
    file = spacing_file(image)
    if file is None:
        return None
    try:
        read_spacing(file)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return (
            f"{file} holds no spacing of its image ({type(error).__name__}: {error}); write three positive numbers of "
            f'mm into it, z first, as {{"spacing": [3, 1, 1]}}'
        )
    return None
