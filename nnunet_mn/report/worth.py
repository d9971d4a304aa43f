"""What the estimated Dice was worth where it was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """Rank correlation of estimated and true Dice over the unlabeled cases of a dataset."""

    data: str
    cases: int
    correlation: float


# From benchmarks/results/quality.json, which benchmarks/quality.py writes. A test compares.
MEASURED: tuple[Measured, ...] = ()
