"""Is M&N better than nnU-Net with the same labels? Train every method alike, evaluate, and write the tables.

    python benchmarks/accuracy.py run DATASET_FOLDER --work FOLDER [--methods nnunet,mn] [--folds 0,3,4] [--seeds 0]
    python benchmarks/accuracy.py run DATASET_FOLDER --work FOLDER --device cuda --planned --minutes 55
    python benchmarks/accuracy.py table [--half report]
    python benchmarks/accuracy.py compare student mn

DATASET_FOLDER is a raw nnU-Net dataset with the key `unlabeled` in splits_final.json. Every method gets the same
number of updates of the same 3D network, plans and patches. The final checkpoint counts, nothing is selected. Finished
runs are lines of benchmarks/results/accuracy.jsonl and are not repeated. An interrupted training goes on: with
`--minutes` the command ends in time, and the same command goes on later.
"""

import json
import math
import os
import queue
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Annotated, cast

import typer
from evidence import records, tables, workspace
from evidence.execute import execute
from evidence.methods import OURS, find_method
from evidence.runs import Run, plan_runs
from evidence.training import OutOfTimeError
from evidence.workspace import Scale, Workspace
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.errors import MNError

RESULTS = Path(__file__).parent / "results"
RECORDS = RESULTS / "accuracy.jsonl"
EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence.md"
BEGIN, END = "<!-- accuracy: written by benchmarks/accuracy.py -->", "<!-- accuracy: end -->"
_WRITTEN_BY = "Written by `python benchmarks/accuracy.py table --half report --write`"
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
    settings: Annotated[str, typer.Option(help="of M&N for every training, as name=value, comma-separated")] = "",
    jobs: Annotated[int, typer.Option(help="trainings at once; with --device cpu each has its own cores")] = 1,
    device: Annotated[str, typer.Option(help="nnU-Net's -device: cpu or cuda")] = "cpu",
    planned: Annotated[bool, typer.Option(help="nnU-Net's own patch, batch and network, not those above")] = False,
    minutes: Annotated[float, typer.Option(help="no epoch begins later; the same command goes on")] = math.inf,
) -> None:
    """Train the missing runs, and print the mean Dice of the `tune` half after every run."""
    until = time.monotonic() + 60 * minutes
    scale = Scale(
        updates=updates,
        spacing=spacing,
        patch_size=patch_size,
        batch_size=batch_size,
        features=tuple(map(int, features.split(","))),
        settings=_parse(settings),
        planned=planned,
    )
    if updates % (epoch := scale.updates_per_epoch):
        raise MNError(f"--updates is {updates}; take a multiple of {epoch}, the updates of an epoch")
    space = Workspace(dataset.absolute(), work.absolute(), scale, device)
    splits = json.loads((dataset / "splits_final.json").read_bytes())
    wanted = plan_runs(
        [find_method(name) for name in methods.split(",")],
        [int(fold) for fold in folds.split(",")],
        [int(seed) for seed in seeds.split(",")],
        splits,
    )
    done = {record.key for record in records.read(RECORDS)}
    missing = [one for one in wanted if one.key(space) not in done]
    typer.echo(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them done before; {scale.text}")
    space.prepare()
    _work_off(missing, space, jobs, until)


def _parse(settings: str) -> tuple[tuple[str, str], ...]:
    """`name=value,...` as pairs."""
    pairs = [text.partition("=") for text in settings.split(",") if text]
    for name, _, value in pairs:
        if not value:
            raise MNError(f"--settings has '{name}' without a value; write name=value,name=value")
    return tuple((name, value) for name, _, value in pairs)


def _work_off(missing: list[Run], space: Workspace, jobs: int, until: float) -> None:
    """Do all runs, some at once. Without a card each has its own cores. None begins after a time."""
    cpus = sorted(os.sched_getaffinity(0))
    shares: queue.Queue[list[int]] = queue.Queue()
    for job in range(jobs):
        shares.put(cpus[job::jobs] if space.device == "cpu" else cpus)
    writing = Lock()
    with _progress() as progress, ThreadPoolExecutor(jobs) as pool:
        total = progress.add_task("runs", total=len(missing))

        def do(one: Run) -> None:
            if time.monotonic() > until:
                raise OutOfTimeError(f"{one.name} was not begun")
            share = shares.get()
            os.sched_setaffinity(0, share)  # of this thread, and so of its commands
            task = progress.add_task(one.name, total=one.epochs(space.scale))
            try:
                record = execute(one, space, lambda epoch: progress.update(task, completed=epoch), until)
            finally:
                progress.remove_task(task)
                shares.put(share)
            with writing:
                records.append(RECORDS, record)
                progress.advance(total)
                dice = record.case_dice("tune").mean()
                state = f"{progress.tasks[total].completed:.0f} of {len(missing)} done"
                text = f"{one.name}: {dice:.4f} on the tune half, {record.seconds:.0f} s; {state}"
                progress.console.print(text, style=None)

        started = [pool.submit(do, one) for one in missing]
        errors = [error for done in as_completed(started) if (error := done.exception()) is not None]
    if failures := [str(error) for error in errors if not isinstance(error, OutOfTimeError)]:
        raise MNError("; ".join(failures))
    if errors:
        typer.echo(f"the time is up, and {len(errors)} runs are left: the same command goes on")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns)


@app.command()
def table(
    half: Annotated[str, typer.Option(help="tune (for choosing defaults) or report (for the final table)")] = "tune",
    write: Annotated[bool, typer.Option(help="write the report into results/ and docs/evidence.md")] = False,
) -> None:
    """Print the comparison of all finished runs."""
    if half not in ("tune", "report"):
        raise MNError(f"--half is '{half}'; choose tune or report")
    if write and half != "report":
        raise MNError("--write is for the final table: add --half report")
    found = records.read(RECORDS)
    if not found:
        raise MNError(f"{RECORDS} holds no finished run yet")
    for group in _groups(found):
        chosen = _of_group(found, group)
        typer.echo(f"\n{_heading(chosen)}\n\nHalf: {half}.\n\n{_tables(chosen, cast(records.Half, half))}\n")
    if write:
        _write_report(found)


@app.command()
def compare(
    method: Annotated[str, typer.Argument(help="a method with records")],
    base: Annotated[str, typer.Argument(help="the method to compare it with")],
) -> None:
    """Print the differences of two methods, as docs/evidence.md and docs/choices.md quote them."""
    found = records.read(RECORDS)
    known = sorted({r.method for r in found})
    if unknown := {method, base} - set(known):
        raise MNError(f"'{min(unknown)}' has no record; allowed: {', '.join(known)}")
    for group in _groups(found):
        ours, theirs = ([r for r in _of_group(found, group) if r.method == name] for name in (method, base))
        if rows := tables.comparison(ours, theirs):
            typer.echo(f"\n{group[0]}, {group[1]} updates, {group[2]}\n\n{rows}")


Group = tuple[str, int, str]  # dataset, updates, scale


def _group(record: records.Record) -> Group:
    return record.dataset, record.updates, record.scale


def _groups(found: list[records.Record]) -> list[Group]:
    """Groups of runs trained alike, the longest trainings of a dataset first."""
    return sorted({_group(r) for r in found}, key=lambda group: (group[0], -group[1], group[2]))


def _of_group(found: list[records.Record], group: Group) -> list[records.Record]:
    return [r for r in found if _group(r) == group]


def _picture(found: list[records.Record], group: Group) -> str:
    return f"accuracy_{1 + _groups(found).index(group)}.png"


def _heading(chosen: list[records.Record]) -> str:
    """The heading of a table: dataset, number of updates, versions, date and command."""
    last = max(chosen, key=lambda r: r.date)
    versions = ", ".join(f"{name} {version}" for name, version in last.versions.items())
    options = workspace.options(last.scale, last.updates)
    return (
        f"{last.dataset}: {last.updates} updates of the 3D network; {versions}; last run {last.date}; trained by\n\n"
        f"```bash\npython benchmarks/accuracy.py run {last.dataset} --work FOLDER --methods METHODS --folds FOLDS \\\n"
        f"    {options}\n```"
    )


def _tables(chosen: list[records.Record], half: records.Half) -> str:
    parts = (tables.by_label_set, tables.by_labels, tables.table, tables.repeats)
    return "\n\n".join(filter(None, (part(chosen, half) for part in parts)))


def _write_report(found: list[records.Record]) -> None:
    """Write the tables of the `report` half to results/accuracy.md with plots, and a summary to docs/evidence.md."""
    for group in _groups(found):
        tables.plot(_of_group(found, group), "report", RESULTS / _picture(found, group))
    write_whole(RESULTS / "accuracy.md", report(found))
    before, rest = EVIDENCE.read_text(encoding="utf-8").split(BEGIN)
    write_whole(EVIDENCE, f"{before}{BEGIN}\n\n{summary(found)}\n\n{END}{rest.split(END)[1]}")


def report(found: list[records.Record]) -> str:
    """The page of results: every table of the `report` half."""
    parts = [f"{_WRITTEN_BY}."]
    for group in _groups(found):
        chosen = _of_group(found, group)
        parts += [_heading(chosen), _tables(chosen, "report"), f"![Mean Dice of every run]({_picture(found, group)})"]
    return "\n\n".join(parts) + "\n"


def summary(found: list[records.Record]) -> str:
    """The part of the report in docs/evidence.md: the gain by labels, on each dataset where it was measured."""
    parts: list[str] = []
    for dataset in sorted({r.dataset for r in found}):
        chosen = _most_trained([r for r in found if r.dataset == dataset])
        if rows := tables.by_labels(chosen, "report"):
            parts += [f"{dataset}: {chosen[0].updates} updates of the 3D network", rows]
    more = "each training, all methods and the commands are in [accuracy.md](../benchmarks/results/accuracy.md)."
    return "\n\n".join([*parts, f"{_WRITTEN_BY}; {more}"])


def _most_trained(found: list[records.Record]) -> list[records.Record]:
    """The group where M&N has most label sets; of several such groups the one with most trainings."""

    def size(group: Group) -> tuple[int, int]:
        runs = _of_group(found, group)
        return len({r.fold for r in runs if r.method == OURS}), len(runs)

    return _of_group(found, max(_groups(found), key=size))


def main() -> None:
    """Run; a user's mistake is one line."""
    try:
        app()
    except MNError as error:
        typer.echo(f"accuracy.py: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
