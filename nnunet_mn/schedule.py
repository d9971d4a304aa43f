"""Iteration -> learning rate, stage and share of unlabeled samples (design: learning-rate-guided sampling)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer

from nnunet_mn.config import MNConfig

POLY_EXPONENT = 0.9  # nnU-Net's PolyLRScheduler
REFRESHES = 4  # of the pseudo-masks that crops of unlabeled cases are centered by
FEWEST_TO_FLOOR = 4  # samples in a batch
PAPER_WARM_UP = 0.0125  # 50 of 4,000 epochs
PAPER_WARM_UP_START = 0.01


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What an iteration's position in the training decides, counted in iterations.

    Counting iterations rather than epochs gives a training of one epoch both stages and a decaying rate too.

    Args:
        total: iterations of the whole training.
        supervised: iterations of the supervised stage, 0 to total.
        preset: `nnunet` (poly decay, share of unlabeled samples guided by the learning rate) or `paper` (warm-up and
            cosine in each stage, share growing linearly).
        unlabeled_share: share of unlabeled samples in the whole co-training stage; None: as the preset has it.
    """

    total: int
    supervised: int
    preset: Literal["nnunet", "paper"] = "nnunet"
    unlabeled_share: float | None = None

    @classmethod
    def of(cls, config: MNConfig, *, total: int) -> "Schedule":
        """The schedule that the settings ask for in a training of some iterations."""
        return cls(
            total=total,
            supervised=round(config.supervised_fraction * total),
            preset=config.preset,
            unlabeled_share=config.unlabeled_share,
        )

    def learning_rate_factor(self, iteration: float) -> float:
        """The learning rate at an iteration as a share of its peak."""
        if self.preset == "nnunet":
            return float((1 - iteration / self.total) ** POLY_EXPONENT)
        warm_up = min(PAPER_WARM_UP * self.total, self.supervised)
        if iteration < warm_up:
            return PAPER_WARM_UP_START + (1 - PAPER_WARM_UP_START) * iteration / warm_up
        if iteration < self.supervised:
            return _cosine((iteration - warm_up) / (self.supervised - warm_up))
        return _cosine((iteration - self.supervised) / (self.total - self.supervised))

    def is_cotraining(self, iteration: float) -> bool:
        """Whether the supervised stage is over."""
        return iteration >= self.supervised

    def unlabeled_fraction(self, iteration: float) -> float:
        """The share of unlabeled samples wanted in a batch, 0 to 1.

        Unless it is fixed, it grows as the learning rate decays (arXiv 2509.15167, learning-rate-guided sampling):
        under `nnunet` it is `1 - lr(t) / lr(T_s)`, under `paper` the linear share of the reference implementation.
        """
        if not self.is_cotraining(iteration):
            return 0.0
        if self.unlabeled_share is not None:
            return self.unlabeled_share
        if self.preset == "paper":
            return (iteration - self.supervised) / (self.total - self.supervised)
        start = self.learning_rate_factor(self.supervised)
        return 1 - self.learning_rate_factor(iteration) / start

    def refresh_due(self, iteration: int) -> int:
        """The latest point, up to an iteration, at which pseudo-masks of whole cases are refreshed; -1 for none yet.

        The first is the end of the supervised stage, unless there is none: a network that has learned nothing finds
        nothing.
        """
        length = self.total - self.supervised
        points = (self.supervised + length * n // REFRESHES for n in range(REFRESHES))
        return max((point for point in points if 0 < point <= iteration), default=-1)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def scale_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every parameter group's rate to a share of its peak, which the group remembers as `peak_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor


class EpochStartRates:
    """Sets the rates of a new epoch when nnU-Net asks its scheduler to.

    nnU-Net's own PolyLRScheduler overwrites all groups with one rate, so that it cannot serve groups of several peaks.

    Args:
        optimizer: whose groups stand at their peak rates now.
        factor: epoch -> share of the peak rate.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self.optimizer = optimizer
        self.factor = factor
        scale_learning_rates(optimizer, factor(0))

    def step(self, epoch: int) -> None:
        """Scale the rates to those of an epoch's first iteration."""
        scale_learning_rates(self.optimizer, self.factor(epoch))


class UnlabeledCounter:
    """Turns the wanted share of unlabeled samples into a number for each batch.

    With `diffusion` the rounding error is carried to the next batch, so that the running mean follows the share also
    for batches of two, where `floor` gives none for most of the training.

    Args:
        batch_size: samples in a batch; at least one of them stays labeled.
        rounding: `diffusion`, the reference's `floor`, or `auto`: `floor` for batches of four and more. With batches
            of four it did better (docs/evidence.md); smaller ones it would leave without unlabeled samples for long.
        carry: the error carried so far, in samples, to go on with a stored state.
    """

    def __init__(
        self, batch_size: int, *, rounding: Literal["auto", "diffusion", "floor"] = "diffusion", carry: float = 0.0
    ) -> None:
        self.batch_size = batch_size
        can_floor = batch_size >= FEWEST_TO_FLOOR
        self.rounding = ("floor" if can_floor else "diffusion") if rounding == "auto" else rounding
        self.carry = carry

    def next(self, fraction: float) -> int:
        """The number of unlabeled samples in the next batch, 0 to `batch_size - 1`."""
        most = self.batch_size - 1
        wanted = min(fraction * self.batch_size, most)
        if self.rounding == "floor":
            return math.floor(wanted + 1e-9)  # 0.6 * 5 is 3, also in floating point
        wanted += self.carry
        count = min(max(round(wanted), 0), most)
        self.carry = min(max(wanted - count, -1.0), 1.0)
        return count


class SharedBatch:
    """How many samples of one rank's part of each batch are labeled, where several ranks and workers draw its parts.

    The number of unlabeled samples in the whole batch follows from the iteration alone, so that everybody who draws
    a part derives the same one without a word: worker `w` of `n` draws the batches `first + w`, `first + w + n`, ...
    Labeled samples come first; a part may hold none of them.

    Args:
        counter: of the whole batch, new.
        schedule: of the training.
        part: this rank's samples of the whole batch.
        first: the iteration of the first batch wanted.
    """

    def __init__(self, counter: UnlabeledCounter, schedule: Schedule, *, part: range, first: int) -> None:
        self.counter = counter
        self.schedule = schedule
        self.part = part
        self.iteration = first
        for past in range(first):
            counter.next(schedule.unlabeled_fraction(past))

    def skip(self, batches: int) -> None:
        """Leave some batches to other workers."""
        for _ in range(batches):
            self.next()

    def next(self) -> tuple[int, int]:
        """Unlabeled samples of the next batch: in the whole of it, and in this rank's part."""
        iteration = min(self.iteration, self.schedule.total)  # workers draw some batches more than are used
        unlabeled = self.counter.next(self.schedule.unlabeled_fraction(iteration))
        self.iteration += 1
        labeled = self.counter.batch_size - unlabeled
        mine = min(max(labeled - self.part.start, 0), len(self.part))
        return unlabeled, len(self.part) - mine
