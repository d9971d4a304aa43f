"""Iteration -> learning rate, stage and share of unlabeled samples."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from nnunet_mn.config import BatchKind, Guidance, MNConfig, Rounding, ScheduleKind
from nnunet_mn.errors import MNError

POLY_EXPONENT = 0.9  # nnU-Net's PolyLRScheduler
REFRESHES = 4  # of the pseudo-masks behind the crops of unlabeled cases
FEWEST_TO_FLOOR = 4  # samples in a batch; a batch of two would wait until the learning rate is halved
FEW_LABELS = 8  # cases; with more, unlabeled samples weigh less (docs/choices.md)
ON_LABELS_ALONE = 0.1  # of a student's training, at its end
PAPER_WARM_UP = 0.0125  # 50 of 4,000 epochs
PAPER_WARM_UP_START = 0.01


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate, stage and share of unlabeled samples at each iteration of a training.

    It counts iterations, not epochs: a training of one epoch has both stages and a decaying rate, too.

    Args:
        total: iterations of the whole training.
        supervised: iterations of the supervised stage, 0 to total - 1.
        kind: `poly` is nnU-Net's decay; the share of unlabeled samples follows the learning rate. `cosine` is the
            paper's: a warm-up, then a cosine in each stage; the share grows linearly.

    Raises:
        MNError: when the supervised stage leaves no iteration for co-training.
    """

    total: int
    supervised: int
    kind: ScheduleKind = "poly"

    def __post_init__(self) -> None:
        if not 0 <= self.supervised < self.total:
            raise MNError(
                f"supervised is {self.supervised} and total is {self.total}: give a total of at least 1, and for the "
                f"supervised stage 0 to total - 1 iterations"
            )

    @classmethod
    def of(cls, config: MNConfig, *, total: int) -> "Schedule":
        """The schedule of the settings, for a training of `total` iterations. At least the last iteration co-trains."""
        supervised = min(round(config.supervised_fraction * total), total - 1)
        return cls(total=total, supervised=supervised, kind=config.schedule)

    def learning_rate_factor(self, iteration: float) -> float:
        """The learning rate at an iteration as a share of its peak. After the end it keeps its last value."""
        iteration = min(iteration, self.total)
        if self.kind == "poly":
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

        It grows as the learning rate decays (arXiv 2509.15167, learning-rate-guided sampling): `1 - lr(t) / lr(T_s)`.
        `cosine` takes the straight line of the reference implementation.
        """
        if not self.is_cotraining(iteration):
            return 0.0
        if self.kind == "cosine":
            return (iteration - self.supervised) / (self.total - self.supervised)
        return 1 - self.learning_rate_factor(iteration) / self.learning_rate_factor(self.supervised)

    def refresh_due(self, iteration: int) -> int:
        """The last iteration up to this one at which foreground is searched anew; -1 for none yet.

        The first is the end of the supervised stage, unless there is none: an untrained network finds nothing.
        """
        length = self.total - self.supervised
        points = (self.supervised + length * n // REFRESHES for n in range(REFRESHES))
        return max((point for point in points if 0 < point <= iteration), default=-1)


@dataclass(frozen=True, kw_only=True)
class DistillationSchedule(Schedule):
    """A fixed share of unlabeled samples, and none in the last tenth: the training ends on true labels.

    Args:
        share: unlabeled samples divided by the planned batch size. With 1 and `add` there are as many as labeled ones.
    """

    share: float = 1.0

    def unlabeled_fraction(self, iteration: float) -> float:
        """The share, and 0 at the end."""
        return 0.0 if iteration >= (1 - ON_LABELS_ALONE) * self.total else self.share

    def refresh_due(self, iteration: int) -> int:
        """The start: the teacher is finished and finds the foreground once."""
        return 0


class HalfUnlabeled(Schedule):
    """The unlabeled share is one half from the end of the supervised stage on."""

    def unlabeled_fraction(self, iteration: float) -> float:
        """0, then one half."""
        return 0.5 if self.is_cotraining(iteration) else 0.0


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def scale_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every parameter group's rate to a share of its peak. The group keeps the peak as `peak_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor


class EpochStartRates:
    """Sets the rates of a new epoch, in the place of nnU-Net's scheduler.

    nnU-Net's own PolyLRScheduler gives all groups one rate. It cannot serve groups with several peaks.

    Args:
        optimizer: its groups stand at their peak rates now.
        factor: epoch -> share of the peak rate.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self.optimizer = optimizer
        self.factor = factor
        scale_learning_rates(optimizer, factor(0))

    def step(self, epoch: int) -> None:
        """Scale the rates to those of an epoch's first iteration."""
        scale_learning_rates(self.optimizer, self.factor(epoch))


class UnlabeledCounts:
    """The number of unlabeled samples in each batch, and their weight. Both follow from the iteration alone.

    Each loader worker and each rank knows them without a message.

    Args:
        schedule: of the training.
        batch_size: samples in a planned batch.
        batch: with `add` unlabeled samples come on top of the planned batch: for each rank at most as many as the
            largest rank has labeled ones. With `replace` they take the place of labeled samples; at least one labeled
            sample stays.
        guidance: what grows as the learning rate decays: the `number` of unlabeled samples, or their `weight` (only
            with `add`). With `weight` their number is always half of the planned batch, rounded up for each rank.
        rounding: `floor` is the paper's code. `diffusion` carries the rest to the next batch: even batches of two get
            unlabeled samples early. `auto` is `floor` for batches of four and more (docs/choices.md).
        ranks: processes that share a batch. Samples on top are divided evenly among them. Their number is a multiple of
            `ranks`, and on average the same as with one process. A batch of 5 on 4 ranks gets up to 8 of them.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        batch_size: int,
        batch: BatchKind,
        guidance: Guidance = "number",
        rounding: Rounding = "auto",
        ranks: int = 1,
    ) -> None:
        self.batch_size, self.on_top, self.ranks = batch_size, batch == "add", ranks
        fractions = [schedule.unlabeled_fraction(iteration) for iteration in range(schedule.total + 1)]
        if guidance == "weight":
            counts = [
                _in_ranks(max(1, batch_size // 2), ranks) * ranks if fraction > 0 else 0 for fraction in fractions
            ]
        else:
            most = batch_size if self.on_top else batch_size - 1
            counts = _rounded([min(fraction * batch_size, most) for fraction in fractions], most, rounding, batch_size)
            if self.on_top:  # evenly among the ranks, and as many in the mean
                counts = [n * ranks for n in _diffuse((n / ranks for n in counts), most=_in_ranks(batch_size, ranks))]
        self._counts = counts
        self._weights = fractions if guidance == "weight" else [count / batch_size for count in self._counts]

    @classmethod
    def from_config(cls, config: MNConfig, schedule: Schedule, *, batch_size: int, ranks: int = 1) -> "UnlabeledCounts":
        """The numbers and weights of the settings."""
        return cls(
            schedule,
            batch_size=batch_size,
            batch=config.batch,
            guidance=config.guidance,
            rounding=config.rounding,
            ranks=ranks,
        )

    def of(self, iteration: int) -> int:
        """Unlabeled samples in an iteration's batch: 0 before the first iteration, the last number after the end."""
        return 0 if iteration < 0 else self._counts[min(iteration, len(self._counts) - 1)]

    def weight(self, iteration: int, *, most: float = 1.0) -> float | None:
        """The weight of their loss beside 1 for the labeled samples; None if all samples share one loss.

        Args:
            iteration: of the training.
            most: the weight of as many unlabeled samples as labeled ones.
        """
        return most * self._weights[min(iteration, len(self._weights) - 1)] if self.on_top else None

    def in_part(self, iteration: int, part: range) -> int:
        """Unlabeled samples in one rank's part of the batch. With `replace` the batch has its labeled samples first."""
        if self.on_top:
            return self.of(iteration) // self.ranks
        n_labeled = self.batch_size - self.of(iteration)
        return len(part) - min(max(n_labeled - part.start, 0), len(part))


def default_unlabeled_weight(n_labeled: int) -> float:
    """The weight of unlabeled samples on top, beside 1 for labeled ones, if there are so many labeled cases.

    Pseudo-masks help most where labels are few. Where they are many, the errors of the masks harm.
    """
    return min(1.0, (FEW_LABELS / n_labeled) ** 2)


def _rounded(wanted: Sequence[float], most: int, rounding: Rounding, batch_size: int) -> list[int]:
    """Whole numbers of samples, 0 to `most`."""
    if rounding == "auto":
        rounding = "floor" if batch_size >= FEWEST_TO_FLOOR else "diffusion"
    return [_floor(number) for number in wanted] if rounding == "floor" else list(_diffuse(wanted, most=most))


def _in_ranks(samples: int, ranks: int) -> int:
    """The largest part of some samples that are divided among ranks."""
    return -(-samples // ranks)


def _floor(wanted: float) -> int:
    return math.floor(wanted + 1e-9)  # 0.6 * 5 is 3, also in floating point


def _diffuse(wanted: Iterable[float], *, most: int) -> Iterator[int]:
    """Round each number and carry the error, at most one, to the next: the running means agree."""
    carry = 0.0
    for number in wanted:
        count = min(max(round(number + carry), 0), most)
        carry = min(max(number + carry - count, -1.0), 1.0)
        yield count
