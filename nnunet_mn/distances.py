"""Distances between the surfaces of two segmentations."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def hausdorff_95(truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    """The 95th-percentile Hausdorff distance: the larger of the two directed ones, as Metrics Reloaded defines it.

    Args:
        truth, prediction: masks of one shape.
        spacing: mm along each axis.

    Returns:
        Millimeters; NaN if one of the masks is empty: then no distance exists.
    """
    if not truth.any() or not prediction.any():
        return float("nan")
    box = ndimage.find_objects((truth | prediction).view(np.uint8))[0]  # both surfaces lie in it
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (truth, prediction)]
    directed = [_to_surface(to, spacing)[of] for of, to in (surfaces, surfaces[::-1])]
    return float(max(np.percentile(distances, 95) for distances in directed))


def _to_surface(surface: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Distance in mm of every voxel to the nearest one of a surface."""
    return np.asarray(ndimage.distance_transform_edt(~surface, sampling=spacing))
