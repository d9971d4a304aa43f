import numpy as np
import pytest

from nnunet_mn.sandbox.phantoms import make_phantom
from nnunet_mn.sandbox.scanners import EVEN_COIL, SURFACE_COIL, acquire
from nnunet_mn.sandbox.volumes import SHAPE

SEEDS = range(8)


def _contrast_of_halves(scan):
    """The largest ratio of the mean brightness of two opposite halves."""
    ratios = []
    for axis in range(3):
        low, high = np.array_split(scan, 2, axis=axis)
        ratios.append(max(low.mean() / high.mean(), high.mean() / low.mean()))
    return max(ratios)


def test_only_the_surface_coil_makes_one_side_of_an_even_object_brighter():
    even, surface = (
        [_contrast_of_halves(acquire(np.random.default_rng(seed), np.ones(SHAPE), scanner)) for seed in SEEDS]
        for scanner in (EVEN_COIL, SURFACE_COIL)
    )
    assert max(even) < 1.2
    assert np.median(surface) > 1.3


@pytest.mark.parametrize("seed", SEEDS)
def test_scanner_changes_the_image_of_a_phantom_but_not_its_label(seed):
    one, other = (make_phantom(np.random.default_rng(seed), scanner) for scanner in (EVEN_COIL, SURFACE_COIL))
    assert np.array_equal(one.label, other.label)
    assert not np.array_equal(one.image, other.image)
    assert np.isfinite(other.image).all()
