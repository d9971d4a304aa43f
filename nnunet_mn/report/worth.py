"""What the estimated Dice was worth where it was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """Rank correlation of estimated and true Dice over the unlabeled cases of a training.

    Args:
        data: in words.
        dataset: its name.
        cases: unlabeled ones.
        correlation: Spearman's.
    """

    data: str
    dataset: str
    cases: int
    correlation: float


# From benchmarks/results/quality.json, which benchmarks/quality.py writes. A test compares.
MEASURED: tuple[Measured, ...] = ()
