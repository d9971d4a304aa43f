"""Are the cases that `nnunet-mn suggest` chooses better to label than random ones? Train on each, and compare.

    python benchmarks/suggest.py run DATASET_FOLDER --work FOLDER [--updates 400] [--method mn]
    python benchmarks/suggest.py table

DATASET_FOLDER is a raw nnU-Net dataset. The last fold of its splits_final.json lists a pool (`train`) and validation
cases (`val`). Labeled-only nnU-Net with M&N's optimizer is trained on four cases of the pool: on random sets, and on
the suggested one. So is M&N, with the rest of the pool as unlabeled cases (`--method mn`). The suggestion sees the
pool's images alone. Plans and validation are those of `accuracy.py`. Each finished training is a line of
benchmarks/results/suggest.jsonl and is not repeated. An interrupted one goes on. `table` writes
benchmarks/results/suggest.md.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from evidence.execute import execute
from evidence.methods import FAIR_BASELINE, OURS, find_method
from evidence.runs import Run
from evidence.workspace import Scale, Workspace

from nnunet_mn.bridge.cases.raw_images import RawImages
from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.suggesting.features import Describer, Features, features_of
from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.suggesting import suggest

RESULTS = Path(__file__).parent / "results"
RECORDS = RESULTS / "suggest.jsonl"
LABELS = 4
RANDOM_SETS = 10
SUGGESTED = "suggested"
COMPARED = (FAIR_BASELINE, OURS)
# Voxels in mm and patches with which the trainings of the evidence fit on a CPU.
SPACING = {"Dataset004_Hippocampus": (1.5, 1.5, 1.5), "Dataset005_LeftAtrium": (2.5, 2.5, 2.5)}
PATCH = {"Dataset004_Hippocampus": (24, 40, 24), "Dataset005_LeftAtrium": (24, 32, 48)}
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Trained:
    """A finished training: the dataset, how its cases were chosen, the cases, and the record of accuracy.py."""

    dataset: str
    choice: str
    cases: list[str]
    record: dict[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for two trainings on the same cases."""
        return self.dataset, tuple(self.cases), self.record["updates"], self.method

    @property
    def method(self) -> str:
        """How it was trained."""
        return str(self.record["method"])

    @property
    def dice(self) -> float:
        """The mean over classes and validation cases."""
        return float(np.mean([list(of.values()) for of in self.record["dice"].values()]))


@app.command()
def run(
    dataset: Annotated[Path, typer.Argument(help="raw nnU-Net dataset, one of the two of the evidence")],
    work: Annotated[Path, typer.Option(help="folder for preprocessing, models and logs")],
    updates: Annotated[int, typer.Option(help="of the network")] = 400,
    method: Annotated[str, typer.Option(help=f"of accuracy.py: {' or '.join(COMPARED)}")] = FAIR_BASELINE,
) -> None:
    """Train on every set that has no record yet."""
    if method not in COMPARED:
        raise MNError(f"'{method}' is not compared here; choose from {', '.join(COMPARED)}")
    pool, val = pool_and_val(dataset)
    copy = _linked(dataset, work / dataset.name)
    space = Workspace(copy, (work / dataset.name).absolute(), _scale(dataset.name, updates))
    done = {one.key for one in _read()}
    for choice, cases in _sets(dataset, pool, work / dataset.name):
        if (dataset.name, tuple(cases), updates, method) in done:
            continue
        fold = {"train": cases, "val": val, "unlabeled": sorted(set(pool) - set(cases))}
        one = Run(method=find_method(method), fold=_number(space, fold), seed=0)
        space.prepare()
        _number(space, fold)  # planning copies the file of the raw dataset
        record = execute(one, space, lambda epoch: None)
        trained = Trained(dataset.name, choice, cases, asdict(record))
        with RECORDS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(trained)) + "\n")
        typer.echo(f"{dataset.name}, {method}, {choice}: {trained.dice:.4f} in {record.seconds:.0f} s")


def _scale(dataset: str, updates: int) -> Scale:
    if dataset not in SPACING:
        raise MNError(f"'{dataset}' has no scale here; choose from {', '.join(SPACING)}")
    return Scale(
        updates=updates,
        spacing=SPACING[dataset],
        patch_size=PATCH[dataset],
        batch_size=4,
        features=(16, 32, 64, 128),
        settings=(("lr_3d", "3e-3"), ("foreground_crops", "false"), ("slice_step", "8")),
    )


def pool_and_val(dataset: Path) -> tuple[list[str], list[str]]:
    """The cases to choose from, and those for validation."""
    last = json.loads((dataset / "splits_final.json").read_bytes())[-1]
    return sorted(last["train"]), sorted(last["val"])


def _sets(dataset: Path, pool: list[str], folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Names of the sets and their cases, the suggested one first."""
    yield SUGGESTED, suggested(dataset, pool, folder)
    yield from random_sets(pool)


def random_sets(pool: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Ten random sets of four cases."""
    generator = np.random.default_rng(0)
    for number in range(RANDOM_SETS):
        yield f"random {number}", sorted(generator.choice(sorted(pool), LABELS, replace=False).tolist())


def suggested(dataset: Path, pool: Sequence[str], folder: Path) -> list[str]:
    """The cases that `nnunet-mn suggest` chooses from the pool."""
    return sorted(one.case for one in suggest(pool_features(dataset, pool, folder), LABELS))


def pool_features(dataset: Path, pool: Sequence[str], folder: Path) -> dict[str, Features]:
    """The features of the pool's images. No label is read."""
    raw = RawImages(dataset, json.loads((dataset / "dataset.json").read_bytes()))
    images = {name: raw.of_training_case(name) or () for name in pool}
    describer = Describer(config=MNConfig(), description=raw.description)
    return features_of(images, describer, folder=folder, processes=1, skip_bad=False)[0]


def _linked(dataset: Path, folder: Path) -> Path:
    """A copy of the raw dataset by links, with a split file of its own."""
    copy = folder / "nnUNet_raw" / dataset.name
    copy.mkdir(parents=True, exist_ok=True)
    for name in ("dataset.json", "imagesTr", "labelsTr"):
        link = copy / name
        if not link.exists():
            link.symlink_to((dataset / name).resolve())
    return copy.absolute()


def _number(space: Workspace, fold: dict[str, list[str]]) -> int:
    """The number of a fold in the split files of the workspace. A new one is added."""
    file = space.dataset / "splits_final.json"
    splits = json.loads(file.read_bytes()) if file.exists() else []
    if fold not in splits:
        splits.append(fold)
    for folder in (space.dataset, space.preprocessed):
        if folder.exists():
            write_whole(folder / file.name, json.dumps(splits))
    return int(splits.index(fold))


@app.command()
def table() -> None:
    """Compare all finished trainings."""
    text = tables(_read())
    write_whole(RESULTS / "suggest.md", text)
    typer.echo(text, nl=False)


def tables(found: Sequence[Trained]) -> str:
    """A table for each dataset and number of updates, in Markdown."""
    parts = ["Written by `python benchmarks/suggest.py table`. Mean Dice after training on four cases of the pool."]
    for dataset, updates in sorted({(one.dataset, one.record["updates"]) for one in found}):
        chosen = [one for one in found if (one.dataset, one.record["updates"]) == (dataset, updates)]
        parts.append(f"{dataset}, {updates} updates\n\n{_rows(chosen)}{_gain(chosen)}")
    return "\n\n".join(parts) + "\n"


def _rows(chosen: Sequence[Trained]) -> str:
    """The random sets together, the suggested one, and how many random ones it beats, for each method."""
    all_methods = {method: _by_choice(chosen, method) for method in COMPARED}
    by_method = {method: dice for method, dice in all_methods.items() if dice}
    choices = {one.choice: one.cases for one in chosen}
    rows = [
        ["cases", *(f"`{method}`" for method in by_method)],
        ["---"] * (1 + len(by_method)),
        ["random sets: median [quarters]", *(_spread(dice) for dice in by_method.values())],
    ]
    for choice, cases in choices.items():
        name = f"{SUGGESTED}: {', '.join(cases)}" if choice == SUGGESTED else choice
        rows.append([name, *(_cell(dice, choice) for dice in by_method.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _by_choice(chosen: Sequence[Trained], method: str) -> dict[str, float]:
    return {one.choice: one.dice for one in chosen if one.method == method}


def _random(dice: dict[str, float]) -> np.ndarray:
    return np.array([value for choice, value in dice.items() if choice != SUGGESTED])


def _spread(dice: dict[str, float]) -> str:
    random = _random(dice)
    if not len(random):
        return ""
    low, middle, high = np.quantile(random, [0.25, 0.5, 0.75])
    return f"{middle:.3f} [{low:.3f}, {high:.3f}] of {len(random)}"


def _cell(dice: dict[str, float], choice: str) -> str:
    if choice not in dice:
        return ""
    random = _random(dice)
    is_placed = choice == SUGGESTED and len(random)
    beaten = f", above {(random < dice[choice]).sum()} of {len(random)}" if is_placed else ""
    return f"{dice[choice]:.3f}{beaten}"


def _gain(chosen: Sequence[Trained]) -> str:
    """M&N over nnU-Net on the same cases, where both were trained."""
    ours, theirs = _by_choice(chosen, OURS), _by_choice(chosen, FAIR_BASELINE)
    gains = np.array([dice - theirs[choice] for choice, dice in ours.items() if choice in theirs])
    if not len(gains):
        return ""
    resampled = np.random.default_rng(0).choice(gains, (10_000, len(gains))).mean(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return (
        f"\n\n`{OURS}` over `{FAIR_BASELINE}` on the same cases, mean of {len(gains)} sets: {gains.mean():+.3f} "
        f"[{low:+.3f}, {high:+.3f}]; higher in {(gains > 0).sum()} of them. The 95 % interval is that of the sets."
    )


def _read() -> list[Trained]:
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.exists() else []
    return [Trained(**json.loads(line)) for line in lines]


def main() -> None:
    """Run; a user's mistake is one line."""
    try:
        app()
    except MNError as error:
        typer.echo(f"suggest.py: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
