"""A trained model as a zip for stock nnU-Net, without the parts for M&N's training alone."""

import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.files import read_object
from nnunet_mn.bridge.model_card import FoldOnCard, model_card
from nnunet_mn.bridge.model_folders import FINAL, JOINT_TRAINER, PUT_BACK, ModelFolders, read_json
from nnunet_mn.bridge.reading import read_by_environment
from nnunet_mn.bridge.staging import save_tensors, staging_beside
from nnunet_mn.bridge.stock_commands import run_stock
from nnunet_mn.bridge.trained_with import files_beside
from nnunet_mn.errors import MNError

ZIP, CARD, RESULTS = "model.zip", "model_card.md", "nnUNet_results"  # in the staging folder
VALIDATE = "run nnUNetv2_train with --val for this fold to write it anew"
_OF_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json")
_OF_FOLD = ("progress.png", "validation/summary.json")  # nnU-Net's export insists on both


def export_model(folder: Path, output: Path) -> list[str]:
    """Export every finished fold of a model with nnU-Net's own export, and write a model card into the zip.

    Args:
        folder: nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION; it stays as it is.
        output: the zip; for `a.zip`, a copy of the model card is put beside it as `a.model_card.md`.

    Returns:
        The names of the exported folds.

    Raises:
        MNError: when the folder is no finished M&N model, a file is in the way or cannot be written, or nnU-Net's
            export fails.
    """
    if not output.name or output.is_dir():
        raise MNError(f"-o is {output}, which is a folder; give a file such as {output / ZIP}")
    model = ModelFolders.of(folder)
    if model.trainer == JOINT_TRAINER:
        raise MNError(f"{folder} is a joint model; export it with nnUNetv2_export_model_to_zip -tr {JOINT_TRAINER}")
    folds = _finished_folds(model)
    card_file, log = (output.with_name(f"{output.name.removesuffix('.zip')}.{end}") for end in (CARD, "export.log"))
    if not output.parent.is_dir():
        raise MNError(f"{output.parent} is not a folder; make it, or give another -o")
    _refuse_existing(output, card_file)
    try:
        with staging_beside(output) as staging:
            _pack(model, folds, staging, log)
            _refuse_existing(output, card_file)  # another export may have ended meanwhile
            (staging / ZIP).rename(output)
            (staging / CARD).rename(card_file)
    except OSError as error:
        raise MNError(f"{output} cannot be written ({error}); free some space there, or give another -o") from error
    return [fold.name for fold in folds]


def _refuse_existing(*files: Path) -> None:
    for file in files:
        if file.exists():
            raise MNError(f"{file} exists; move it away or give another -o")


def _pack(model: ModelFolders, folds: Sequence[Path], staging: Path, log: Path) -> None:
    """Make the zip and the card in a folder."""
    results = staging / RESULTS
    staged = results / model.dataset.name / model.trained.name
    on_card = [_stage(fold, staged / fold.name) for fold in folds]
    _stage_common(model.trained, staged)
    _run_stock_export(model, folds, staging, log)
    card = model_card(f"{model.dataset.name}, {model.trained.name}", on_card)
    (staging / CARD).write_text(card, encoding="utf-8")
    with zipfile.ZipFile(staging / ZIP, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(str((staged / CARD).relative_to(results)), card)


def _finished_folds(model: ModelFolders) -> list[Path]:
    """The folders of the folds with a finished training."""
    folds = sorted(file.parent for file in model.trained.glob(f"fold_*/{FINAL}"))
    if not folds:
        raise MNError(f"{model.trained} holds no {FINAL} in any fold; train at least one fold to its end")
    return folds


def _stage(fold: Path, target: Path) -> FoldOnCard:
    """Copy the files of a fold for nnU-Net's export, its checkpoint without the `mn` part. The card tells of both."""
    for name in _OF_FOLD:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _copy(fold / name, target / name)
    checkpoint = read_by_environment(fold / FINAL)
    if "mn" not in checkpoint:
        raise MNError(
            f"{fold / FINAL} holds no M&N state: it is of stock nnU-Net, or was exported before; use "
            f"nnUNetv2_export_model_to_zip"
        )
    files_beside(fold / FINAL, checkpoint)  # refuses those of another training
    mn: Mapping[str, Any] = checkpoint.pop("mn")
    save_tensors(checkpoint, target / FINAL)
    return _fold_on_card(fold, mn)


def _stage_common(folder: Path, target: Path) -> None:
    """Copy the files of all folds together for nnU-Net's export."""
    for name in _OF_MODEL:
        _copy(folder / name, target / name)
    for name in ("summary.json", "postprocessing.json", "postprocessing.pkl"):
        for file in folder.glob(f"crossval_results_folds_*/{name}"):
            (target / file.parent.name).mkdir(exist_ok=True)
            _copy(file, target / file.parent.name / name)


def _copy(file: Path, target: Path) -> None:
    """Copy a file of the model. A missing or half-written one is refused."""
    remedy = VALIDATE if file.name == "summary.json" else PUT_BACK
    if not file.is_file():
        raise MNError(f"{file} is missing; {remedy}")
    if file.suffix == ".json":
        read_object(file, remedy=remedy)
    shutil.copyfile(file, target)


def _run_stock_export(model: ModelFolders, folds: Sequence[Path], staging: Path, log: Path) -> None:
    names = (fold.name.removeprefix("fold_") for fold in folds)
    which = ("-d", model.dataset.name, "-c", model.configuration, "-tr", model.trainer, "-p", model.plans, "-f", *names)
    own_log = staging / log.name  # two exports may have the same -o
    try:
        run_stock(
            ["nnUNetv2_export_model_to_zip", "-o", str(staging / ZIP), *which],
            environment={**os.environ, "nnUNet_results": str(staging / RESULTS)},
            log=own_log,
        )
    except MNError as error:
        if not own_log.is_file():
            raise
        own_log.replace(log)  # it stays: the message names it
        raise MNError(str(error).replace(str(own_log), str(log))) from error


def _fold_on_card(fold: Path, mn: Mapping[str, Any]) -> FoldOnCard:
    file = fold / "validation" / "summary.json"
    class_names = read_json(fold.parent / "dataset.json", "labels")["labels"]
    summary = read_object(file, "mean", "foreground_mean", "metric_per_case", remedy=VALIDATE)
    names = {_key(value): name for name, value in class_names.items()}
    taught = {"backbone": mn["teacher_backbone"]} if "teacher_backbone" in mn else {}  # a student's own is not used
    try:
        dice = {names.get(key, key): float(scores["Dice"]) for key, scores in summary["mean"].items()}
        dice["foreground"] = float(summary["foreground_mean"]["Dice"])
        n_validated = len(summary["metric_per_case"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MNError(f"{file} lacks scores that nnU-Net writes ({error!r}); {VALIDATE}") from error
    return FoldOnCard(
        name=fold.name,
        cases=mn.get("cases", {}),
        config={**mn["config"], **taught},
        versions=mn["versions"],
        dice=dice,
        n_validated=n_validated,
    )


def _key(label: Any) -> str:
    """How nnU-Net's summary.json calls a class or a region."""
    return str(tuple(label)) if isinstance(label, list) else str(label)
