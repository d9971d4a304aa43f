"""Exported models: what stock nnU-Net gets, and what the card says."""

import json
import os
import resource
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.evaluation.evaluate_predictions import save_summary_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from typer.testing import CliRunner

from nnunet_mn.bridge import export
from nnunet_mn.bridge.export import CARD, FINAL, export_model
from nnunet_mn.bridge.model_card import FoldOnCard, model_card
from nnunet_mn.cli import app
from nnunet_mn.errors import MNError
from nnunet_mn.trainers.nnUNetTrainerMN import nnUNetTrainerMN_1epoch

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # nnU-Net and its plots warn

SCORES = {1: {"Dice": 0.75}, 2: {"Dice": 0.5}}
SUMMARY = {"metric_per_case": [{"metrics": SCORES}] * 2, "mean": SCORES, "foreground_mean": {"Dice": 0.625}}


@pytest.fixture(scope="module")
def trained(planned_dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with one fold, as nnU-Net leaves it."""
    dataset, results = planned_dataset(), tmp_path_factory.mktemp("results")
    settings = {"backbone": "efficientnet-lite0", "iterations_per_epoch": 2, "seed": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(results))
        patch.setenv("nnUNet_n_proc_DA", "0")
        for name, value in settings.items():
            patch.setenv(f"nnUNet_mn_{name}", str(value))
        plans = dataset.plans | {"continue_training": False}  # as nnUNetv2_train adds it
        device = torch.device("cpu")
        trainer = nnUNetTrainerMN_1epoch(plans, "3d_fullres", 0, dataset.dataset_json, device=device)
        trainer.on_train_start()
        trainer.on_train_end()  # writes the final checkpoint; how well it was trained does not matter here
    fold = Path(trainer.output_folder)
    (fold / "progress.png").touch()
    (fold / "validation").mkdir()
    save_summary_json(SUMMARY, str(fold / "validation" / "summary.json"))
    return fold.parent


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / trained.parent.name / trained.name))


def load(file: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
    return checkpoint


def test_zip_is_a_stock_model_with_the_same_network_and_nothing_of_ours(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "model.zip"
    output.parent.mkdir()
    assert export_model(trained, output) == ["fold_0"]
    with zipfile.ZipFile(output) as archive:
        archive.extractall(tmp_path / "installed")
    installed = tmp_path / "installed" / trained.parent.name / trained.name
    before, after = (load(folder / "fold_0" / FINAL) for folder in (trained, installed))
    assert set(before) - set(after) == {"mn"}
    assert after["trainer_name"] == "nnUNetTrainer"
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(installed), use_folds=None)
    assert all(
        torch.equal(tensor, before["network_weights"][name]) for name, tensor in predictor.list_of_parameters[0].items()
    )


def test_card_lies_in_the_zip_and_beside_it(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path / "model.zip")
    card = (tmp_path / "model.model_card.md").read_text()
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert archive.read(f"{trained.parent.name}/{trained.name}/{CARD}").decode() == card
    assert "| fold | cases | front | back | foreground |" in card
    assert "| fold_0 | 2 | 0.7500 | 0.5000 | 0.6250 |" in card
    assert "`efficientnet-lite0`; license of its weights: Apache-2.0" in card
    assert "| `iterations_per_epoch` | `2` |" in card


def test_card_of_a_student_names_the_network_that_taught_it(model: Path, tmp_path: Path) -> None:
    file = model / "fold_0" / "checkpoint_final.pth"
    content = load(file)
    content["mn"]["teacher_backbone"] = "nvidia/segformer-b2-finetuned-ade-512-512"
    torch.save(content, file)
    export_model(model, tmp_path / "model.zip")
    card = (tmp_path / "model.model_card.md").read_text()
    assert "`nvidia/segformer-b2-finetuned-ade-512-512`; license of its weights: NVIDIA" in card


def test_model_folder_stays_as_it_was(model: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in model.rglob("*") if file.is_file()}
    export_model(model, tmp_path / "model.zip")
    assert {file: file.read_bytes() for file in model.rglob("*") if file.is_file()} == before


def test_existing_file_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    for name in ("model.zip", "model.model_card.md"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(MNError, match=f"{name} exists"):
            export_model(model, tmp_path / "model.zip")
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()


def test_missing_folder_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(MNError, match=r"nowhere/a is not a folder; make it, or give another -o"):
        export_model(model, tmp_path / "nowhere" / "a" / "model.zip")


def test_second_model_is_exported_beside_the_first(trained: Path, tmp_path: Path) -> None:
    for name in ("first.zip", "second.v2.zip"):
        export_model(trained, tmp_path / name)
    exported = {"first.zip", "first.model_card.md", "second.v2.zip", "second.v2.model_card.md"}
    assert {file.name for file in tmp_path.iterdir()} == exported


def test_unfinished_model_is_refused(model: Path, tmp_path: Path) -> None:
    os.rename(model / "fold_0" / FINAL, model / "fold_0" / "checkpoint_latest.pth")
    with pytest.raises(MNError, match="train at least one fold to its end"):
        export_model(model, tmp_path / "model.zip")


def test_model_without_validation_is_refused_and_leaves_no_file(model: Path, tmp_path: Path) -> None:
    (model / "fold_0" / "validation" / "summary.json").unlink()
    with pytest.raises(MNError, match=r"summary\.json is missing; run nnUNetv2_train with --val"):
        export_model(model, tmp_path / "model.zip")
    assert {file.name for file in tmp_path.iterdir()} == {model.parent.name}


def test_a_missing_file_that_no_validation_writes_is_to_be_put_back(model: Path, tmp_path: Path) -> None:
    (model / "dataset_fingerprint.json").unlink()
    with pytest.raises(MNError, match=r"fingerprint\.json is missing; put back the file that the training wrote"):
        export_model(model, tmp_path / "model.zip")


def test_stock_model_is_refused(model: Path, tmp_path: Path) -> None:
    checkpoint = load(model / "fold_0" / FINAL)
    del checkpoint["mn"]
    torch.save(checkpoint, model / "fold_0" / FINAL)
    with pytest.raises(MNError, match="use nnUNetv2_export_model_to_zip"):
        export_model(model, tmp_path / "model.zip")


@pytest.mark.parametrize("name", ["nowhere", "Dataset001_A/no_model"])
def test_folder_that_is_no_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "Dataset001_A" / "no_model").mkdir(parents=True)
    with pytest.raises(MNError, match="is no model folder"):
        export_model(tmp_path / name, tmp_path / "model.zip")


def test_model_behind_a_link_is_exported(model: Path, tmp_path: Path) -> None:
    elsewhere = model.rename(tmp_path / "run_17")
    model.symlink_to(elsewhere)
    assert export_model(model, tmp_path / "model.zip") == ["fold_0"]


def test_command_says_what_it_exported(trained: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(trained), "-o", str(tmp_path / "model.zip")])
    assert "(fold_0), and its model card beside it" in result.output
    assert f"nnUNetv2_install_pretrained_model_from_zip {tmp_path / 'model.zip'}" in result.output
    assert (tmp_path / "model.zip").is_file()


def test_card_lists_every_fold_and_says_what_is_not_recorded() -> None:
    common = {"config": {"backbone": "b"}, "versions": {"torch": "2"}, "dice": {"a": 0.5}, "n_validated": 3}
    folds = [
        FoldOnCard(name="fold_0", cases={"labeled": 4, "unlabeled": 9, "val": 3}, **common),
        FoldOnCard(name="fold_1", cases={}, **common),
    ]
    card = model_card("A", folds)
    assert "| fold_0 | 4 | 9 | 3 |" in card
    assert "| fold_1 | not recorded | not recorded | not recorded |" in card


def test_card_says_which_fold_had_which_2d_network_and_settings() -> None:
    common: dict[str, Any] = {"cases": {}, "dice": {"a": 0.5}, "n_validated": 3}
    free = {"backbone": "efficientnet-lite0", "seed": 1}
    other = {"backbone": "nvidia/segformer-b2-finetuned-ade-512-512", "seed": 1, "slice_step": 2}
    trained = [("fold_0", free, {"torch": "2"}), ("fold_1", other, {"torch": "3"}), ("fold_2", free, {"torch": "2"})]
    folds = [FoldOnCard(name=name, config=config, versions=versions, **common) for name, config, versions in trained]
    card = model_card("A", folds)
    assert "- `efficientnet-lite0`; license of its weights: Apache-2.0 (fold_0, fold_2)" in card
    assert "- `nvidia/segformer-b2-finetuned-ade-512-512`; license of its weights: NVIDIA" in card
    assert "| `seed` | `1` |" in card
    assert "| `slice_step` | `not recorded` (fold_0, fold_2), `2` (fold_1) |" in card
    assert "torch 2 (fold_0, fold_2) and 3 (fold_1)" in card


def test_export_needs_no_room_for_temporary_files_elsewhere(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert export_model(trained, tmp_path / "model.zip") == ["fold_0"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more than so many bytes into a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_a_sentence_and_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    with files_of_at_most(20_000), pytest.raises(MNError, match=r"model\.zip cannot be written .*free some space"):
        export_model(trained, tmp_path / "model.zip")  # the weights take more
    assert list(tmp_path.iterdir()) == []


def test_log_of_a_failed_stock_export_stays(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_mn.bridge.export._OF_MODEL", ("plans.json", "dataset.json"))  # stock needs a third
    log = tmp_path / "model.export.log"
    with pytest.raises(MNError, match=f"failed .*all it said is in {log}"):
        export_model(trained, tmp_path / "model.zip")
    assert list(tmp_path.iterdir()) == [log]


def test_of_two_exports_at_once_the_later_one_is_refused_at_its_end(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, run = tmp_path / "model.zip", export.run_stock

    def with_another_meanwhile(*arguments: Any, **options: Any) -> float:
        seconds = run(*arguments, **options)
        monkeypatch.setattr(export, "run_stock", run)
        assert export_model(trained, output) == ["fold_0"]
        return seconds

    monkeypatch.setattr(export, "run_stock", with_another_meanwhile)
    with pytest.raises(MNError, match=f"^{output} exists; move it away or give another -o$"):
        export_model(trained, output)
    assert {file.name for file in tmp_path.iterdir()} == {"model.zip", "model.model_card.md"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fold_0/validation/summary.json", "run nnUNetv2_train with --val"),
        ("plans.json", "put back"),
        ("dataset.json", "put back"),
        ("dataset_fingerprint.json", "put back"),
    ],
)
@pytest.mark.parametrize("content", ['{"mean": {"1"', "[]"])
def test_half_written_file_is_refused_by_name(model: Path, tmp_path: Path, name: str, said: str, content: str) -> None:
    (model / name).write_text(content)
    with pytest.raises(MNError, match=f"{model / name} .*{said}"):
        export_model(model, tmp_path / "model.zip")
    assert {file.name for file in tmp_path.iterdir()} == {model.parent.name}


def test_labels_that_the_training_of_another_fold_has_replaced_are_named(model: Path, tmp_path: Path) -> None:
    file = model / "dataset.json"
    description = json.loads(file.read_text())
    file.write_text(json.dumps({**description, "labels": {**description["labels"], "third": 3}}))
    with pytest.raises(MNError, match=r"dataset\.json says that .* was trained with labels .*'third': 3}, but it was"):
        export_model(model, tmp_path / "model.zip")
    assert not (tmp_path / "model.zip").exists()


def test_summary_without_scores_is_refused(model: Path, tmp_path: Path) -> None:
    summary = model / "fold_0" / "validation" / "summary.json"
    for content in ("{}", json.dumps({"mean": {"1": {}}, "foreground_mean": {}, "metric_per_case": []})):
        summary.write_text(content)
        with pytest.raises(MNError, match=f"{summary} lacks .*run nnUNetv2_train with --val"):
            export_model(model, tmp_path / "model.zip")


def test_regions_are_called_by_their_names(model: Path, tmp_path: Path) -> None:
    dataset_json = json.loads((model / "dataset.json").read_text())
    dataset_json["labels"] = {"background": 0, "whole": [1, 2], "back": 2}
    (model / "dataset.json").write_text(json.dumps(dataset_json))
    file = model / "fold_0" / FINAL
    checkpoint = load(file)
    torch.save({**checkpoint, "init_args": {**checkpoint["init_args"], "dataset_json": dataset_json}}, file)
    means = {(1, 2): {"Dice": 0.75}, 2: {"Dice": 0.5}}
    summary = SUMMARY | {"mean": means, "metric_per_case": []}
    save_summary_json(summary, str(model / "fold_0" / "validation" / "summary.json"))
    export_model(model, tmp_path / "model.zip")
    assert "| fold | cases | whole | back | foreground |" in (tmp_path / "model.model_card.md").read_text()
