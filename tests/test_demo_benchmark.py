"""The table over many seeds of the demo, and the README's words about it."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import demo  # noqa: E402


def _table(*gains: float) -> str:
    records = [
        {
            "seed": seed, "seconds": 390, "cpus": 2,
            "dice": {"baseline": 0.6, "mn": 0.6 + gain, "joint": 0.7},
            "case_dice": {"baseline": [0.6, 0.6], "mn": [0.6 + gain, 0.5], "joint": [0.7, 0.7]},
        }
        for seed, gain in enumerate(gains)
    ]  # fmt: skip
    return demo.to_table(records)


def test_table_counts_the_seeds_in_which_mn_is_above() -> None:
    said = _table(0.04, -0.02, 0.0)
    assert "| 1 | 0.600 | 0.580 | 0.700 | -0.020 | 0 of 2 | 6.5 | 2 |" in said
    assert "M&N: above labeled only in 1 of 3 seeds; mean gain +0.007" in said
    assert "Both networks: above labeled only in 3 of 3 seeds; mean gain +0.100" in said


def test_table_without_results_has_no_summary() -> None:
    assert "mean gain" not in _table()


def test_the_readme_quotes_the_records() -> None:
    found = demo.read()
    assert demo.TABLE.read_text(encoding="utf-8") == demo.to_table(found)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    first = next(record["dice"] for record in found if record["seed"] == 0)
    dice = (
        "was {baseline:.3f} with labels only, {mn:.3f} with M&N, and {joint:.3f} with both networks of M&N".format_map(
            first
        )
    )
    assert f"Mean Dice {dice} (seed 0)" in readme
    above = sum(record["dice"]["mn"] > record["dice"]["baseline"] for record in found)
    assert re.search(r"M&N was above labels only in (\d+) of (\d+) seeds", readme).groups() == (
        str(above),
        str(len(found)),
    )
