"""Which masks are probably worst, and why, in words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_mn.report.cases import CaseResult, StructureNumbers
from nnunet_mn.report.reference import Usual

STRONG_DISAGREEMENT = 0.3  # a Dice of 0.7 between both networks
UNUSUAL_VOLUME = 1.25  # times the largest, or below the smallest divided by it
UNSURE_SHARE = 90  # percentile of the mean entropy of all unlabeled cases


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """An unlabeled case in the order of the report.

    Args:
        case: its numbers.
        estimate: mean estimated Dice of its structures. A structure that every labeled case has counts 0 if missing.
        estimates: of each structure; None where the mask is rightly empty.
        reasons: in words, most important first.
    """

    case: CaseResult
    estimate: float | None
    estimates: Mapping[str, float | None]
    reasons: tuple[str, ...]


def rank(cases: Iterable[CaseResult], usual: Mapping[str, Usual]) -> list[Ranked]:
    """Sort the unlabeled cases by their estimated Dice, the lowest first."""
    cases = list(cases)
    unsure = _unsure(cases)
    ranked = [_judged(case, usual, unsure) for case in cases]
    return sorted(ranked, key=lambda r: (r.estimate is None, r.estimate, r.case.name))


def _unsure(cases: Sequence[CaseResult]) -> float:
    """The mean entropy above which a case stands out."""
    found = [value for case in cases if (value := mean_of(s.entropy for s in case.structures.values())) is not None]
    return float(np.percentile(found, UNSURE_SHARE)) if found else 1.0


def _judged(case: CaseResult, usual: Mapping[str, Usual], unsure: float) -> Ranked:
    estimates = {name: _estimate(numbers, usual[name]) for name, numbers in case.structures.items()}
    reasons = [reason for name, n in case.structures.items() for reason in _reasons(name, n, usual[name])]
    entropy = mean_of(n.entropy for n in case.structures.values())
    if entropy is not None and entropy > unsure:
        reasons.append(f"both networks are less sure than in 9 of 10 unlabeled cases (mean entropy {entropy:.2f})")
    reasons = reasons or ["nothing else stands out"]
    return Ranked(case=case, estimate=mean_of(estimates.values()), estimates=estimates, reasons=tuple(reasons))


def _estimate(numbers: StructureNumbers, usual: Usual) -> float | None:
    return 0.0 if numbers.volume_ml == 0 and usual.smallest > 0 else numbers.estimate


def _reasons(name: str, numbers: StructureNumbers, usual: Usual) -> Iterator[str]:
    if numbers.volume_ml == 0:
        if usual.smallest > 0:
            yield f"{name} is not found, and every labeled case has it"
        return
    if numbers.disagreement is not None and numbers.disagreement >= STRONG_DISAGREEMENT:
        yield f"the networks disagree on {name} (Dice {1 - numbers.disagreement:.2f} between them)"
    volume = f"{name} has {ml(numbers.volume_ml)}"
    if usual.volumes_ml and numbers.volume_ml > UNUSUAL_VOLUME * usual.largest:
        yield f"{volume}, more than in any labeled case (at most {ml(usual.largest)})"
    if usual.volumes_ml and numbers.volume_ml < usual.smallest / UNUSUAL_VOLUME:
        yield f"{volume}, less than in any labeled case (at least {ml(usual.smallest)})"
    if usual.components and numbers.components > usual.most_components:
        yield f"{name} falls into {numbers.components} parts (labeled cases: at most {usual.most_components})"


def ml(volume: float) -> str:
    """A volume in words, with two or three digits."""
    return f"{volume:.0f} ml" if volume >= 10 else f"{volume:.2g} ml"


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of what exists. None if nothing does."""
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None
