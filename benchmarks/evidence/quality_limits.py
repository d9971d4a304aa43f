"""How well could any score sort the cases? Comparisons with the truth that no user can make."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Record = Mapping[str, Any]
Values = NDArray[np.float64]
FIT = "all numbers of the case, fitted to the true Dice of other cases"
TOGETHER = "expected Dice, with the true Dice of all structures as one"
MIXED_UP = "share of voxels given to a wrong structure, with the true Dice"
MIXED_UP_SEEN = "the same share, with the expected Dice"


def limits(record: Record) -> dict[str, float]:
    """Rank correlations that tell what a training's scores can and cannot know. NaN where there is one structure.

    Args:
        record: of benchmarks/quality.py.
    """
    true, expected = values_of(record, "dice"), values_of(record, "estimate")
    together = [record["together"][name] for name in record["cases"]]
    mixed_up = [one["mixed_up"] for one in together]
    return {
        FIT: rank_correlation(_fitted(record, true), true),
        TOGETHER: rank_correlation(expected, [one["dice"] for one in together]),
        MIXED_UP: rank_correlation(mixed_up, true),
        MIXED_UP_SEEN: rank_correlation(mixed_up, expected),
    }


def values_of(record: Record, key: str) -> Values:
    """The mean of a number over the structures of each case. What is missing counts 0."""
    return np.array([np.mean([numbers[key] or 0 for numbers in case.values()]) for case in record["cases"].values()])


def _fitted(record: Record, true: Values) -> Values:
    """The Dice of each case by a linear fit to the other cases: ridge regression in ten folds."""
    rows = [
        [numbers[key] or 0 for numbers in case.values() for key in sorted(numbers.keys() - {"dice"})]
        for case in record["cases"].values()
    ]
    fit = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 20)))
    return np.asarray(cross_val_predict(fit, rows, true, cv=KFold(10, shuffle=True, random_state=0)))


def pairs(records: Sequence[Record]) -> Iterator[str]:
    """Sentences on the true Dice of two trainings over the cases that neither had labels of."""
    for one, other in combinations(records, 2):
        if one["dataset"] == other["dataset"] and one["scale"] == other["scale"]:
            first, second = (dict(zip(r["cases"], values_of(r, "dice"), strict=True)) for r in (one, other))
            names = sorted(first.keys() & second.keys())
            found = rank_correlation([first[name] for name in names], [second[name] for name in names])
            yield f"{one['dataset']}, {one['run']} and {other['run']}: {found:.2f} over {len(names)} cases."


def rank_correlation(one: Sequence[float] | Values, other: Sequence[float] | Values) -> float:
    """Spearman's. NaN if one of them is constant."""
    constant = min(np.ptp(one), np.ptp(other)) == 0
    return float("nan") if constant else float(spearmanr(one, other).statistic)
