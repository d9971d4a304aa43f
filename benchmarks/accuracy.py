"""Is M&N better than nnU-Net with the same labels? Trains every method alike, evaluates, and writes the tables.

    python benchmarks/accuracy.py run DATASET_FOLDER --work FOLDER [--methods nnunet mn] [--folds 0 3 4] [--seeds 0]
    python benchmarks/accuracy.py table [--half report]

DATASET_FOLDER is a raw nnU-Net dataset whose splits_final.json has the key `unlabeled`. Every method gets the same
number of updates of the same 3D network, plans and patches; the final checkpoint counts, nothing is selected. Finished
runs are lines of benchmarks/results/accuracy.jsonl and are not repeated; a training that was cut off goes on.
"""

import json
import os
import queue
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Annotated

import typer
from evidence import records, tables
from evidence.methods import find_method
from evidence.runs import Run, epochs, execute, plan_runs
from evidence.workspace import Scale, Workspace
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.errors import MNError

RESULTS = Path(__file__).parent / "results"
RECORDS = RESULTS / "accuracy.jsonl"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- accuracy: written by benchmarks/accuracy.py -->", "<!-- accuracy: end -->"
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def run(
    dataset: Annotated[Path, typer.Argument(help="raw nnU-Net dataset")],
    work: Annotated[Path, typer.Option(help="folder for preprocessing, models and logs")],
    methods: Annotated[str, typer.Option(help="names, comma-separated")] = "nnunet,nnunet-adamw,mn",
    folds: Annotated[str, typer.Option(help="folds of splits_final.json, comma-separated")] = "0",
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0",
    updates: Annotated[int, typer.Option(help="of the 3D network, in every method")] = 600,
    spacing: Annotated[tuple[float, float, float] | None, typer.Option(help="mm; default: as planned")] = None,
    patch_size: Annotated[tuple[int, int, int], typer.Option(help="voxels")] = (40, 56, 40),
    batch_size: int = 4,
    features: Annotated[str, typer.Option(help="channels of each stage, comma-separated")] = "16,32,64,128",
    jobs: Annotated[int, typer.Option(help="trainings at once; the CPUs are shared out among them")] = 1,
) -> None:
    """Train what is missing, and print the table of the `tune` half after every run."""
    channels = tuple(map(int, features.split(",")))
    scale = Scale(updates=updates, spacing=spacing, patch_size=patch_size, batch_size=batch_size, features=channels)
    space = Workspace(dataset.absolute(), work.absolute())
    splits = json.loads((dataset / "splits_final.json").read_bytes())
    wanted = plan_runs(
        [find_method(name) for name in methods.split(",")],
        [int(fold) for fold in folds.split(",")],
        [int(seed) for seed in seeds.split(",")],
        splits,
    )
    done = {record.key for record in records.read(RECORDS)}
    missing = [one for one in wanted if one.key(scale) not in done]
    typer.echo(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them done before; {scale.text}")
    space.prepare(scale)
    _work_off(missing, space, scale, jobs)


def _work_off(missing: list[Run], space: Workspace, scale: Scale, jobs: int) -> None:
    """Do all runs, some at once, each on its own CPUs."""
    cpus = sorted(os.sched_getaffinity(0))
    shares: queue.Queue[list[int]] = queue.Queue()
    for job in range(jobs):
        shares.put(cpus[job::jobs])
    writing = Lock()
    with _progress() as progress, ThreadPoolExecutor(jobs) as pool:
        total = progress.add_task("runs", total=len(missing))

        def do(one: Run) -> None:
            share = shares.get()
            os.sched_setaffinity(0, share)  # of this thread, and so of the commands that it starts
            task = progress.add_task(one.name, total=epochs(scale))
            try:
                record = execute(one, space, scale, lambda epoch: progress.update(task, completed=epoch))
            finally:
                progress.remove_task(task)
                shares.put(share)
            with writing:
                records.append(RECORDS, record)
                progress.advance(total)
                dice = record.case_dice("tune").mean()
                progress.console.print(f"{one.name}: {dice:.4f} on the tune half, {record.seconds:.0f} s", style=None)

        failures = [str(done.exception()) for done in as_completed([pool.submit(do, m) for m in missing])
                    if done.exception() is not None]  # fmt: skip
    if failures:
        raise MNError("; ".join(failures))


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns)


@app.command()
def table(
    half: Annotated[str, typer.Option(help="tune (for choosing defaults) or report (for the final table)")] = "tune",
    write: Annotated[bool, typer.Option(help="write the report into results/ and the README")] = False,
) -> None:
    """Print the comparison of all finished runs."""
    if half not in ("tune", "report"):
        raise MNError(f"--half is '{half}'; choose tune or report")
    found = records.read(RECORDS)
    if not found:
        raise MNError(f"{RECORDS} holds no finished run yet")
    for scale, updates in sorted({(r.scale, r.updates) for r in found}):
        chosen = [r for r in found if (r.scale, r.updates) == (scale, updates)]
        typer.echo(f"\n{scale}, {updates} updates, {half} half\n\n{tables.table(chosen, half)}\n")  # type: ignore[arg-type]
        typer.echo(tables.by_labels(chosen, half))  # type: ignore[arg-type]
    if write:
        _write_report(found)


def _write_report(found: list[records.Record]) -> None:
    """Write the tables of the `report` half to results/accuracy.md, the plot, and the README's section."""
    newest = max(r.date for r in found)
    parts = [f"Written by `python benchmarks/accuracy.py table --half report --write`, last run {newest}.", ""]
    for scale, updates in sorted({(r.scale, r.updates) for r in found}):
        chosen = [r for r in found if (r.scale, r.updates) == (scale, updates)]
        versions = ", ".join(f"{name} {version}" for name, version in chosen[-1].versions.items())
        parts += [
            f"Plans {scale}, {updates} updates of the 3D network; {versions}.",
            "",
            tables.table(chosen, "report"),
            "",
            tables.by_labels(chosen, "report"),
            "",
        ]
        tables.plot(chosen, "report", RESULTS / f"accuracy_{scale}_{updates}.png")
    text = "\n".join(parts)
    write_whole(RESULTS / "accuracy.md", text)
    readme = README.read_text(encoding="utf-8")
    if BEGIN in readme:
        before, rest = readme.split(BEGIN)
        write_whole(README, f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def main() -> None:
    """Run; a user's mistake is one line."""
    try:
        app()
    except MNError as error:
        typer.echo(f"accuracy.py: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
