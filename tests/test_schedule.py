from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_mn.config import MNConfig, Rounding, ScheduleKind
from nnunet_mn.errors import MNError
from nnunet_mn.schedule import (
    DistillationSchedule,
    EpochStartRates,
    Schedule,
    UnlabeledCounts,
    default_unlabeled_weight,
    scale_learning_rates,
)


def _optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def test_rates_at_epoch_starts_are_those_of_nnunet() -> None:
    schedule = Schedule(total=40, supervised=5)
    ours, theirs = _optimizer(0.01), _optimizer(0.01)
    rates = EpochStartRates(ours, lambda epoch: schedule.learning_rate_factor(epoch * 4))
    poly = PolyLRScheduler(theirs, 0.01, max_steps=10)
    for epoch in range(10):
        rates.step(epoch)
        poly.step(epoch)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])


@pytest.mark.parametrize(("fraction", "total"), [(0.9, 2), (0.999, 250), (0.5, 1)])
@pytest.mark.parametrize("kind", ["poly", "cosine"])
def test_a_short_training_ends_with_a_step_of_cotraining(fraction: float, total: int, kind: ScheduleKind) -> None:
    schedule = Schedule.of(MNConfig(supervised_fraction=fraction, schedule=kind), total=total)
    assert schedule.supervised == total - 1
    assert 0 <= schedule.unlabeled_fraction(total - 1) <= 1
    assert 0 <= schedule.learning_rate_factor(total - 1) <= 1


@pytest.mark.parametrize(("total", "supervised"), [(10, 10), (10, -1), (0, 0)])
def test_a_schedule_without_an_iteration_of_cotraining_is_refused(total: int, supervised: int) -> None:
    with pytest.raises(MNError, match=f"supervised is {supervised} and total is {total}: give"):
        Schedule(total=total, supervised=supervised)


def test_groups_keep_the_ratio_of_their_peaks() -> None:
    optimizer = _optimizer(1e-3, 1e-4)
    for factor in (0.5, 0.0, 1.0):
        scale_learning_rates(optimizer, factor)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-3 * factor, 1e-4 * factor])


def test_the_unlabeled_share_is_guided_by_the_learning_rate() -> None:
    schedule = Schedule(total=1000, supervised=125)
    start = schedule.learning_rate_factor(125)
    for t in (125, 400, 999):
        assert schedule.unlabeled_fraction(t) == pytest.approx(1 - schedule.learning_rate_factor(t) / start)
    assert schedule.unlabeled_fraction(124) == 0
    half_time = (1000 + 125) // 2
    # the learning rate guides to nearly the reference's straight line: 0.46 against 0.50 at the middle of co-training
    assert schedule.unlabeled_fraction(half_time) == pytest.approx(0.46, abs=0.01)


@pytest.mark.parametrize("kind", ["poly", "cosine"])
def test_one_epoch_has_both_stages_and_a_decaying_rate(kind: ScheduleKind) -> None:
    schedule = Schedule(total=8, supervised=1, kind=kind)
    assert [schedule.is_cotraining(t) for t in range(8)] == [False] + [True] * 7
    rates = [schedule.learning_rate_factor(t) for t in range(1, 8)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_the_papers_rate_warms_up_decays_and_restarts() -> None:
    schedule = Schedule(total=4000, supervised=500, kind="cosine")
    rate = schedule.learning_rate_factor
    assert rate(0) == pytest.approx(0.01)
    assert rate(50) == pytest.approx(1)
    assert rate(499) == pytest.approx(0, abs=1e-4)
    assert rate(500) == 1
    assert rate(3999) == pytest.approx(0, abs=1e-4)
    assert [schedule.unlabeled_fraction(t) for t in (499, 500, 2250)] == [0, 0, 0.5]


@dataclass(frozen=True, kw_only=True)
class Given(Schedule):
    """Given shares, one an iteration."""

    shares: tuple[float, ...]

    def unlabeled_fraction(self, iteration: float) -> float:
        return self.shares[min(int(iteration), len(self.shares) - 1)]


def _counts(shares: Sequence[float], *, batch_size: int, rounding: Rounding) -> list[int]:
    schedule = Given(total=len(shares), supervised=0, shares=tuple(shares))
    counts = UnlabeledCounts(schedule, batch_size=batch_size, batch="replace", rounding=rounding)
    return [counts.of(iteration) for iteration in range(len(shares))]


@pytest.mark.parametrize("batch_size", [2, 3, 5, 8])
def test_diffused_counts_have_the_capped_share_as_running_mean(batch_size: int) -> None:
    fractions = np.linspace(0, 1, 500)
    counts = np.array(_counts(fractions, batch_size=batch_size, rounding="diffusion"))
    assert counts.min() >= 0
    assert counts.max() <= batch_size - 1
    wanted = np.minimum(fractions * batch_size, batch_size - 1)
    assert np.abs(np.cumsum(counts) - np.cumsum(wanted)).max() <= 1


def test_floor_is_the_references_and_gives_a_batch_of_two_none_for_most_of_the_training() -> None:
    assert _counts((0, 0.19, 0.2, 0.6, 0.99, 1), batch_size=5, rounding="floor") == [0, 0, 1, 3, 4, 4]
    assert _counts((0.49,), batch_size=2, rounding="floor") == [0]
    assert _counts((0.49,), batch_size=2, rounding="diffusion") == [1]


@pytest.mark.parametrize(("batch_size", "rounding"), [(2, "diffusion"), (3, "diffusion"), (4, "floor"), (8, "floor")])
def test_batches_of_four_and_more_are_rounded_down_unless_told_otherwise(batch_size: int, rounding: Rounding) -> None:
    fractions = [i / 40 for i in range(40)]
    auto = _counts(fractions, batch_size=batch_size, rounding="auto")
    assert auto == _counts(fractions, batch_size=batch_size, rounding=rounding)


def test_before_the_first_iteration_nothing_is_unlabeled_and_after_the_last_one_labeled_sample_stays() -> None:
    counts = UnlabeledCounts(Schedule(total=40, supervised=0), batch_size=4, batch="replace")
    assert [counts.of(iteration) for iteration in (-1, 0, 40, 1000)] == [0, 0, 3, 3]


def test_labeled_samples_fill_the_parts_of_a_batch_from_the_first_on() -> None:
    counts = UnlabeledCounts(Schedule(total=40, supervised=5), batch_size=5, batch="replace")
    parts = [range(2), range(2, 5)]
    unlabeled = np.array([[counts.in_part(iteration, part) for part in parts] for iteration in range(40)])
    assert unlabeled.sum(1).tolist() == [counts.of(iteration) for iteration in range(40)]
    assert unlabeled[:, 1].max() == 3  # a part may be all unlabeled
    assert unlabeled[:, 0].max() <= 1  # and one labeled sample stays


def test_samples_on_top_may_be_as_many_as_the_labeled_ones_and_weigh_as_their_share() -> None:
    counts = UnlabeledCounts(Schedule(total=40, supervised=8), batch_size=4, batch="add", rounding="floor")
    assert [counts.of(iteration) for iteration in (7, 8, 40)] == [0, 0, 4]
    assert [counts.weight(iteration) for iteration in (7, 40)] == [0, 1]
    assert all(counts.weight(i) == counts.of(i) / 4 for i in range(41))


def test_samples_on_top_weigh_less_where_labels_are_many() -> None:
    assert [default_unlabeled_weight(n) for n in (1, 4, 8, 16, 32)] == [1, 1, 1, 1 / 4, 1 / 16]
    counts = UnlabeledCounts(Schedule(total=40, supervised=8), batch_size=4, batch="add", rounding="floor")
    assert [counts.weight(iteration, most=0.5) for iteration in (7, 40)] == [0, 0.5]


def test_a_growing_weight_keeps_their_number_at_half_of_the_batch() -> None:
    schedule = Schedule(total=40, supervised=8)
    counts = UnlabeledCounts(schedule, batch_size=4, batch="add", guidance="weight")
    assert [counts.of(iteration) for iteration in (8, 9, 39)] == [0, 2, 2]  # at weight 0 none are drawn
    assert [counts.weight(i) for i in (9, 39)] == [schedule.unlabeled_fraction(i) for i in (9, 39)]


def test_samples_on_top_are_divided_evenly_among_ranks() -> None:
    counts = UnlabeledCounts(Schedule(total=40, supervised=0), batch_size=5, batch="add", rounding="floor", ranks=2)
    for iteration in range(40):
        parts = [counts.in_part(iteration, part) for part in (range(3), range(3, 5))]
        assert parts[0] == parts[1]
        assert sum(parts) == counts.of(iteration)


@pytest.mark.parametrize("batch_size", [2, 4, 5, 8])
@pytest.mark.parametrize(
    "schedule", [Schedule(total=400, supervised=40), DistillationSchedule(total=400, supervised=0)]
)
def test_several_ranks_draw_as_many_samples_on_top_as_one(schedule: Schedule, batch_size: int) -> None:
    """In the mean, and in each tenth of the training: the number follows the learning rate."""

    def tenths(ranks: int) -> np.ndarray:
        counts = UnlabeledCounts(schedule, batch_size=batch_size, batch="add", ranks=ranks)
        assert all(counts.weight(i) == counts.of(i) / batch_size for i in range(400))
        return np.array([counts.of(iteration) for iteration in range(400)]).reshape(10, 40).mean(1)

    for ranks in {1, 2, batch_size}:
        np.testing.assert_allclose(tenths(ranks), tenths(1), atol=ranks * 2 / 40)


def test_samples_that_replace_labeled_ones_have_no_weight_of_their_own() -> None:
    assert UnlabeledCounts(Schedule(total=40, supervised=0), batch_size=4, batch="replace").weight(20) is None


def test_a_student_sees_as_many_unlabeled_samples_as_labeled_ones_and_ends_on_labels_alone() -> None:
    counts = UnlabeledCounts(DistillationSchedule(total=40, supervised=0), batch_size=2, batch="add")
    assert [counts.of(iteration) for iteration in range(40)] == [2] * 36 + [0] * 4
