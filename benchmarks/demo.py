"""In how many of ten seeds is M&N better in the demo? Runs `nnunet-mn demo` with each seed, and writes a table.

    python benchmarks/demo.py --work FOLDER [--seeds 0,1,2,3,4,5,6,7,8,9]
    python benchmarks/demo.py --work FOLDER --seeds ""      # only the table

Each seed has a folder of its own. A seed with a line in benchmarks/results/demo.jsonl is not run again: an
interrupted command goes on. Nothing is left out of the demo but the report's page. Delete the lines after a change of
the demo.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.demo import FULL, run_demo
from nnunet_mn.sandbox.results import DemoResult

RESULTS = Path(__file__).parent / "results"
RECORDS, TABLE = RESULTS / "demo.jsonl", RESULTS / "demo.md"
MODELS = ("baseline", "mn", "joint")
Record = dict[str, Any]


def main(
    work: Annotated[Path, typer.Option(help="a folder for each seed is made here")],
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2,3,4,5,6,7,8,9",
) -> None:
    """Run the demo with every seed that has no result yet, and write the table after each."""
    for seed in (int(text) for text in seeds.split(",") if text):
        if seed not in {record["seed"] for record in read()}:
            result = run_demo(work / f"seed_{seed}", seed=seed, quick=False, report=False)
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(to_record(result)) + "\n")
            write_whole(TABLE, to_table(read()))
    write_whole(TABLE, to_table(read()))
    typer.echo(to_table(read()))


def read() -> list[Record]:
    """All results so far, by seed."""
    if not RECORDS.exists():
        return []
    records = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    return sorted(records, key=lambda record: record["seed"])


def to_record(result: DemoResult) -> Record:
    """One line of the results."""
    models = {name: getattr(result, name) for name in MODELS}
    versions = {package: version(package) for package in ("nnunetv2", "nnunet_mn", "torch")}
    return {
        "seed": result.seed,
        "seconds": round(result.seconds),
        "cpus": len(os.sched_getaffinity(0)),
        "dice": {name: round(model.mean_dice, 4) for name, model in models.items()},
        "case_dice": {name: _rounded(model.case_dice(case) for case in model.scores) for name, model in models.items()},
        "training_seconds": {name: round(models[name].seconds) for name in ("baseline", "mn")},
        "scale": asdict(FULL),
        "versions": versions,
    }


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 4) for value in values]


def to_table(records: list[Record]) -> str:
    """The table in Markdown, whoever won."""
    lines = [
        "# The demo, seed by seed",
        "",
        "Written by `benchmarks/demo.py`. Mean Dice of the test cases. Data and trainings differ from seed to seed.",
        "The labeled scans come from one scanner, the unlabeled and test scans from another. This design was chosen",
        "with other seeds.",
        "",
        "| seed | labeled only | M&N | M&N, both networks | M&N − labeled only | test cases higher | minutes | CPUs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        dice, cases = record["dice"], record["case_dice"]
        higher = sum(mn > baseline for mn, baseline in zip(cases["mn"], cases["baseline"], strict=True))
        lines.append(
            f"| {record['seed']} | {dice['baseline']:.3f} | {dice['mn']:.3f} | {dice['joint']:.3f} "
            f"| {dice['mn'] - dice['baseline']:+.3f} | {higher} of {len(cases['mn'])} "
            f"| {record['seconds'] / 60:.1f} | {record['cpus']} |"
        )
    rows = (("mn", "M&N"), ("joint", "Both networks"))
    summaries = [_summary(records, name, label) for name, label in rows if records]
    return "\n".join([*lines, "", *summaries, ""])


def _summary(records: list[Record], name: str, label: str) -> str:
    gains = [record["dice"][name] - record["dice"]["baseline"] for record in records]
    spread = f", standard deviation {stdev(gains):.3f}" if len(gains) > 1 else ""
    above = sum(gain > 0 for gain in gains)
    return f"{label}: above labeled only in {above} of {len(gains)} seeds; mean gain {mean(gains):+.3f}{spread}.  "


if __name__ == "__main__":
    typer.run(main)
