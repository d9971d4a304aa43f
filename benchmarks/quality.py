"""Is the report's estimated Dice worth something? Compares it with the true Dice of unlabeled cases.

    python benchmarks/quality.py measure DATASET_FOLDER --work FOLDER --run mn_fold0_seed0 --fold 0
    python benchmarks/quality.py table

DATASET_FOLDER is a raw nnU-Net dataset whose unlabeled cases have labels in labelsTr. Training has never read them.
FOLDER is the workspace of benchmarks/accuracy.py with the training. `measure` predicts the unlabeled cases as
`nnunet-mn report` does. It keeps one line a training in benchmarks/results/quality.jsonl. `table` writes quality.json
and quality.md from these lines.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from evidence.quality_limits import limits, pairs, values_of
from evidence.views import PredictionsWithViews
from evidence.workspace import CONFIGURATION, PLANS
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from scipy.stats import spearmanr

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.model_folders import ModelFolders
from nnunet_mn.bridge.prediction.fold import find_trained_fold
from nnunet_mn.bridge.prediction.masks import mask_files
from nnunet_mn.bridge.prediction.structures import structures_of
from nnunet_mn.errors import MNError
from nnunet_mn.report.predictions import PredictionOptions

RESULTS = Path(__file__).parent / "results"
RECORDS = RESULTS / "quality.jsonl"
DRAWS = 2000  # of the bootstrap

Numbers = Mapping[str, float]
WORST = "expected Dice of the worst structure"
# What a structure's numbers say about its mask: the higher the better.
SCORES: dict[str, Callable[[Numbers], float]] = {
    "agreement of the networks (1 - disagreement)": lambda n: 1 - n["disagreement"],
    "certainty (1 - mean entropy)": lambda n: 1 - n["entropy"],
    "mean of agreement and certainty": lambda n: (2 - n["disagreement"] - n["entropy"]) / 2,
    "expected Dice of the joint mask": lambda n: n["estimate"],
    WORST: lambda n: n["estimate"],
    "mean of agreement and expected Dice": lambda n: (1 - n["disagreement"] + n["estimate"]) / 2,
    "expected Dice under the 3D network alone": lambda n: n["under_3d"],
    "expected Dice under the 2D network alone": lambda n: n["under_2d"],
    "lowest expected Dice under one view": lambda n: n["under_worst"],
    "expected Dice at temperature 2": lambda n: n["softer"],
    "expected Dice, pulled to 0.5 where views disagree": lambda n: n["pulled"],
    "agreement of the views' probabilities": lambda n: n["views_soft"],
    "agreement of the views' masks": lambda n: n["views_masks"],
    "voxels over 0.9 of those over 0.1": lambda n: n["core"],
    "certainty at the border": lambda n: n["border"],
    "volume of the joint mask": lambda n: n["volume_ml"],
}
DEFAULT = "expected Dice of the joint mask"
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def measure(
    dataset: Annotated[Path, typer.Argument(help="raw nnU-Net dataset")],
    work: Annotated[Path, typer.Option(help="workspace of accuracy.py")],
    run: Annotated[str, typer.Option(help="name of the training there")],
    fold: Annotated[str, typer.Option(help="of the training")] = "0",
    out: Annotated[Path, typer.Option(help="folder for predictions; an interrupted run goes on")] = Path("quality"),
    mirroring: Annotated[bool, typer.Option(help="as nnU-Net predicts; up to eight times as slow")] = True,
) -> None:
    """Predict the unlabeled cases of a training, and compare with their labels."""
    (results,) = sorted(work.glob(f"runs/*/{run}"))
    os.environ |= {
        "nnUNet_raw": str(dataset.parent.resolve()),
        "nnUNet_preprocessed": str(work / "nnUNet_preprocessed"),
        "nnUNet_results": str(results),
    }
    folders = ModelFolders(
        dataset=results / dataset.name, trainer="nnUNetTrainerMN", plans=PLANS, configuration=CONFIGURATION
    )
    found = find_trained_fold(folders, fold)
    found = replace(found, roles=replace(found.roles, val=()))
    options = PredictionOptions(device=torch.device("cpu"), mirroring=mirroring, masks=True)
    folder = out / dataset.name / run
    predictions = PredictionsWithViews(found, folder, options)
    cases = predictions.all(typer.echo)
    record = {
        "dataset": dataset.name,
        "run": run,
        "scale": results.parent.name,
        "epochs": len(found.checkpoint["logging"]["train_losses"]),
        "checkpoint": found.file.name,
        "mirroring": mirroring,
        "labeled": len(found.roles.labeled),
        "cases": {
            case.name: {
                name: {**_kept(numbers), **predictions.numbers(case.name)[name], "dice": true}
                for (name, numbers), true in zip(
                    case.structures.items(), _true_dice(found, dataset, folder, case.name), strict=True
                )
            }
            for case in cases
        },
        "together": {case.name: _together(found, dataset, folder, case.name) for case in cases},
    }
    _keep(record)
    _print(record)


def _kept(numbers: Any) -> dict[str, Any]:
    return {key: getattr(numbers, key) for key in ("estimate", "disagreement", "entropy", "volume_ml", "components")}


def _true_dice(found: Any, dataset: Path, folder: Path, name: str) -> Iterator[float | None]:
    """nnU-Net's Dice of each structure, in the image's own voxels."""
    manager, description = found.planned.plans_manager, found.planned.dataset_json
    structures = structures_of(manager.get_label_manager(description), description)
    ending = description["file_ending"]
    truth, mask = dataset / "labelsTr" / f"{name}{ending}", mask_files(folder, name, ending)[0]
    keys = [s.labels if len(s.labels) > 1 else s.labels[0] for s in structures]
    metrics = compute_metrics(str(truth), str(mask), manager.image_reader_writer_class(), keys)["metrics"]
    for key in keys:
        yield None if np.isnan(metrics[key]["Dice"]) else float(metrics[key]["Dice"])


def _together(found: Any, dataset: Path, folder: Path, name: str) -> dict[str, float]:
    """All structures as one: their Dice, and the share of their common voxels that the mask gives to a wrong one."""
    ending = found.planned.dataset_json["file_ending"]
    reader = found.planned.plans_manager.image_reader_writer_class()
    files = (dataset / "labelsTr" / f"{name}{ending}", mask_files(folder, name, ending)[0])
    truth, mask = (reader.read_seg(str(file))[0] for file in files)
    both = (truth > 0) & (mask > 0)
    return {
        "dice": 2 * int(both.sum()) / max(1, int((truth > 0).sum()) + int((mask > 0).sum())),
        "mixed_up": float((truth != mask)[both].mean()) if both.any() else 0.0,
    }


def _keep(record: dict[str, Any]) -> None:
    """Replace the line of the same training."""
    same = ("dataset", "run", "scale")
    others = [other for other in _records() if any(other[key] != record[key] for key in same)]
    lines = sorted(json.dumps(one, sort_keys=True) for one in [*others, record])
    write_whole(RECORDS, "\n".join(lines) + "\n")


def _records() -> list[dict[str, Any]]:
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.exists() else []
    return [json.loads(line) for line in lines]


def correlations(record: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Spearman correlation of each score with the true Dice, and its 95 % interval by bootstrap over cases."""
    true = values_of(record, "dice")
    draws = np.random.default_rng(0).integers(len(true), size=(DRAWS, len(true)))
    found = {}
    for name, score in SCORES.items():
        over = np.min if name == WORST else np.mean
        values = np.array([_over(case, score, over) for case in record["cases"].values()])
        drawn = [spearmanr(values[draw], true[draw]).statistic for draw in draws]
        low, high = np.nanpercentile(drawn, (2.5, 97.5))
        found[name] = (float(spearmanr(values, true).statistic), float(low), float(high))
    return found


def _over(
    case: dict[str, dict[str, Any]], score: Callable[[Numbers], float], over: Callable[[list[float]], Any]
) -> float:
    """A score over the structures of a case. What no network sees counts 0."""
    return float(over([0 if None in numbers.values() else score(numbers) for numbers in case.values()]))


def _print(record: dict[str, Any]) -> None:
    typer.echo(f"{record['dataset']}, {record['run']}: {len(record['cases'])} unlabeled cases")
    for name, (value, low, high) in correlations(record).items():
        typer.echo(f"{name:46} {value:.2f} [{low:.2f}, {high:.2f}]")


@app.command()
def table() -> None:
    """Write quality.json and quality.md from all kept trainings."""
    records = sorted(_records(), key=lambda record: (record["dataset"], record["labeled"], record["run"]))
    if not records:
        raise MNError(f"{RECORDS} holds nothing; run measure first")
    found = [correlations(record) for record in records]
    heads = [f"{r['dataset'].partition('_')[2]}, {r['labeled']} labels, {r['run']}" for r in records]
    lines = [
        "Spearman correlation of scores with the true Dice of the joint mask. Over unlabeled cases [95 % interval].",
        "Written by `python benchmarks/quality.py table`.",
        "",
        f"| score | {' | '.join(heads)} |",
        f"|---|{'---|' * len(records)}",
    ]
    for name in SCORES:
        cells = " | ".join(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in (one[name] for one in found))
        lines.append(f"| {name}{' (the default)' * (name == DEFAULT)} | {cells} |")
    lines += [""] + [f"- {_described(record)}" for record in records] + _limits_in_words(records, heads)
    write_whole(RESULTS / "quality.md", "\n".join(lines) + "\n")
    write_whole(RESULTS / "quality.json", json.dumps(_summary(records, found), indent=1) + "\n")
    typer.echo("\n".join(lines))


def _limits_in_words(records: list[dict[str, Any]], heads: list[str]) -> list[str]:
    """A table of comparisons that need the truth, and the true Dice of two trainings."""
    known = [limits(record) for record in records]
    rows = [f"| {name} | {' | '.join(_cell(one[name]) for one in known)} |" for name in known[0]]
    return [
        "",
        "What the scores can know. These comparisons need the truth. They are Spearman correlations too.",
        "",
        f"| comparison | {' | '.join(heads)} |",
        f"|---|{'---|' * len(records)}",
        *rows,
        "",
        "True Dice of two trainings with other labeled cases, over the unlabeled cases that they share:",
        "",
        *(f"- {sentence}" for sentence in pairs(records)),
    ]


def _cell(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def _summary(records: list[dict[str, Any]], found: list[dict[str, tuple[float, float, float]]]) -> list[dict[str, Any]]:
    """What the report says: the correlations of all trainings with equal numbers of cases."""
    grouped: dict[tuple[str, int, int], list[float]] = {}
    for record, one in zip(records, found, strict=True):
        key = (record["dataset"], record["labeled"], len(record["cases"]))
        grouped.setdefault(key, []).append(round(one[DEFAULT][0], 2))
    return [
        dict(zip(("dataset", "labeled", "cases", "correlations"), (*key, grouped[key]), strict=True)) for key in grouped
    ]


def _described(record: dict[str, Any]) -> str:
    """A training in a sentence or two."""
    true, estimated = (values_of(record, key) for key in ("dice", "estimate"))
    off = np.mean(np.abs(np.subtract(true, estimated)))
    return (
        f"{record['dataset']}, {record['run']}: {record['labeled']} labeled and {len(true)} unlabeled cases, "
        f"{record['scale']}, {record['epochs']} epochs, {record['checkpoint']}, "
        f"{'with' if record['mirroring'] else 'without'} mirroring. True Dice {np.mean(true):.3f} "
        f"({np.min(true):.3f} to {np.max(true):.3f}), estimated {np.mean(estimated):.3f}, off by {off:.3f} on average."
    )


if __name__ == "__main__":
    try:
        app()
    except MNError as error:
        typer.echo(f"quality.py: {error}", err=True)
        raise SystemExit(2) from None
