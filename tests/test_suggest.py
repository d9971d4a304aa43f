"""The command `nnunet-mn suggest`, on raw datasets with and without labels."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from typer.testing import CliRunner

from nnunet_mn import cli
from nnunet_mn.bridge.cases.dataset import find_dataset
from nnunet_mn.bridge.suggesting import features
from nnunet_mn.bridge.suggesting.candidates import find_candidates
from nnunet_mn.bridge.suggesting.features import CACHE
from nnunet_mn.bridge.suggesting.run import read_estimates
from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks.build import load_backbone
from nnunet_mn.networks.description import describe
from nnunet_mn.report.suggestion_table import print_suggestions
from nnunet_mn.report.tables import as_json, rows_of
from nnunet_mn.suggesting import Suggestion

from .conftest import TinyDataset, make_volume


def run(dataset: TinyDataset, *options: str) -> Any:
    return CliRunner().invoke(cli.app, ["suggest", "-d", str(dataset.number), *options])


def chosen(dataset: TinyDataset, *options: str) -> list[str]:
    result = run(dataset, "--json", *options)
    assert result.exit_code == 0, result.exception
    return [case["case"] for case in json.loads(result.stdout)]


def refusal(dataset: TinyDataset, *options: str) -> str:
    result = run(dataset, *options)
    assert isinstance(result.exception, MNError)
    return str(result.exception)


@pytest.fixture
def bare(tiny_dataset) -> TinyDataset:
    """Four-channel images in imagesTr and imagesUn, and no label."""
    dataset = tiny_dataset(n_labeled=2, n_val=0, n_unlabeled=2, channels=4, layout="imagesUn", split_file=False)
    shutil.rmtree(dataset.raw / "labelsTr")
    return dataset


def test_dataset_without_any_label_gets_suggestions_with_reasons(bare) -> None:
    result = run(bare, "-n", "2")
    assert result.exit_code == 0
    assert "look alike" in result.stdout or "looks like no other" in result.stdout
    assert set(chosen(bare, "-n", "4")) == {*bare.labeled, *bare.unlabeled}


def test_stacks_of_tiff_are_read_as_volumes(bare) -> None:
    for image in list(bare.raw.glob("images*/*.nii.gz")):
        volume = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(image))
        tifffile.imwrite(str(image).replace(".nii.gz", ".tif"), volume, photometric="minisblack")
        image.unlink()
    description = json.loads((bare.raw / "dataset.json").read_bytes())
    (bare.raw / "dataset.json").write_text(json.dumps({**description, "file_ending": ".tif"}))
    assert set(chosen(bare, "-n", "4")) == {*bare.labeled, *bare.unlabeled}


def test_images_are_read_once_and_again_when_they_change(bare) -> None:
    chosen(bare, "-n", "2")
    kept = bare.preprocessed / CACHE
    before = described(kept)
    chosen(bare, "-n", "2")
    assert described(kept) == before == sorted([*bare.labeled, *bare.unlabeled])
    changed = bare.unlabeled[0]
    images = bare.raw / "imagesUn"
    shutil.copy(images / f"{changed}_0001.nii.gz", images / f"{changed}_0000.nii.gz")
    chosen(bare, "-n", "2")
    assert described(kept) == sorted([*before, changed])


def test_half_a_line_of_a_killed_run_does_no_harm(bare) -> None:
    first = chosen(bare, "-n", "2")
    kept = bare.preprocessed / CACHE
    kept.write_text(kept.read_text()[:-200])
    assert chosen(bare, "-n", "2") == first
    assert chosen(bare, "-n", "2") == first


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is hard to make here")
def test_full_disk_costs_no_more_than_the_kept_features(bare, monkeypatch) -> None:
    monkeypatch.setattr(features, "_read", lambda *_: ())
    bare.preprocessed.mkdir(exist_ok=True)
    (bare.preprocessed / CACHE).symlink_to("/dev/full")
    assert len(chosen(bare, "-n", "2")) == 2


def described(kept: Path) -> list[str]:
    """The cases in the file of features, once for each time they were read."""
    return sorted(json.loads(line)["case"] for line in kept.read_text().splitlines() if line)


def test_unreadable_image_is_named_and_can_be_left_out(bare) -> None:
    image = bare.raw / "imagesUn" / f"{bare.unlabeled[0]}_0000.nii.gz"
    image.write_bytes(b"no image")
    assert str(image) in refusal(bare, "-n", "2")
    assert bare.unlabeled[0] not in chosen(bare, "-n", "3", "--skip-bad")
    assert str(image) in run(bare, "-n", "3", "--skip-bad").stderr


def test_raw_dataset_without_its_description_is_told(bare) -> None:
    (bare.raw / "dataset.json").unlink()
    assert "dataset.json cannot be read" in refusal(bare)
    assert "channel_names and file_ending" in refusal(bare)
    (bare.raw / "dataset.json").write_text('{"labels": {}}')
    assert "lacks channel_names or file_ending" in refusal(bare)


def test_more_cases_than_there_are_is_told_before_an_image_is_read(bare) -> None:
    assert refusal(bare, "-n", "5") == "-n is 5, but 4 cases can be suggested; lower it"
    assert not (bare.preprocessed / CACHE).exists()


def test_labeled_and_validation_cases_are_not_suggested(tiny_dataset) -> None:
    dataset = tiny_dataset(n_labeled=2, n_val=1, n_unlabeled=2)
    assert set(chosen(dataset, "-n", "2")) == set(dataset.unlabeled)
    assert set(chosen(dataset, "-n", "4", "--ignore-labels")) == {*dataset.labeled, *dataset.unlabeled}


def test_dataset_with_all_labels_is_told_what_to_do(tiny_dataset) -> None:
    dataset = tiny_dataset(n_labeled=2, n_val=1, n_unlabeled=0, split_file=False)
    assert "--ignore-labels" in refusal(dataset)


def test_fold_that_the_split_file_lacks_is_told(tiny_dataset) -> None:
    dataset = tiny_dataset(n_labeled=1, n_val=1, n_unlabeled=1)
    assert refusal(dataset, "-f", "3") == "fold 3 is not in the split file, which has 0 to 0; give one of them to -f"


def test_a_written_split_trains_on_the_chosen_cases_too(tiny_dataset) -> None:
    dataset = tiny_dataset(n_labeled=1, n_val=1, n_unlabeled=3)
    names = chosen(dataset, "-n", "1", "--write")
    (split,) = json.loads((dataset.preprocessed / "splits_final.json").read_text())
    assert split["train"] == sorted([*dataset.labeled, *names])
    assert split["val"] == list(dataset.val)
    assert split["unlabeled"] == sorted(set(dataset.unlabeled) - set(names))
    assert "--force" in refusal(dataset, "--write")
    again = run(dataset, "-n", "1", "--write", "--force").stderr
    assert "kept the previous file" in again
    assert f"WARNING: {dataset.raw / 'splits_final.json'} does not agree with" in again


@pytest.mark.parametrize("copied", [True, False])
def test_what_else_a_fold_holds_stays_in_the_written_split(tiny_dataset, copied: bool) -> None:
    dataset = tiny_dataset(n_labeled=1, n_val=1, n_unlabeled=3)
    lists = {"train": [*dataset.labeled], "val": [*dataset.val], "unlabeled": [*dataset.unlabeled]}
    folds = [{**lists, "test": ["t"], "note": "mine"}] * 2
    folder = dataset.preprocessed if copied else dataset.raw
    folder.mkdir(exist_ok=True)
    (folder / "splits_final.json").write_text(json.dumps(folds))
    chosen(dataset, "-n", "1", "--write", "--force")
    written = json.loads((dataset.preprocessed / "splits_final.json").read_text())
    assert [(fold["test"], fold["note"]) for fold in written] == [(["t"], "mine")] * 2
    assert [len(fold["train"]) for fold in written] == [2, 1]


def test_cases_whose_images_are_gone_stay_in_the_written_split(tiny_dataset) -> None:
    dataset = tiny_dataset(n_labeled=2, n_val=1, n_unlabeled=3)
    (labeled, left), (unlabeled, *_) = dataset.labeled, dataset.unlabeled
    file = dataset.raw / "splits_final.json"
    file.write_text(json.dumps([{"train": [labeled, left], "val": [*dataset.val], "unlabeled": [*dataset.unlabeled]}]))
    for case in (labeled, unlabeled):
        (dataset.raw / f"imagesTr/{case}_0000.nii.gz").unlink()
    names = chosen(dataset, "-n", "1", "--write")
    (split,) = json.loads((dataset.preprocessed / "splits_final.json").read_text())
    assert split["train"] == sorted([labeled, left, *names])
    assert unlabeled in split["unlabeled"]
    chosen(dataset, "-n", "1", "--ignore-labels", "--write", "--force")
    (split,) = json.loads((dataset.preprocessed / "splits_final.json").read_text())
    assert len(split["train"]) == 1


def test_cases_that_were_chosen_before_are_not_suggested_again_while_they_wait_for_labels(bare) -> None:
    result = run(bare, "-n", "3", "--json", "--write")
    before = {case["case"] for case in json.loads(result.stdout)}
    assert before & set(bare.unlabeled)  # they lie in imagesUn
    assert "WARNING: there was no split file" in result.stderr
    (last,) = {*bare.labeled, *bare.unlabeled} - before
    assert chosen(bare, "-n", "1", "--write", "--force") == [last]
    (split,) = json.loads((bare.preprocessed / "splits_final.json").read_text())
    assert set(split["train"]) == {*before, last}


def test_images_in_imagesun_are_not_listed_as_unlabeled(bare) -> None:
    names = chosen(bare, "-n", "1", "--write")
    (split,) = json.loads((bare.preprocessed / "splits_final.json").read_text())
    assert split == {"train": names, "val": [], "unlabeled": sorted(set(bare.labeled) - set(names))}


def test_names_with_brackets_are_whole_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_suggestions([Suggestion(case="scan[left]_01", alike=1)], as_json=False)
    assert "scan[left]_01" in capsys.readouterr().out


def test_the_only_fold_of_a_new_split_file_is_named(bare) -> None:
    result = run(bare, "-n", "1", "-f", "2", "--write")
    assert len(json.loads((bare.preprocessed / "splits_final.json").read_text())) == 1
    assert "splits_final.json: fold 0 trains on these cases" in " ".join(result.stderr.split())


def write_report(file: Path, content: Any) -> Path:
    """The JSON file of a report with this content."""
    file.write_text(as_json(content.training, list(rows_of(content.val, content.official, content.ranked))))
    return file


def test_report_of_a_training_leads_the_choice(tiny_dataset, tmp_path: Path, report_content: ModuleType) -> None:
    dataset = tiny_dataset(n_labeled=1, n_val=1, n_unlabeled=3)
    good, worst, _ = dataset.unlabeled
    cases = [report_content.case(good, shift=0, sure=0.999), report_content.case(worst, shift=0.6)]
    report = write_report(tmp_path / "report.json", report_content.content(cases))
    result = run(dataset, "-n", "1", "--json", "--report", str(report))
    assert [case["case"] for case in json.loads(result.stdout)] == [worst]
    assert f"WARNING: the report says nothing of {dataset.unlabeled[2]}; they are left out" in result.stderr
    report.write_text("[]")
    assert "is not the JSON file of a report" in refusal(dataset, "--report", str(report))


def test_estimate_of_a_case_is_the_mean_of_its_structures_as_far_as_there_are_any(
    tmp_path: Path, report_content: ModuleType
) -> None:
    whole = report_content.case("whole")
    without = {name: replace(numbers, estimate=None) for name, numbers in whole.structures.items()}
    half = replace(whole, name="half", structures={**whole.structures, "head": without["head"]})
    content = report_content.content([whole, half, replace(whole, name="nothing", structures=without)])
    assert read_estimates(write_report(tmp_path / "report.json", content)) == pytest.approx(
        {one.case.name: one.estimate for one in content.ranked if one.estimate is not None}
    )
    assert [one.case.name for one in content.ranked if one.estimate is None] == ["nothing"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cases": 1}', '{"cases": ["a"]}', '{"cases": [{"case": "a"}]}'])
def test_file_that_is_no_report_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(MNError, match=r"report\.json is not the JSON file of a report"):
        read_estimates(tmp_path / "report.json")


def test_candidates_of_the_list_in_dataset_json(tiny_dataset) -> None:
    dataset = tiny_dataset(n_labeled=2, n_val=0, n_unlabeled=0, split_file=False)
    labels = {dataset.labeled[0]: "labelsTr/labeled_00.nii.gz", dataset.labeled[1]: "labelsTr/none.nii.gz"}
    listed = {name: {"images": [f"imagesTr/{name}_0000.nii.gz"], "label": label} for name, label in labels.items()}
    (dataset.raw / "dataset.json").write_text(json.dumps({**dataset.dataset_json, "dataset": listed}))
    found = find_candidates(find_dataset(str(dataset.number)), fold=0)
    assert (list(found.labeled), list(found.unlabeled)) == ([dataset.labeled[0]], [dataset.labeled[1]])


def test_volumes_of_any_shape_have_the_same_number_of_features() -> None:
    backbone = load_backbone(MNConfig()).eval()
    shapes = ((3, 40, 50), (20, 24, 22), (1, 8, 8))
    lengths = {len(describe(backbone, torch.rand(2, *shape))) for shape in shapes}
    assert len(lengths) == 1


def test_features_do_not_depend_on_the_scale_of_intensities() -> None:
    backbone = load_backbone(MNConfig()).eval()
    image = torch.from_numpy(make_volume(0)[0])
    np.testing.assert_allclose(describe(backbone, image), describe(backbone, 1000 * image - 500), atol=1e-3)
