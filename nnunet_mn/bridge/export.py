"""A trained model as a zip for stock nnU-Net, without the parts for M&N's training alone."""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.model_card import TrainedFold, model_card
from nnunet_mn.bridge.reading import read_by_environment
from nnunet_mn.bridge.stock_commands import run_stock
from nnunet_mn.errors import MNError
from nnunet_mn.networks.registry import license_of

CHECKPOINT = "checkpoint_final.pth"
CARD = "model_card.md"
_OF_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json")
_OF_FOLD = ("progress.png", "validation/summary.json")  # nnU-Net's export insists on both


@dataclass(frozen=True)
class _Model:
    """The result folder of a trainer, plans and configuration."""

    folder: Path
    dataset: str
    trainer: str
    plans: str
    configuration: str

    @property
    def folds(self) -> list[Path]:
        """The folds with a finished training."""
        return sorted(file.parent for file in self.folder.glob(f"fold_*/{CHECKPOINT}"))


def export_model(folder: Path, output: Path) -> list[str]:
    """Export every finished fold of a model with nnU-Net's own export, and write a model card into the zip.

    Args:
        folder: nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION; it stays as it is.
        output: the zip; for `a.zip`, a copy of the model card is put beside it as `a.model_card.md`.

    Returns:
        The names of the exported folds.

    Raises:
        MNError: when the folder is no finished M&N model, a file is in the way, or nnU-Net's export fails.
    """
    model = _model(folder)
    card_file = output.with_name(f"{output.name.removesuffix('.zip')}.{CARD}")
    for file in (output, card_file):
        if file.exists():
            raise MNError(f"{file} exists; move it away or give another -o")
    with tempfile.TemporaryDirectory(prefix="nnunet-mn-export-") as scratch:
        results = Path(scratch, "nnUNet_results")
        staged = results / model.dataset / model.folder.name
        parts = [_stage(fold, staged / fold.name) for fold in model.folds]
        _stage_common(model.folder, staged)
        card = _card(model, parts)
        made = Path(scratch, "model.zip")
        _run_stock_export(model, results, made)
        with zipfile.ZipFile(made, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(str((staged / CARD).relative_to(results)), card)
        _put(made, card, output, card_file)
    return [fold.name for fold in model.folds]


def _model(folder: Path) -> _Model:
    folder = Path(os.path.abspath(folder))  # a link keeps its name
    parts = folder.name.split("__")
    if not folder.is_dir() or len(parts) != 3 or not folder.parent.name.startswith("Dataset"):
        raise MNError(f"{folder} is no model folder; give nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION")
    model = _Model(folder, folder.parent.name, *parts)
    if not model.folds:
        raise MNError(f"{folder} holds no {CHECKPOINT} in any fold; train at least one fold to its end")
    return model


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise MNError(f"{file} is missing; run nnUNetv2_train with --val for this fold to finish its validation")
    return file


def _stage(fold: Path, target: Path) -> Mapping[str, Any]:
    """Copy the files of a fold for nnU-Net's export; take the `mn` part out of the checkpoint and return it."""
    for name in _OF_FOLD:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_existing(fold / name), target / name)
    checkpoint = read_by_environment(fold / CHECKPOINT)
    if "mn" not in checkpoint:
        raise MNError(f"{fold / CHECKPOINT} is not of an M&N training; use nnUNetv2_export_model_to_zip")
    mn: Mapping[str, Any] = checkpoint.pop("mn")
    torch.save(checkpoint, target / CHECKPOINT)
    return mn


def _stage_common(folder: Path, target: Path) -> None:
    """Copy the files of all folds together for nnU-Net's export."""
    for name in _OF_MODEL:
        shutil.copyfile(_existing(folder / name), target / name)
    for name in ("summary.json", "postprocessing.json", "postprocessing.pkl"):
        for file in folder.glob(f"crossval_results_folds_*/{name}"):
            (target / file.parent.name).mkdir(exist_ok=True)
            shutil.copyfile(file, target / file.parent.name / name)


def _run_stock_export(model: _Model, results: Path, output: Path) -> None:
    folds = (fold.name.removeprefix("fold_") for fold in model.folds)
    which = ("-d", model.dataset, "-c", model.configuration, "-tr", model.trainer, "-p", model.plans, "-f", *folds)
    run_stock(
        ["nnUNetv2_export_model_to_zip", "-o", str(output), *which],
        environment={**os.environ, "nnUNet_results": str(results)},
        log=results.with_name("export.log"),
    )


def _card(model: _Model, parts: list[Mapping[str, Any]]) -> str:
    class_names = json.loads((model.folder / "dataset.json").read_bytes())["labels"]
    folds = [_trained_fold(fold, mn, class_names) for fold, mn in zip(model.folds, parts, strict=True)]
    return model_card(f"{model.dataset}, {model.folder.name}", folds, license=license_of(folds[0].config["backbone"]))


def _trained_fold(fold: Path, mn: Mapping[str, Any], class_names: Mapping[str, Any]) -> TrainedFold:
    summary = json.loads((fold / "validation" / "summary.json").read_bytes())
    names = {_key(value): name for name, value in class_names.items()}
    dice = {names.get(key, key): scores["Dice"] for key, scores in summary["mean"].items()}
    taught = {"backbone": mn["teacher_backbone"]} if "teacher_backbone" in mn else {}  # a student's own is not used
    return TrainedFold(
        name=fold.name,
        cases=mn.get("cases", {}),
        config={**mn["config"], **taught},
        versions=mn["versions"],
        dice={**dice, "foreground": summary["foreground_mean"]["Dice"]},
        n_validated=len(summary["metric_per_case"]),
    )


def _key(label: Any) -> str:
    """How nnU-Net's summary.json calls a class or a region."""
    return str(tuple(label)) if isinstance(label, list) else str(label)


def _put(made: Path, card: str, output: Path, card_file: Path) -> None:
    """Give both files their places, each whole."""
    temporary = output.with_name(f".{output.name}.{uuid4().hex}.tmp")
    try:
        shutil.copyfile(made, temporary)
        temporary.replace(output)
        write_whole(card_file, card)
    except OSError as error:
        raise MNError(f"{output} cannot be written ({error.strerror}); give another -o") from error
    finally:
        temporary.unlink(missing_ok=True)
