"""What the estimated Dice was worth where it was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """Rank correlation of estimated and true Dice over the unlabeled cases of a training.

    Args:
        data: in words.
        dataset: its name.
        labeled: cases.
        cases: unlabeled ones.
        correlation: Spearman's.
    """

    data: str
    dataset: str
    labeled: int
    cases: int
    correlation: float


# From benchmarks/results/quality.json, which benchmarks/quality.py writes. A test compares.
MEASURED = (
    Measured("hippocampus MRI", "Dataset004_Hippocampus", 4, 136, 0.51),
    Measured("hippocampus MRI", "Dataset004_Hippocampus", 16, 124, 0.46),
    Measured("left atrium MRI", "Dataset005_LeftAtrium", 4, 56, 0.67),
)
