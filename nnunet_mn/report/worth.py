"""What the estimated Dice was worth where it was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scored:
    """Rank correlations of estimated and true Dice over the unlabeled cases, one for each training.

    Args:
        data: in words.
        dataset: its name.
        labeled: cases.
        cases: unlabeled ones.
        correlations: Spearman's.
    """

    data: str
    dataset: str
    labeled: int
    cases: int
    correlations: tuple[float, ...]


# From benchmarks/results/quality.json, which benchmarks/quality.py writes. A test compares.
MEASURED = (
    Scored("hippocampus MRI", "Dataset004_Hippocampus", 4, 136, (0.49, 0.56)),
    Scored("left atrium MRI", "Dataset005_LeftAtrium", 4, 56, (0.67, 0.82)),
)
