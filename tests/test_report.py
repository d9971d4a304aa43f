"""`nnunet-mn report` on trainings, from the command to the files."""

import csv
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from typer.testing import CliRunner, Result

from nnunet_mn.bridge.cases.preprocessed import state_of
from nnunet_mn.bridge.model_folders import ModelFolders
from nnunet_mn.bridge.prediction.fold import TrainedFold, find_trained_fold, load_case
from nnunet_mn.bridge.prediction.predictor import BothPredictor
from nnunet_mn.bridge.prediction.structures import structures_of
from nnunet_mn.bridge.training.join import join
from nnunet_mn.cli import app
from nnunet_mn.errors import MNError
from nnunet_mn.report import write
from nnunet_mn.report.reference import usual_structures
from nnunet_mn.report.training import training_of
from nnunet_mn.report.validation import read_validation

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # nnU-Net warns

EVIL = "<script>&'"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TURNED = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # directions of the axes
GEOMETRY = {"Spacing": (0.8, 1.1, 1.9), "Origin": (5.0, -3.0, 40.0), "Direction": TURNED}


def trained(site: Any) -> TrainedFold:
    with folders_of(site):
        results = site.fold.parents[1]
        names = {"trainer": "nnUNetTrainerMN", "plans": "nnUNetPlans", "configuration": "3d_fullres"}
        return find_trained_fold(ModelFolders(dataset=results, **names), "0")


@contextmanager
def folders_of(site: Any) -> Iterator[None]:
    """Inside, nnU-Net's folders are those of a site."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.setenv(name, str(site.root / name))
        yield


def report(site: Any, *options: str) -> Result:
    """Run the command, as a user does, but for mirroring: it takes eight times as long."""
    with folders_of(site):
        return CliRunner().invoke(app, ["report", "-d", site.name, "--disable_tta", "-device", "cpu", *options])


@pytest.fixture(scope="module")
def site(planned_dataset: Any, copy_site: Any, train: Any, tmp_path_factory: Any, volume_tools: Any) -> Any:
    """A finished and validated training, with an unlabeled image of an evil name and of another geometry."""
    made = copy_site(planned_dataset(layout="imagesUn"), tmp_path_factory.mktemp("report") / "root")
    image, _ = volume_tools.make(9, shape=(15, 30, 18))
    made.write(image[0], f"{EVIL}_0000.nii.gz", **GEOMETRY)
    code, output = train(made)
    assert code == 0, output
    return made


@pytest.fixture(scope="module")
def out(site: Any) -> Path:
    """The folder of its report, with masks."""
    result = report(site, "--masks")
    assert result.exit_code == 0, result.output
    return site.fold / "report"


def rows_of(out: Path, role: str) -> list[dict[str, str]]:
    with (out / "report.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["role"] == role]


def test_every_case_is_in_the_tables_and_on_the_page(out: Path, site: Any) -> None:
    assert {row["case"] for row in rows_of(out, "val")} == set(site.names["val"])
    assert {row["case"] for row in rows_of(out, "unlabeled")} == {*site.names["unlabeled"], EVIL}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert EVIL not in page
    assert all(name in page for name in (*site.names["val"], *site.names["unlabeled"]))
    assert json.loads((out / "report.json").read_bytes())["training"]["state"] == "finished and validated"


def test_dice_of_the_validation_is_nnunets_own_and_distances_belong_to_it(out: Path, site: Any) -> None:
    cases = json.loads((site.fold / "validation" / "summary.json").read_bytes())["metric_per_case"]
    expected = {
        (Path(case["prediction_file"]).name.removesuffix(".nii.gz"), name): case["metrics"][str(label)]["Dice"]
        for case in cases
        for name, label in (("front", 1), ("back", 2))
    }
    found = {(row["case"], row["structure"]): float(row["nnunet_dice"]) for row in rows_of(out, "val")}
    assert found == pytest.approx(expected)
    assert any(row["nnunet_hd95_mm"] for row in rows_of(out, "val"))


def test_masks_have_the_geometry_of_their_image_and_labels_of_nnunet(out: Path, site: Any) -> None:
    for name in (*site.names["unlabeled"], EVIL):
        image = SimpleITK.ReadImage(str(site.raw / "imagesUn" / f"{name}_0000.nii.gz"))
        for folder, most in (("masks", 2), ("uncertainty", 100)):
            made = SimpleITK.ReadImage(str(out / folder / f"{name}.nii.gz"))
            assert made.GetSize() == image.GetSize()
            for part in ("Spacing", "Origin", "Direction"):
                assert getattr(made, f"Get{part}")() == pytest.approx(getattr(image, f"Get{part}")(), abs=1e-5)
            assert 0 <= SimpleITK.GetArrayFromImage(made).max() <= most
    assert SimpleITK.GetArrayFromImage(made).max() > 50  # a training of two updates is sure of little


def test_the_joint_mask_is_that_of_the_joined_model(out: Path, site: Any, tmp_path: Path) -> None:
    found = trained(site)
    dataset = tmp_path / found.folders.dataset.name
    shutil.copytree(found.folders.trained, dataset / found.folders.trained.name)
    folders = replace(found.folders, dataset=dataset)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(join(folders, ["0"])), use_folds=(0,))
    file = site.raw / "imagesUn" / f"{site.names['unlabeled'][0]}_0000.nii.gz"
    array, properties = predictor.plans_manager.image_reader_writer_class().read_images([str(file)])
    expected = predictor.predict_single_npy_array(array, properties)
    made = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out / "masks" / file.name.replace("_0000", ""))))
    assert len(np.unique(made)) > 1
    assert (made != expected).mean() < 0.005  # the windows' means are taken of both networks apart, in fp16


def test_what_is_there_is_used_and_edited_masks_stay(out: Path, site: Any) -> None:
    name = site.names["unlabeled"][0]
    mask, result = out / "masks" / f"{name}.nii.gz", out / "cases" / "unlabeled" / f"{name}.json"
    others = out / "cases" / "val"
    mask.write_bytes(b"edited by hand")
    result.unlink()
    before = {file: file.stat().st_mtime_ns for file in others.iterdir()}
    again = report(site, "--masks")
    assert again.exit_code == 0, again.output
    assert "5 of 6 cases are predicted already" in again.output
    assert "masks that are there stay: 1; delete one in" in again.output
    assert mask.read_bytes() == b"edited by hand"
    assert result.is_file()
    assert {file: file.stat().st_mtime_ns for file in others.iterdir()} == before


def test_a_damaged_result_and_another_checkpoint_are_predicted_anew(out: Path, site: Any, copy_of_site: Any) -> None:
    copy = copy_of_site(site)
    for name in site.names["unlabeled"]:
        copy.unlabeled_image(f"{name}_0000.nii.gz").unlink()
    (copy.fold / "report" / "cases" / "unlabeled" / f"{EVIL}.json").write_text("{")
    assert "2 of 3 cases" in report(copy).output
    file = copy.fold / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    next(iter(content["network_weights"].values())).add_(0.01)
    torch.save(content, file)
    assert "predicted already" not in report(copy).output


@pytest.fixture
def copy_of_site(tmp_path: Path) -> Any:
    """Copies a site with its training and report. The test may change the copy."""

    def copy(site: Any) -> Any:
        shutil.copytree(site.root, tmp_path / "root")
        return type(site)(tmp_path / "root", site.name, site.names)

    return copy


def test_a_stopped_training_is_shown_as_far_as_it_went(out: Path, site: Any, copy_of_site: Any) -> None:
    copy = copy_of_site(site)
    shutil.rmtree(copy.fold / "validation")
    (copy.fold / "training.lock").touch()
    assert "validation is running, or was killed: wait for it, or run" in training_of(trained(copy)).state
    (copy.fold / "training.lock").unlink()
    assert "validation is missing: run nnUNetv2_train with --val" in training_of(trained(copy)).state
    (copy.fold / "checkpoint_final.pth").rename(copy.fold / "checkpoint_latest.pth")
    (copy.fold / "checkpoint_best.pth").unlink()
    result = report(copy)
    assert result.exit_code == 0, result.output
    assert "4 of 6 cases" in result.output  # those of the validation had distances
    page = (copy.fold / "report" / "report.html").read_text(encoding="utf-8")
    assert "stopped; the newest checkpoint is of epoch 1 of 1" in page
    assert "nnU-Net has not validated yet" in page


def test_cases_that_were_trained_on_are_not_for_validation(out: Path, site: Any, copy_of_site: Any) -> None:
    copy = copy_of_site(site)
    seen, unseen = site.names["labeled"][0], site.names["val"]
    copy.split([{"train": site.names["labeled"][1:], "val": [seen, *unseen]}])
    result = report(copy)
    assert result.exit_code == 0, result.output
    assert {row["case"] for row in rows_of(copy.fold / "report", "val")} == set(unseen)
    page = (copy.fold / "report" / "report.html").read_text(encoding="utf-8")
    assert f"was on 1 of today&#39;s validation cases ({seen})" in page


def test_labels_of_another_planning_are_refused(out: Path, site: Any, copy_of_site: Any) -> None:
    copy = copy_of_site(site)
    file = copy.preprocessed / "dataset.json"
    file.write_text(file.read_text().replace('"front"', '"other"'))
    wrong = report(copy).exception
    assert isinstance(wrong, MNError)
    assert "was planned with labels {'background': 0, 'other': 1, 'back': 2}, but" in str(wrong)
    assert "checkpoint_final.pth was trained with {'background': 0, 'front': 1, 'back': 2}" in str(wrong)


def test_a_mistake_is_a_sentence_with_the_fix(out: Path, site: Any, copy_of_site: Any) -> None:
    copy = copy_of_site(site)
    assert "give -tr, -p, -c and -f" in str(report(copy, "-f", "3").exception)
    for file in copy.fold.glob("checkpoint_*.pth"):
        file.unlink()
    wrong = report(copy).exception
    assert isinstance(wrong, MNError)
    assert "there is no checkpoint in" in str(wrong)
    assert "nnUNetv2_train" in str(wrong)
    assert "must be cuda, cpu or mps" in str(report(copy, "-device", "tpu").exception)


def test_regions_and_several_channels(planned_dataset: Any, copy_site: Any, train: Any, tmp_path: Path) -> None:
    made = copy_site(planned_dataset(labels="regions", channels=2), tmp_path / "root")
    made.validate = False
    code, output = train(made)
    assert code == 0, output
    folder = made.root / "elsewhere"
    result = report(made, "-o", str(folder))
    assert result.exit_code == 0, result.output
    assert not (folder / "masks").exists()
    assert {row["structure"] for row in rows_of(folder, "unlabeled")} == {"whole", "back"}
    assert "MR0, the first of 2 channels" in (folder / "report.html").read_text(encoding="utf-8")
    found = trained(made)
    both = BothPredictor(found, device=torch.device("cpu"), mirroring=False)
    predicted = both.predict(load_case(next(found.cases("unlabeled"))).image)
    whole = np.isin(predicted.joint, (1, 2)).sum()
    assert predicted.sums.n_joint[0] == whole


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that cannot be read is hard to make here")
def test_a_summary_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").symlink_to("/proc/self/mem")
    with pytest.raises(MNError, match=r"summary\.json cannot be read .*nnUNetv2_train with --val"):
        read_validation(tmp_path, (), ".nii.gz")


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        ("raw/a.nii.gz", "raw/a.nii.gz cannot be used"),
        (None, "the report cannot be written to .*; give another folder"),
    ],
)
def test_a_refusal_is_told_of_the_folder_that_it_belongs_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusal: str | None, sentence: str
) -> None:
    def predict(*_: Any) -> list[Any]:
        assert refusal is not None, "hours of predictions before the folder is found to be unfit"
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), refusal)

    if refusal is None:
        (tmp_path / "report").write_text("a file is in the way")
    monkeypatch.setattr(write.Predictions, "__init__", lambda *_: None)
    monkeypatch.setattr(write.Predictions, "all", predict)
    for name in ("structures_of", "usual_structures", "training_of", "render", "as_json"):
        monkeypatch.setattr(write, name, MagicMock())
    found = MagicMock()
    found.folder, found.planned.configuration_manager.spacing = tmp_path, [1.0] * 3
    found.planned.dataset_json = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    with pytest.raises(MNError, match=sentence):
        write.write_report(found, tmp_path / "report", MagicMock())


@pytest.mark.parametrize("end", [".b2nd", ".npz", ".npy"])
def test_state_of_a_case_tells_a_change_in_each_of_nnunets_formats(tmp_path: Path, end: str) -> None:
    file = tmp_path / f"a{end}"
    file.write_bytes(b"1")
    before = state_of(tmp_path, "a")
    file.write_bytes(b"12")
    assert before[0] == 1
    assert state_of(tmp_path, "a")[0] == 2
    assert not state_of(tmp_path, "another")


@pytest.mark.parametrize("kind", ["classes", "regions", "ignore"])
def test_structures_have_the_names_of_nnunets_summary(kind: str) -> None:
    labels = {
        "classes": {"background": 0, "b": 2, "a": 1},
        "regions": {"background": 0, "whole": [1, 2], "back": 2},
        "ignore": {"background": 0, "a": 1, "ignore": 2},
    }[kind]
    manager = LabelManager(labels, [1, 2] if kind == "regions" else None)
    structures = structures_of(manager, {"labels": labels})
    evaluated = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    assert [s.key for s in structures] == [label_or_region_to_key(one) for one in evaluated]
    assert [s.channel for s in structures] == ([0, 1] if manager.has_regions else [1, 2][: len(structures)])


def test_labeled_cases_with_ignored_voxels_are_no_measure() -> None:
    labels = {"background": 0, "a": 1, "ignore": 2}
    structures = structures_of(LabelManager(labels, None), {"labels": labels})
    whole = np.zeros((4, 4, 4), int)
    whole[0], whole[3] = 1, 1
    usual = usual_structures([whole, np.full((4, 4, 4), 2)], structures, spacing=(10, 10, 5), ignored=2)
    assert usual["a"].volumes_ml == (16.0,)
    assert usual["a"].components == (2,)
