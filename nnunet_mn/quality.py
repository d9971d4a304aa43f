"""Estimates of how good a mask is, without the truth: only from the probabilities of both networks."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Masks = NDArray[np.bool_]


class Pair(NamedTuple):
    """What both networks say about the same voxels. A structure is a class or a region, without the background.

    Args:
        of_3d, of_2d: probabilities of each structure, `(S, ...)`.
        mask_3d, mask_2d, joint: masks of each structure, `(S, ...)`. The joint ones follow from the mean probabilities.
    """

    of_3d: NDArray[np.floating]
    of_2d: NDArray[np.floating]
    mask_3d: Masks
    mask_2d: Masks
    joint: Masks


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over voxels for each structure, `(S,)`. Those of two parts of a volume add up to those of both.

    Args:
        n_3d, n_2d, n_joint: voxels in each mask.
        n_both: in the masks of both networks.
        n_either: in the mask of at least one network.
        mean: of the mean probability.
        mean_in_joint: of the mean probability in the joint mask.
        entropy: of the mean probability in the masks of either network, between 0 and 1 a voxel.
    """

    n_3d: Numbers
    n_2d: Numbers
    n_joint: Numbers
    n_both: Numbers
    n_either: Numbers
    mean: Numbers
    mean_in_joint: Numbers
    entropy: Numbers

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Sums)})

    @property
    def disagreement(self) -> Numbers:
        """1 - Dice between the masks of both networks. NaN if both are empty."""
        return 1 - _ratio(2 * self.n_both, self.n_3d + self.n_2d)

    @property
    def mean_entropy(self) -> Numbers:
        """Mean entropy where at least one network sees the structure, between 0 and 1. NaN if neither does."""
        return _ratio(self.entropy, self.n_either)

    @property
    def expected_dice(self) -> Numbers:
        """Dice of the joint mask if the mean probabilities were right. NaN if the mask is empty.

        This is the default estimate of the true Dice. benchmarks/quality.py compares it with others.
        """
        expected = _ratio(2 * self.mean_in_joint, self.mean + self.n_joint)
        return np.where(self.n_joint > 0, expected, np.nan)


def sums_of(pair: Pair) -> Sums:
    """The sums of a volume, or of a part of it."""
    mean = (pair.of_3d + pair.of_2d) / 2
    either = pair.mask_3d | pair.mask_2d
    return Sums(
        n_3d=_sum(pair.mask_3d),
        n_2d=_sum(pair.mask_2d),
        n_joint=_sum(pair.joint),
        n_both=_sum(pair.mask_3d & pair.mask_2d),
        n_either=_sum(either),
        mean=_sum(mean),
        mean_in_joint=_sum(mean * pair.joint),
        entropy=_sum(binary_entropy(mean) * either),
    )


def binary_entropy(probability: NDArray[np.floating]) -> NDArray[np.floating]:
    """Entropy in bits of a yes or no: 0 where it is certain, 1 at a probability of a half."""
    p = np.clip(probability, 1e-7, 1 - 1e-7)
    entropy: NDArray[np.floating] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return entropy


def _sum(values: NDArray[np.generic]) -> Numbers:
    return np.asarray(values.reshape(len(values), -1).sum(1, dtype=np.float64))


def _ratio(part: Numbers, whole: Numbers) -> Numbers:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
