"""Thumbnails of volumes. They find the same scan again after a flip, a permutation, a padding or a rescaling."""

import base64
import itertools
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

SIDE = 10  # cells along each axis
# Highest correlation of different scans: 0.78 among 19,900 pairs of hippocampi, and among 3,160 pairs of atria.
# Copies: 0.998 and more, 0.97 with one voxel of a thousand times the maximum, 0.91 with a border of one voxel cut off.
ALIKE = 0.9
AT_ONCE = 2048  # unlabeled cases; bounds memory

_ORIENTATIONS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)
]


def thumbnail(volume: np.ndarray) -> str:
    """Ranks of the local contrast in SIDE³ cells, as text.

    Ranks survive any linear change of intensities. Contrast to the neighbors tells scans of one organ apart.

    Args:
        volume: preprocessed voxels (C, Z, Y, X).
    """
    cells = volume.astype(np.float32, copy=False).mean(0)  # (Z, Y, X)
    for _ in range(3):  # each round averages over the last axis and moves it to the front
        *rows, length = cells.shape
        means = cells.reshape(-1, length) @ _shares(length)  # of one matrix: a stack of them takes 40 times as long
        cells = np.moveaxis(means.reshape(*rows, SIDE), -1, 0)
    cells = rankdata(cells.round(6), method="average").reshape(cells.shape)
    around = sum(np.roll(cells, step, axis) for step in (1, -1) for axis in range(3))
    ranks = rankdata(np.nan_to_num(cells - around / 6).round(6), method="average") - 1
    return base64.b64encode((ranks * 255 / (SIDE**3 - 1)).round().astype(np.uint8).tobytes()).decode()


def _shares(length: int) -> np.ndarray:
    """Weights (length, SIDE) of voxels in the mean of each cell. A voxel may belong to two cells in part."""
    edges = np.linspace(0, length, SIDE + 1)
    voxels = np.arange(length)[:, None]
    overlap = np.minimum(edges[1:], voxels + 1) - np.maximum(edges[:-1], voxels)
    shares: np.ndarray = np.clip(overlap, 0, None) * SIDE / length
    return shares.astype(np.float32)


def alike(thumbnails: Sequence[str], others: Sequence[str]) -> list[tuple[int, int, float]]:
    """Pairs of cases that look like one scan, in any of 48 orientations.

    Returns:
        The index in `thumbnails`, the index in `others`, and their correlation.
    """
    turned = np.stack([_unit(_turn(other)) for other in map(_cells, others)])  # (others, 48, SIDE³)
    found = []
    for start in range(0, len(thumbnails), AT_ONCE):
        mine = _unit(np.stack([_cells(text).ravel() for text in thumbnails[start : start + AT_ONCE]]))
        for i, other in enumerate(turned):
            best = (mine @ other.T).max(1)
            found += [(start + int(k), i, float(best[k])) for k in np.flatnonzero(best > ALIKE)]
    return found


def _cells(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape((SIDE,) * 3).astype(np.float32)


def _turn(cells: np.ndarray) -> np.ndarray:
    """All orientations (48, SIDE³) of the cells."""
    return np.stack([cells.transpose(axes)[:: f[0], :: f[1], :: f[2]].ravel() for axes, f in _ORIENTATIONS])


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1. A product of two is their correlation."""
    centered: np.ndarray = rows - rows.mean(-1, keepdims=True)
    unit: np.ndarray = centered / np.maximum(np.linalg.norm(centered, axis=-1, keepdims=True), 1e-6)
    return unit
