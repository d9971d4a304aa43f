import math

import numpy as np
import pytest

from nnunet_mn.distances import hausdorff_95

SPACING = (3.0, 1.5, 1.0)


def _box(shape, low, high):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def _surface(mask):
    """Voxels of the mask with a face neighbor outside it, found one by one; the border counts as outside."""
    padded = np.pad(mask, 1)
    steps = [step * np.eye(3, dtype=int)[axis] for axis in range(3) for step in (-1, 1)]
    found = [p for p in np.argwhere(padded) if not all(padded[tuple(p + step)] for step in steps)]
    return np.array(found) - 1


def _brute_force(truth, prediction, spacing):
    a, b = _surface(truth) * np.array(spacing), _surface(prediction) * np.array(spacing)
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_distances_of_all_pairs_of_surface_voxels(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = rng.random((2, 6, 7, 8)) > 0.7
    assert hausdorff_95(truth, prediction, SPACING) == pytest.approx(_brute_force(truth, prediction, SPACING))


def test_of_shifted_boxes_is_the_shift_in_mm():
    truth, prediction = _box((9, 20, 20), (2, 4, 4), (5, 12, 12)), _box((9, 20, 20), (4, 4, 4), (7, 12, 12))
    assert hausdorff_95(truth, prediction, SPACING) == pytest.approx(6.0)


def test_of_equal_masks_is_zero_and_order_does_not_matter():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 5, 5)) > 0.5
    assert hausdorff_95(a, a, SPACING) == 0
    assert hausdorff_95(a, b, SPACING) == hausdorff_95(b, a, SPACING)


def test_does_not_exist_for_an_empty_mask():
    full, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    assert math.isnan(hausdorff_95(full, empty, SPACING))
    assert math.isnan(hausdorff_95(empty, full, SPACING))
