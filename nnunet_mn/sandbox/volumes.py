"""The grid of the demo's volumes, and smooth noise on it."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array: TypeAlias = NDArray[np.float64]

SHAPE = (12, 40, 40)  # voxels along z, y, x: one window of the training's patch
SPACING = (5.6, 1.8, 1.8)  # mm along z, y, x: slices are thick, as in much of clinical MR; 2D networks fit them


def positions() -> Array:
    """Positions of all voxels in mm, the origin in the middle: (z, y, x, 3)."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def smooth(volume: Array, *, sigma_mm: float) -> Array:
    """The volume after a Gaussian filter."""
    filtered: Array = ndimage.gaussian_filter(volume, [sigma_mm / s for s in SPACING], mode="nearest")
    return filtered


def texture(rng: np.random.Generator, *, sigma_mm: float) -> Array:
    """Smooth noise of zero mean and unit standard deviation."""
    noise = smooth(rng.normal(size=SHAPE), sigma_mm=sigma_mm)
    return (noise - float(noise.mean())) / float(noise.std())


def unit_vector(rng: np.random.Generator) -> Array:
    """A direction, uniform on the sphere."""
    vector = rng.normal(size=3)
    return vector / float(np.linalg.norm(vector))
