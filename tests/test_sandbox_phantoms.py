import numpy as np
import pytest
from scipy import ndimage

from nnunet_mn.sandbox.phantoms import LABELS, Organ, make_phantom, organ_distance
from nnunet_mn.sandbox.scanners import EVEN_COIL
from nnunet_mn.sandbox.volumes import SHAPE

SEEDS = range(12)


@pytest.fixture(scope="module")
def phantoms():
    return [make_phantom(np.random.default_rng(seed), EVEN_COIL) for seed in SEEDS]


def test_one_seed_gives_one_phantom_and_another_seed_another(phantoms):
    again = make_phantom(np.random.default_rng(0), EVEN_COIL)
    assert np.array_equal(again.image, phantoms[0].image)
    assert np.array_equal(again.label, phantoms[0].label)
    assert not np.array_equal(phantoms[1].label, phantoms[0].label)


def test_image_is_finite_float_and_label_is_whole_of_the_same_shape(phantoms):
    for phantom in phantoms:
        assert phantom.image.shape == phantom.label.shape == SHAPE
        assert phantom.image.dtype == np.float32
        assert phantom.label.dtype == np.uint8
        assert np.isfinite(phantom.image).all()


def test_both_parts_are_there_and_each_is_one_piece_that_touches_the_other(phantoms):
    for phantom in phantoms:
        assert set(np.unique(phantom.label)) == set(LABELS.values())
        for label in (LABELS["head"], LABELS["tail"]):
            assert (phantom.label == label).sum() > 100
        pieces, sizes = _pieces(phantom.label > 0)
        assert max(sizes) == sum(sizes), f"the organ fell into {pieces} pieces"


def test_organ_lies_inside_the_volume(phantoms):
    for phantom in phantoms:
        organ = phantom.label > 0
        for axis in range(3):
            faces = np.take(organ, [0, -1], axis=axis)
            assert faces.sum() < 0.02 * organ.sum()


def test_structures_as_bright_as_the_organ_lie_outside_it(phantoms):
    """Else a threshold would solve the task."""
    for phantom in phantoms:
        organ = phantom.label > 0
        low, high = np.percentile(phantom.image[organ], (10, 90))
        alike = (phantom.image >= low) & (phantom.image <= high) & ~organ
        assert alike.sum() > 0.5 * organ.sum()


def test_pose_varies_between_phantoms(phantoms):
    centers = np.array([ndimage.center_of_mass(phantom.label > 0) for phantom in phantoms])
    assert (centers.std(axis=0) > 0.5).all()


@pytest.mark.parametrize("radius", [4.0, 9.0])
def test_straight_organ_of_even_radius_is_a_capsule(radius):
    organ = Organ(
        center=np.array([1.0, -2.0, 3.0]), rotation=np.eye(3), length=20.0, head_radius=radius, tail_radius=radius,
        bend=0.0, split=0.5,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    points = rng.uniform(-20, 20, (500, 3))
    local = points - organ.center
    local[:, 2] *= 1.25  # its depth is flattened
    past_end = np.maximum(np.abs(local[:, 0]) - 10, 0)
    expected = np.sqrt(past_end**2 + (local[:, 1:] ** 2).sum(1)) - radius
    along, distance = organ_distance(organ, points)
    assert np.allclose(distance, expected)
    assert np.allclose(along, local[:, 0] / 20 + 0.5)


def _pieces(mask):
    components, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return count, np.bincount(components.ravel())[1:].tolist()
