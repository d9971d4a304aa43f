"""Estimates of quality: functions of two networks' probabilities alone."""

import math
from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray

from nnunet_mn.quality import Pair, Sums, binary_entropy, sums_of


def pair(of_3d: NDArray[np.floating], of_2d: NDArray[np.floating]) -> Pair:
    return Pair(of_3d, of_2d, of_3d > 0.5, of_2d > 0.5, (of_3d + of_2d) / 2 > 0.5)


def random_pair(seed: int = 0, shape: tuple[int, ...] = (2, 6, 5, 4)) -> Pair:
    return pair(*np.random.default_rng(seed).random((2, *shape)))


def part_of(whole: Pair, part: slice) -> Pair:
    return Pair(*(values[:, part] for values in whole))


def test_sums_of_parts_add_up_to_those_of_the_whole() -> None:
    whole = random_pair()
    added = sums_of(part_of(whole, slice(2))) + sums_of(part_of(whole, slice(2, None)))
    for field in fields(Sums):
        assert getattr(added, field.name) == pytest.approx(getattr(sums_of(whole), field.name))


def test_disagreement_is_one_minus_the_dice_of_both_masks() -> None:
    whole = random_pair()
    for i, found in enumerate(sums_of(whole).disagreement):
        first, second = set(np.flatnonzero(whole.mask_3d[i])), set(np.flatnonzero(whole.mask_2d[i]))
        assert found == pytest.approx(1 - 2 * len(first & second) / (len(first) + len(second)))


def test_expected_dice_is_that_of_truths_drawn_from_the_mean() -> None:
    generator = np.random.default_rng(1)
    p = generator.random((1, 12, 12, 12))
    mask = p[0] > 0.5
    truths = [generator.random(p.shape[1:]) < p[0] for _ in range(50)]
    drawn = np.mean([2 * (truth & mask).sum() / (truth.sum() + mask.sum()) for truth in truths])
    assert sums_of(pair(p, p)).expected_dice[0] == pytest.approx(drawn, abs=0.01)


def test_sure_networks_that_agree_are_perfect() -> None:
    mask = (np.random.default_rng(0).random((1, 4, 4, 4)) > 0.5).astype(float)
    found = sums_of(pair(mask, mask))
    assert found.disagreement[0] == 0
    assert found.expected_dice[0] == pytest.approx(1)
    assert found.mean_entropy[0] == pytest.approx(0, abs=1e-4)


def test_less_agreement_and_less_confidence_lower_the_estimate() -> None:
    mask = np.zeros((1, 8, 8, 8))
    mask[:, 2:6, 2:6, 2:6] = 1
    sure = sums_of(pair(mask, mask)).expected_dice[0]
    unsure = sums_of(pair(0.2 + 0.6 * mask, 0.2 + 0.6 * mask)).expected_dice[0]
    apart = sums_of(pair(mask, 0.9 * np.roll(mask, 1, axis=1))).expected_dice[0]
    assert unsure < sure
    assert apart < sure


def test_what_no_network_sees_has_no_numbers() -> None:
    nothing = np.zeros((1, 3, 3, 3))
    found = sums_of(pair(nothing, nothing))
    for value in (found.disagreement, found.mean_entropy, found.expected_dice):
        assert math.isnan(value[0])


def test_entropy_is_one_bit_at_a_half_and_none_where_it_is_certain() -> None:
    assert binary_entropy(np.array([0.0, 0.5, 1.0])) == pytest.approx([0, 1, 0], abs=1e-4)
    assert binary_entropy(np.array([0.2])) == pytest.approx(binary_entropy(np.array([0.8])))
