"""The benchmark of the report's estimate: its scores, and what it says that no score can know."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import quality  # noqa: E402
from evidence import quality_limits, views  # noqa: E402


def view(*, first: int, size: int = 4, sure: float = 1.0) -> np.ndarray:
    """Probabilities of background and one structure, a box of this size: `(2, 10, 10, 10)`."""
    box = np.full((10, 10, 10), 1 - sure)
    box[first : first + size, 2 : 2 + size, 2 : 2 + size] = sure
    return np.stack([1 - box, box])


def numbers(*each: np.ndarray) -> dict[str, float]:
    stacked = np.stack(each)
    mean = (stacked[0] + stacked[1:].mean(0)) / 2
    return views.numbers_of(stacked, mean.argmax(0), 1)


def record(*, structures: int = 2, cases: int = 40) -> dict[str, Any]:
    """A training whose Dice falls with the voxels of a wrong structure. Its estimate knows nothing of them."""
    generator = np.random.default_rng(0)
    made: dict[str, Any] = {"cases": {}, "together": {}, "dataset": "D", "scale": "s", "run": "r"}
    for i in range(cases):
        mixed_up = float(generator.random()) if structures > 1 else 0.0
        one = {"estimate": float(generator.random()), "dice": 1 - mixed_up if structures > 1 else i / cases}
        made["cases"][f"case_{i}"] = {str(k): one for k in range(structures)}
        made["together"][f"case_{i}"] = {"dice": one["estimate"], "mixed_up": mixed_up}
    return made


def test_sure_views_that_agree_score_full_marks() -> None:
    for name, value in numbers(*[view(first=2)] * 4).items():
        assert value == pytest.approx(1, abs=1e-4), name


def test_views_that_differ_or_doubt_score_less() -> None:
    sure = numbers(*[view(first=2)] * 4)
    apart = numbers(view(first=2), view(first=2), view(first=2), view(first=4))
    unsure = numbers(*[view(first=2, sure=0.8)] * 4)
    for name in ("under_worst", "pulled", "views_soft", "views_masks"):
        assert apart[name] < sure[name] - 0.05, name
    for name in ("under_3d", "under_2d", "softer", "border", "core"):
        assert unsure[name] < sure[name] - 0.05, name
    assert unsure["views_masks"] == sure["views_masks"]


def test_limits_tell_what_the_estimate_cannot_see() -> None:
    found = quality_limits.limits(record())
    assert found[quality_limits.MIXED_UP] == pytest.approx(-1)
    assert found[quality_limits.TOGETHER] == pytest.approx(1)
    assert abs(found[quality_limits.MIXED_UP_SEEN]) < 0.3
    assert found[quality_limits.FIT] < 0.3
    assert math.isnan(quality_limits.limits(record(structures=1))[quality_limits.MIXED_UP])


def test_trainings_are_compared_over_their_common_cases() -> None:
    few, many = record(cases=20), record(cases=40)
    assert list(quality_limits.pairs([few, many])) == ["D, r and r: 1.00 over 20 cases."]
    assert list(quality_limits.pairs([few, {**many, "dataset": "E"}])) == []


def test_the_summary_is_that_of_the_kept_records() -> None:
    summary = json.loads((ROOT / "benchmarks" / "results" / "quality.json").read_bytes())
    kept = sorted(quality._records(), key=lambda one: one["run"])
    found = {(r["dataset"], r["labeled"], len(r["cases"])): [] for r in kept}
    for one in kept:
        true, expected = (quality_limits.values_of(one, key) for key in ("dice", "estimate"))
        correlation = round(quality_limits.rank_correlation(expected, true), 2)
        found[one["dataset"], one["labeled"], len(one["cases"])].append(correlation)
    assert {(s["dataset"], s["labeled"], s["cases"]): s["correlations"] for s in summary} == found


def test_the_evidence_page_quotes_the_records() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    section = " ".join(page.split("## What the estimated Dice is worth")[1].split("\n## ")[0].split())
    kept = sorted(quality._records(), key=lambda one: (one["dataset"], one["run"]))
    known = [quality_limits.limits(one) for one in kept if one["dataset"] == "Dataset004_Hippocampus"]
    for comparison in known[0]:
        assert " and ".join(f"{one[comparison]:.2f}" for one in known) in section, comparison
    hippocampus, atrium = (re.findall(r": (0\.\d\d) over", line)[0] for line in quality_limits.pairs(kept))
    assert f"{hippocampus} on hippocampus MRI and {atrium} on left atrium MRI" in section
