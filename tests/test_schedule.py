import numpy as np
import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_mn.schedule import EpochStartRates, Schedule, UnlabeledCounter, scale_learning_rates


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


@pytest.mark.parametrize("preset", ["nnunet", "paper"])
def test_a_fixed_share_begins_where_the_supervised_stage_ends(preset: str) -> None:
    schedule = Schedule(total=40, supervised=5, preset=preset, unlabeled_share=0.5)
    assert [schedule.unlabeled_fraction(t) for t in (0, 4, 5, 39)] == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize("preset", ["nnunet", "paper"])
def test_one_epoch_has_both_stages_and_a_decaying_rate(preset: str) -> None:
    schedule = Schedule(total=8, supervised=1, preset=preset)
    assert [schedule.is_cotraining(t) for t in range(8)] == [False] + [True] * 7
    rates = [schedule.learning_rate_factor(t) for t in range(1, 8)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_the_papers_rate_warms_up_decays_and_restarts() -> None:
    schedule = Schedule(total=4000, supervised=500, preset="paper")
    rate = schedule.learning_rate_factor
    assert rate(0) == pytest.approx(0.01)
    assert rate(50) == pytest.approx(1)
    assert rate(499) == pytest.approx(0, abs=1e-4)
    assert rate(500) == 1
    assert rate(3999) == pytest.approx(0, abs=1e-4)
    assert [schedule.unlabeled_fraction(t) for t in (499, 500, 2250)] == [0, 0, 0.5]


@pytest.mark.parametrize("batch_size", [2, 3, 5, 8])
def test_diffused_counts_have_the_capped_share_as_running_mean(batch_size: int) -> None:
    counter = UnlabeledCounter(batch_size)
    wanted = total = 0.0
    for fraction in np.linspace(0, 1, 500):
        count = counter.next(fraction)
        assert 0 <= count <= batch_size - 1
        total += count
        wanted += min(fraction * batch_size, batch_size - 1)
        assert abs(total - wanted) <= 1


def test_floor_is_the_references_and_gives_a_batch_of_two_none_for_most_of_the_training() -> None:
    counter = UnlabeledCounter(5, rounding="floor")
    assert [counter.next(f) for f in (0, 0.19, 0.2, 0.6, 0.99, 1)] == [0, 0, 1, 3, 4, 4]
    assert UnlabeledCounter(2, rounding="floor").next(0.49) == 0
    assert sum(UnlabeledCounter(2, carry=0).next(0.49) for _ in range(1)) == 1


@pytest.mark.parametrize(("batch_size", "rounding"), [(2, "diffusion"), (3, "diffusion"), (4, "floor"), (8, "floor")])
def test_batches_of_four_and_more_are_rounded_down_unless_told_otherwise(batch_size: int, rounding: str) -> None:
    auto, same = UnlabeledCounter(batch_size, rounding="auto"), UnlabeledCounter(batch_size, rounding=rounding)
    fractions = [i / 40 for i in range(40)]
    assert [auto.next(f) for f in fractions] == [same.next(f) for f in fractions]


def test_a_stored_carry_goes_on_where_it_stopped() -> None:
    whole, first = UnlabeledCounter(2), UnlabeledCounter(2)
    expected = [whole.next(0.3) for _ in range(20)]
    begun = [first.next(0.3) for _ in range(7)]
    second = UnlabeledCounter(2, carry=first.carry)
    assert begun + [second.next(0.3) for _ in range(13)] == expected
