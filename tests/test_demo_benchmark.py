"""The table over many seeds of the demo."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "demo.py"


def _table(*gains):
    spec = importlib.util.spec_from_file_location("demo_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    records = [
        {
            "seed": seed, "seconds": 390, "cpus": 2,
            "dice": {"baseline": 0.6, "mn": 0.6 + gain, "joint": 0.7},
            "case_dice": {"baseline": [0.6, 0.6], "mn": [0.6 + gain, 0.5], "joint": [0.7, 0.7]},
        }
        for seed, gain in enumerate(gains)
    ]  # fmt: skip
    return module.to_table(records)


def test_table_counts_the_seeds_in_which_mn_is_above():
    said = _table(0.04, -0.02, 0.0)
    assert "| 1 | 0.600 | 0.580 | 0.700 | -0.020 | 0 of 2 | 6.5 | 2 |" in said
    assert "M&N: above labeled only in 1 of 3 seeds; mean gain +0.007" in said
    assert "Both networks: above labeled only in 3 of 3 seeds; mean gain +0.100" in said


def test_table_without_results_has_no_summary():
    assert "mean gain" not in _table()
