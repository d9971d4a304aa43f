"""The comparison of suggested cases with random ones."""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import suggest  # noqa: E402

POOL = [f"case_{i}" for i in range(20)]


def trained(choice: str, dice: float, *, method: str = "nnunet-adamw") -> Any:
    record = {"method": method, "updates": 400, "dice": {"case_1": {"1": dice - 0.1, "2": dice + 0.1}}}
    return suggest.Trained(dataset="D", choice=choice, cases=[choice], record=record)


def test_random_sets_differ_and_are_the_same_each_time() -> None:
    sets = list(suggest.random_sets(POOL))
    assert sets == list(suggest.random_sets(POOL))
    assert len({tuple(cases) for _, cases in sets}) == suggest.RANDOM_SETS
    assert all(len(set(cases)) == suggest.LABELS and set(cases) <= set(POOL) for _, cases in sets)


def test_the_suggestion_stands_among_the_random_sets() -> None:
    table = suggest.tables([trained("suggested", 0.75), *(trained(f"random {i}", 0.5 + i / 10) for i in range(4))])
    assert "| random sets: median [quarters] | 0.650 [0.575, 0.725] of 4 |" in table
    assert "| suggested: suggested | 0.750, above 3 of 4 |" in table
    assert "over" not in table
    assert "| suggested: suggested | 0.750 |" in suggest.tables([trained("suggested", 0.75)])


def test_methods_stand_side_by_side_and_their_gain_is_of_sets_that_both_have() -> None:
    found = [trained("suggested", 0.75), *(trained(f"random {i}", 0.5 + i / 10) for i in range(4))]
    found += [trained("random 1", 0.65, method="mn"), trained("random 3", 0.79, method="mn")]
    table = suggest.tables(found)
    assert "| cases | `nnunet-adamw` | `mn` |" in table
    assert "| random 1 | 0.600 | 0.650 |" in table
    assert "| random 2 | 0.700 |  |" in table
    assert "mean of 2 sets: +0.020 [-0.010, +0.050]; higher in 1 of them" in table


def test_the_table_and_the_evidence_are_those_of_the_records() -> None:
    found = suggest._read()
    assert (suggest.RESULTS / "suggest.md").read_text(encoding="utf-8") == suggest.tables(found)
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (\w+), 4 of (\d+) \| ([\d.]+) \| ([\d.]+ \[[\d., ]+\]) \| (\d+) of 10 \|$", evidence, re.MULTILINE
    )
    assert len(rows) == len({one.dataset for one in found})
    for name, _, dice, random, below in rows:
        table = suggest.tables([one for one in found if one.dataset.endswith(name)])
        assert f"| random sets: median [quarters] | {random} of 10 |" in table
        assert re.search(rf"\| suggested: .+ \| {re.escape(dice)}, above {below} of 10 \|", table)
