"""The same scan is found again, and no other one."""

import itertools
import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_mn.bridge.preprocessing.thumbnails import alike, thumbnail


def scan(seed: int) -> np.ndarray:
    """A smooth ellipsoid, the same in every scan, with an anatomy of its own (1, Z, Y, X)."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (30, 40, 25)), indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=inside.shape), 2)
    return (inside + 3 * noise)[None].astype(np.float32)


@pytest.mark.parametrize("axes", list(itertools.permutations((1, 2, 3))))
def test_scan_is_found_in_every_orientation(axes: tuple[int, ...]) -> None:
    turned = scan(0).transpose(0, *axes)[:, ::-1, :, ::-1]
    (pair,) = alike([thumbnail(scan(1)), thumbnail(turned)], [thumbnail(scan(0)), thumbnail(scan(2))])
    assert pair[:2] == (1, 0)
    assert pair[2] > 0.999


def test_scan_is_found_after_a_change_of_intensities_and_of_one_voxel() -> None:
    changed = 100 * scan(0) - 3
    changed[0, 10, 10, 10] = 4 * changed.max()
    ((_, _, same),) = alike([thumbnail(changed)], [thumbnail(scan(0))])
    assert same > 0.95


def test_different_scans_are_not_alike() -> None:
    thumbnails = [thumbnail(scan(seed)) for seed in range(40)]
    assert alike(thumbnails[20:], thumbnails[:20]) == []


@pytest.mark.parametrize("shape", [(1, 2, 3, 5), (2, 300, 7, 11)])
def test_volume_of_any_size_has_a_thumbnail(shape: tuple[int, ...]) -> None:
    text = thumbnail(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    assert alike([text], [text])[0][:2] == (0, 0)


def test_constant_volume_is_alike_to_nothing() -> None:
    text = thumbnail(np.zeros((1, 20, 20, 20), np.float32))
    assert alike([text], [text, thumbnail(scan(0))]) == []


def test_many_cases_take_seconds() -> None:
    val = [thumbnail(scan(seed)) for seed in range(20)] * 3
    unlabeled = [thumbnail(scan(seed)) for seed in range(100, 125)] * 100
    start = time.monotonic()
    assert alike(unlabeled, val) == []
    assert time.monotonic() - start < 60
