"""Slices of a case as small SVG pictures: the image, and the contours of masks over it."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image

PLANE_PIXELS, THUMBNAIL_PIXELS = 224, 96  # the longer side of a picture
JPEG_QUALITY = 72
VEIL_COLOR = [0, 158, 115]  # Okabe-Ito bluish green


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a case's pictures show.

    Args:
        image: one channel, `(D, H, W)`.
        masks: by the name of their contours, each `(S, D, H, W)` with a mask for each structure.
        uncertainty: percent, `(D, H, W)`.
        spacing: mm along each axis.
    """

    image: NDArray[np.floating]
    masks: Mapping[str, NDArray[np.bool_]]
    uncertainty: NDArray[np.uint8]
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """A slice: its SVG, the axis across it, and its number from 0 on."""

    svg: str
    axis: int
    slice: int


def three_planes(shown: Shown, where: NDArray[np.bool_]) -> list[Picture]:
    """A slice across each axis: the one with most voxels of `where` `(D, H, W)`; the middle one if there are none."""
    return [_picture(shown, axis, _fullest(where, axis), PLANE_PIXELS) for axis in range(3)]


def small_picture(shown: Shown, where: NDArray[np.bool_]) -> str:
    """A small slice across the first axis, which has the largest spacing."""
    return _picture(shown, 0, _fullest(where, 0), THUMBNAIL_PIXELS).svg


def _fullest(where: NDArray[np.bool_], axis: int) -> int:
    counts = where.sum(tuple(i for i in range(3) if i != axis))
    return int(counts.argmax()) if counts.any() else where.shape[axis] // 2


def _picture(shown: Shown, axis: int, number: int, pixels: int) -> Picture:
    cut = (slice(None),) * axis + (number,)
    plane: NDArray[np.floating] = shown.image[cut]  # (H, W)
    step = ceil(max(plane.shape) / pixels)
    tall, wide = (step * spacing for i, spacing in enumerate(shown.spacing) if i != axis)  # mm of a pixel
    height, width = (len(range(0, side, step)) for side in plane.shape)
    size = f'width="{width * wide:.1f}" height="{height * tall:.1f}"'
    photo = _jpeg(_gray(plane, shown.image)[::step, ::step])
    parts = [f'<image href="data:image/jpeg;base64,{photo}" {size} preserveAspectRatio="none"/>']
    if pixels == PLANE_PIXELS:
        veil = _veil(shown.uncertainty[cut][::step, ::step])
        parts.append(f'<image class="unsure" href="data:image/png;base64,{veil}" {size} preserveAspectRatio="none"/>')
    parts.append(f'<g transform="scale({wide / 2:.4g} {tall / 2:.4g})">')
    for name, masks in shown.masks.items():
        for i, mask in enumerate(masks[(slice(None), *cut)][:, ::step, ::step]):
            if path := _contour(mask):
                parts.append(f'<path class="{name} s{i}" d="{path}"/>')
    view = f"0 0 {width * wide:.1f} {height * tall:.1f}"
    return Picture(f'<svg class="plane" viewBox="{view}" aria-hidden="true">{"".join(parts)}</g></svg>', axis, number)


def _gray(plane: NDArray[np.floating], volume: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Gray values by the percentiles of the whole volume."""
    low, high = np.percentile(volume[:: ceil(volume.shape[0] / 32)], (1, 99.7))
    scaled = (plane - low) / max(high - low, 1e-6)
    return np.asarray(np.clip(255 * scaled, 0, 255), np.uint8)


def _jpeg(gray: NDArray[np.uint8]) -> str:
    return _encoded(Image.fromarray(gray), "JPEG", quality=JPEG_QUALITY, optimize=True)


def _veil(percent: NDArray[np.uint8]) -> str:
    """A colored layer, the denser the more uncertain. Few levels keep it small."""
    levels = (percent // 10).astype(np.uint8)
    image = Image.frombytes("P", levels.shape[::-1], levels.tobytes())
    image.putpalette(VEIL_COLOR * 11)
    return _encoded(image, "PNG", optimize=True, transparency=bytes(min(255, 22 * i) for i in range(11)))


def _encoded(image: Image.Image, kind: str, **options: object) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _contour(mask: NDArray[np.bool_]) -> str:
    """The outline of a mask as an SVG path, in half pixels."""
    if not mask.any():
        return ""
    lines: Sequence[NDArray[np.float64]] = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    return "".join(_path(np.rint(2 * line - 1).astype(int)) for line in lines)


def _path(points: NDArray[np.integer]) -> str:
    """A closed line: its first point, then the steps."""
    steps = np.diff(points, axis=0)[:-1]
    return f"M{points[0, 0]} {points[0, 1]}l" + " ".join(f"{x} {y}" for x, y in steps) + "z"
