"""Which cases to label next: typical ones of groups that look alike. Needs no torch."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from nnunet_mn.errors import MNError

USUAL_SHARE = 0.7  # of the cases, those that look most like the others, can be suggested
LEAST_CHOICE = 4  # cases to choose from for each suggestion, if there are so many
Features = NDArray[np.floating]  # (F,) of one case, or (N, F)


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A case to label.

    Args:
        case: its name.
        alike: cases that look alike, itself among them.
        estimated_dice: of the trained networks on it. None: no networks were asked.
    """

    case: str
    alike: int
    estimated_dice: float | None = None

    @property
    def reason(self) -> str:
        """Why it was chosen, in words."""
        if self.alike == 1:
            looks = "looks like no other"
        elif self.estimated_dice is None:
            looks = f"the most typical of {self.alike} cases that look alike"
        else:
            looks = f"stands for {self.alike} cases that look alike"
        return looks if self.estimated_dice is None else f"estimated Dice {self.estimated_dice:.2f}, {looks}"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {**asdict(self), "reason": self.reason}


def suggest(
    features: Mapping[str, Features],
    n: int,
    *,
    labeled: Collection[str] = (),
    estimated_dice: Mapping[str, float] | None = None,
) -> list[Suggestion]:
    """Choose cases to label. The same arguments give the same cases.

    Cases that look least like the others are left out: they teach little about them. k-means sorts the rest into groups
    that look alike. Each suggestion is the case nearest to the middle of a group without a labeled case; larger groups
    come first.

    With estimates no case is left out for its looks, and labeled cases are not needed: what they taught is in the
    estimates. Cases of lower Dice pull the groups towards them (Prabhu et al., CLUE, ICCV 2021).

    Args:
        features: of each case, labeled or not, by name: vectors of one length.
        n: number of suggestions.
        labeled: names of cases with labels.
        estimated_dice: of the trained networks on the unlabeled cases, by name. Cases without an estimate are left
            out.

    Raises:
        MNError: when fewer than n cases can be chosen.
    """
    free = sorted(features.keys() - set(labeled))
    if estimated_dice is not None:
        free = [name for name in free if name in estimated_dice]
    known = sorted(features.keys() & set(labeled)) if estimated_dice is None else []
    if n > len(free):
        raise MNError(f"-n is {n}, but {len(free)} cases can be suggested; lower it")
    if estimated_dice is None:
        free = _usual(features, free, at_least=LEAST_CHOICE * n)
    points = _standardized(np.stack([features[name] for name in (*free, *known)]))
    weights = np.ones(len(points)) if estimated_dice is None else _doubts([estimated_dice[name] for name in free])
    groups = _groups(points, weights, number=n + len(known))
    chosen = _typical_cases(points, weights, groups, free=len(free), n=n)
    return [
        Suggestion(
            case=free[row],
            alike=int((groups[: len(free)] == groups[row]).sum()),
            estimated_dice=None if estimated_dice is None else estimated_dice[free[row]],
        )
        for row in chosen
    ]


def _usual(features: Mapping[str, Features], names: list[str], *, at_least: int) -> list[str]:
    """The cases with the least mean distance to all: a share of them, but not too few to choose from."""
    points = _standardized(np.stack([features[name] for name in names]))
    distances = np.array([np.linalg.norm(points - point, axis=1).mean() for point in points])
    number = max(round(USUAL_SHARE * len(names)), at_least)
    return sorted(names[row] for row in np.argsort(distances, kind="stable")[:number])


def _standardized(points: Features) -> Features:
    """Each feature with zero mean and unit deviation over the cases. (N, F)"""
    deviation = points.std(axis=0)
    standardized: Features = (points - points.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    return standardized


def _doubts(estimates: list[float]) -> Features:
    """The weights of cases: what their Dice lacks. A case without doubt keeps a little weight."""
    doubts: Features = np.maximum(1 - np.asarray(estimates), 1e-3)
    return doubts


def _groups(points: Features, weights: Features, *, number: int) -> NDArray[np.integer]:
    """The group of each case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal images make fewer groups
        means = KMeans(number, n_init=20, random_state=0).fit(points, sample_weight=weights)
    labels: NDArray[np.integer] = means.labels_
    return labels


def _typical_cases(points: Features, weights: Features, groups: NDArray[np.integer], *, free: int, n: int) -> list[int]:
    """The rows of the chosen cases: of the heaviest groups first, then those farthest from all chosen and labeled."""
    weight = {group: weights[groups == group].sum() for group in set(groups.tolist()) - set(groups[free:].tolist())}
    chosen: list[int] = []
    for group in sorted(weight, key=lambda group: (-weight[group], group))[:n]:
        members = np.flatnonzero(groups == group)
        middle = np.average(points[members], axis=0, weights=weights[members])
        chosen.append(int(members[np.linalg.norm(points[members] - middle, axis=1).argmin()]))
    while len(chosen) < n:  # equal images
        rest = [row for row in range(free) if row not in chosen]
        taken = points[[*chosen, *range(free, len(points))]]
        chosen.append(max(rest, key=lambda row: np.linalg.norm(taken - points[row], axis=1).min(initial=np.inf)))
    return chosen
