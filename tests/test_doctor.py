"""The doctor's page: what is red, and what it says."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import safetensors.torch
import SimpleITK
import torch
from nnunetv2.utilities.crossval_split import generate_crossval_split
from rich.console import Console
from typer.testing import CliRunner

from nnunet_mn import cli
from nnunet_mn.bridge import registration
from nnunet_mn.bridge.cases.dataset import find_dataset
from nnunet_mn.bridge.cases.planned import load_planned
from nnunet_mn.bridge.cases.unlabeled import find_unlabeled_of_all_folds
from nnunet_mn.bridge.doctor import environment
from nnunet_mn.bridge.doctor.dataset import check_dataset, check_memory, judge
from nnunet_mn.bridge.doctor.page import Row, examine, print_page
from nnunet_mn.bridge.planning.cost_model import CostModel
from nnunet_mn.config import environment_layer, resolve
from nnunet_mn.errors import MNError
from nnunet_mn.targets import LabelSpace


def page(rows: Iterable[Row]) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=300)
    healthy = print_page(iter(rows), console)
    return healthy, console.file.getvalue()


def findings(rows: Iterable[Row], state: str) -> str:
    return "\n".join(f"{row.topic}: {row.finding}" for row in rows if row.state == state)


def test_page_holds_every_finding_as_it_is() -> None:
    healthy, text = page([Row("good", "a", "[bold]x[/bold]"), Row("note", "b", "y")])
    assert healthy
    assert "[bold]x[/bold]" in text
    assert "nothing here would stop a training" in text


def test_one_bad_row_makes_the_page_bad() -> None:
    healthy, text = page([Row("good", "a", "x"), Row("bad", "b", "y")])
    assert not healthy
    assert "1 of these would stop a training" in text


def test_mistake_met_by_several_checks_has_one_row() -> None:
    rows = [Row("bad", "settings", "wrong"), Row("good", "GPU", "there"), Row("bad", "plans", "wrong")]
    rows += [Row("bad", "fold 0", "wrong"), Row("bad", "fold 1", "other")]
    healthy, text = page(rows)
    assert not healthy
    assert re.findall(r"BAD +(.*\S)", text) == ["settings  wrong (also: plans, fold 0)", "fold 1    other"]
    assert "2 of these would stop a training" in text


def test_mistake_met_by_a_check_is_a_bad_row() -> None:
    def check() -> list[Row]:
        raise MNError("wrong; do this")

    assert examine("topic", check) == [Row("bad", "topic", "wrong; do this")]


def test_check_that_fails_is_a_bad_row_too() -> None:
    def check() -> list[Row]:
        raise RuntimeError("CUDA error: device busy")

    (row,) = examine("GPU", check)
    assert row.state == "bad"
    assert "RuntimeError: CUDA error: device busy" in row.finding


def test_missing_result_folder_is_bad_but_missing_raw_data_are_not(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nowhere"))
    states = {row.topic: row.state for row in environment.check_folders()}
    assert states == {"nnUNet_raw": "note", "nnUNet_preprocessed": "good", "nnUNet_results": "bad"}


def test_result_folder_that_is_a_file_is_bad(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file"))
    assert f"{tmp_path / 'file'} is not a folder; correct the variable" in findings(environment.check_folders(), "bad")


def test_wrong_setting_is_told_before_a_training(monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_mn_lr_2d", "fast")
    (row,) = examine("settings", environment.check_settings)
    assert row.state == "bad"
    assert "'lr_2d' to 'fast'" in row.finding


def test_embedded_weights_are_on_this_machine(monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_mn_backbone", "efficientnet-lite0")
    (row,) = environment.check_weights(resolve(environment_layer()))
    assert row.state == "good"
    assert "Apache-2.0" in row.finding


@pytest.mark.parametrize("backbone", ["segformr", "/no/such/folder", "timm:resnet18@/no/such/file"])
def test_weights_that_are_nowhere_are_bad(monkeypatch, backbone: str) -> None:
    monkeypatch.setenv("nnUNet_mn_backbone", backbone)
    (row,) = environment.check_weights(resolve(environment_layer()))
    assert row.state == "bad"
    assert f"{backbone} is not on this machine and cannot be downloaded" in row.finding


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model of timm: its file beside the folder that timm saves."""
    from nnunet_mn.networks.timm_backbones import timm

    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet"}')
    return tmp_path


def weights_row(monkeypatch: pytest.MonkeyPatch, backbone: str) -> Row:
    monkeypatch.setenv("nnUNet_mn_backbone", backbone)
    (row,) = examine("2D weights", lambda: environment.check_weights(resolve(environment_layer())))
    return row


def test_local_weights_are_on_this_machine(monkeypatch, model: Path) -> None:
    row = weights_row(monkeypatch, f"timm:test_resnet@{model}/model.safetensors")
    assert row.state == "good"
    assert "is on this machine and runs (license: apache-2.0)" in row.finding


@pytest.mark.parametrize(
    ("file", "content", "backbone", "finding"),
    [
        ("model.safetensors", b"", "timm:test_resnet@{folder}/model.safetensors", "model.safetensors is damaged"),
        ("model.safetensors", b"", "{folder}", "model.safetensors is damaged"),
        ("config.json", b"{", "{folder}", "config.json cannot be read as JSON"),
        ("config.json", b'{"model_type": "bert"}', "{folder}", "neither a model for semantic segmentation nor a"),
        ("preprocessor_config.json", b"", "{folder}", "use timm:test_resnet@"),
        ("other.txt", b"", "timm:resnet18@{folder}/model.safetensors", "do not fit the network"),
        ("other.txt", b"", "", "sets 'backbone' to ''; allowed is a name"),
        ("other.txt", b"", "timm:hf-hub:owner/model", "use timm:NAME@FILE"),
    ],
)
def test_weights_that_are_here_but_would_stop_a_training_are_bad(
    monkeypatch, model: Path, file: str, content: bytes, backbone: str, finding: str
) -> None:
    (model / file).write_bytes(content)
    row = weights_row(monkeypatch, backbone.format(folder=model))
    assert row.state == "bad"
    assert finding in row.finding


def test_folder_without_a_model_is_bad(monkeypatch, tmp_path: Path) -> None:
    assert weights_row(monkeypatch, str(tmp_path)).state == "bad"


def test_adaptation_that_the_network_cannot_have_is_bad(monkeypatch, model: Path) -> None:
    monkeypatch.setenv("nnUNet_mn_adaptation", "lora")
    monkeypatch.setattr("nnunet_mn.networks.lora.is_projection", lambda _: False)
    row = weights_row(monkeypatch, f"timm:test_resnet@{model}/model.safetensors")
    assert row.state == "bad"
    assert "use 'full'" in row.finding


def test_page_of_a_dataset_tries_its_2d_network_out(planned_dataset, monkeypatch, model: Path) -> None:
    (model / "config.json").write_text("{")
    monkeypatch.setenv("nnUNet_mn_backbone", str(model))
    rows = check_dataset(planned_dataset().name, **DOCTOR)
    assert "2D weights: " + str(model / "config.json") in findings(rows, "bad")


def test_weights_that_are_elsewhere_are_noted_with_the_fetch_command(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_mn_backbone", "nobody/no-such-model")
    (row,) = environment.check_weights(resolve(environment_layer()))
    assert row.state == "note"
    assert "nnunet-mn weights fetch nobody/no-such-model" in row.finding


def test_more_workers_than_cpus_are_noted(monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "8")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)  # of a cluster's job
    assert "lower nnUNet_n_proc_DA" in findings(environment.check_cpus(), "note")


def test_unregistered_plug_in_is_bad_with_the_command_that_helps(monkeypatch) -> None:
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    monkeypatch.setattr(registration, "TRAINERS", ("nnUNetTrainerOfNobody",))
    assert "run 'nnunet-mn register'" in findings(examine("look-up", environment.check_look_up), "bad")


def test_plug_in_is_found_through_the_external_folder(monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(registration.trainers_path()))
    assert "-tr nnUNetTrainerMN is found" in findings(examine("look-up", environment.check_look_up), "good")


def test_registered_file_of_another_version_is_noted(monkeypatch, tmp_path: Path) -> None:
    file = tmp_path / registration.HOOKS[0].file
    file.parent.mkdir(parents=True)
    file.write_text(f"{registration.MARK}\n")
    monkeypatch.setattr(registration, "nnunet_package", lambda: tmp_path)
    monkeypatch.setattr(environment, "_look_up", lambda _: registration.Hook)
    assert "is of another version" in findings(environment.check_look_up(), "note")


# ---- a dataset -----------------------------------------------------------------------------------------------------

DOCTOR = {"plans": "nnUNetPlans", "configuration": "3d_fullres"}


def rewrite(file: Path, change: Callable[[list], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_healthy_dataset_is_counted(planned_dataset) -> None:
    dataset = planned_dataset()
    rows = list(check_dataset(str(dataset.number), **DOCTOR))
    assert findings(rows, "bad") == ""
    expected = f"{len(dataset.labeled)} labeled, {len(dataset.val)} val, {len(dataset.unlabeled)} unlabeled"
    assert f"fold 0: {expected}" in findings(rows, "good")


@pytest.mark.parametrize(
    ("plans", "configuration", "finding"),
    [
        ("nnUNetPlans", "3d_cascade_fullres", "have no configuration '3d_cascade_fullres'"),
        ("nnUNetPlans", "2d", "use 3d_fullres or 3d_lowres"),
        ("nnUNetMNPlans", "3d_fullres", "3d_fullres -pl MNPlanner -fpe MNFingerprintExtractor', or name plans that"),
        ("OtherPlans", "3d_fullres", "3d_fullres -pl PLANNER -overwrite_plans_name OtherPlans', or name plans"),
    ],
)
def test_plans_that_cannot_be_trained_are_bad(planned_dataset, plans: str, configuration: str, finding: str) -> None:
    rows = check_dataset(planned_dataset().name, plans=plans, configuration=configuration)
    assert finding in findings(rows, "bad")


@pytest.mark.parametrize(
    ("name", "change", "finding"),
    [
        ("nnUNetPlans", {"patch_size": [17, 16, 16]}, "they must be multiples of"),
        ("nnUNetPlans", {"patch_size": "all"}, "patch_size in configuration '3d_fullres' of the plans is 'all'"),
        ("nnUNetPlans", {"batch_size": None}, "batch_size in configuration '3d_fullres' of the plans is None"),
        ("nnUNetPlans", {"inherits_from": "nothing"}, "of the plans cannot be read"),
        ("nnUNetPlans", {"mn": ["epochs"]}, "must be a dictionary of settings"),
        ("nnUNetPlans", None, "nnUNetPlans.json lacks configurations; run"),
        ("dataset", None, "dataset.json lacks file_ending, labels; run"),
    ],
)
def test_broken_plans_and_descriptions_are_bad(
    planned_dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: dict[str, Any] | None,
    finding: str,
) -> None:
    dataset = planned_dataset()
    folder = tmp_path / dataset.name
    folder.mkdir()
    for one in ("nnUNetPlans.json", "dataset.json"):
        shutil.copy(dataset.preprocessed / one, folder)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    file = folder / f"{name}.json"
    content = [] if change is None else json.loads(file.read_text())
    if change is not None:
        content["configurations"]["3d_fullres"] |= change
    file.write_text(json.dumps(content))
    assert finding in findings(check_dataset(dataset.name, **DOCTOR), "bad")


SHAPES: dict[str, tuple[Any, str]] = {
    "null": (None, "dataset.json "),
    "a list": ([1], "dataset.json "),
    "no channels": ({"channel_names": None}, "dataset.json "),
    "channels in a list": ({"channel_names": ["CT"]}, "'channel_names' in .*dataset.json must be a dictionary"),
    "ending as a number": ({"file_ending": 1}, "'file_ending' in .*dataset.json must be a text, but is '1'"),
    "labels in a list": ({"labels": ["a"]}, "'labels' in .*dataset.json must be a dictionary, but is .*a.*; "),
    "cases in a list": ({"dataset": ["a"]}, "'dataset' in .*dataset.json must be a dictionary"),
    "case without images": ({"dataset": {"a": None}}, "'a' in the entry 'dataset' of .*dataset.json must have a list"),
}


def reshaped(folder: Path, change: Any) -> None:
    """Write another dataset.json. None as an entry's value removes it."""
    file = folder / "dataset.json"
    content = json.loads(file.read_text()) | change if isinstance(change, dict) else change
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(content))


@pytest.mark.usefixtures("cases_alone")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["raw", "preprocessed"])
def test_description_of_another_shape_is_bad(
    planned_dataset, tmp_path: Path, monkeypatch, shape: str, kind: str
) -> None:
    dataset, (change, finding) = planned_dataset(), SHAPES[shape]
    for variable, folder in (("nnUNet_raw", dataset.raw), ("nnUNet_preprocessed", dataset.preprocessed)):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable / dataset.name).mkdir(parents=True)
        shutil.copy(folder / "dataset.json", tmp_path / variable / dataset.name)
    if kind == "preprocessed":
        shutil.copy(dataset.preprocessed / "nnUNetPlans.json", tmp_path / "nnUNet_preprocessed" / dataset.name)
    reshaped(tmp_path / f"nnUNet_{kind}" / dataset.name, change)
    found = findings(check_dataset(dataset.name, **DOCTOR), "bad")
    assert re.search(finding, found), found
    assert ("write it as nnU-Net's dataset format" if kind == "raw" else "run 'nnUNetv2_plan_and_preprocess") in found


def test_training_images_without_a_label_are_bad_before_nnunet_plans(tiny_dataset) -> None:
    dataset = tiny_dataset(n_unlabeled=2)
    assert "labels:" not in findings(check_dataset(dataset.name, **DOCTOR), "bad")
    for name in dataset.unlabeled:
        (dataset.raw / "labelsTr" / f"{name}.nii.gz").unlink()
    found = findings(check_dataset(dataset.name, **DOCTOR), "bad")
    assert "run 'nnUNetv2_plan_and_preprocess" in found
    assert "labels: 2 cases in imagesTr have no label (unlabeled_00, unlabeled_01); move their images" in found
    (dataset.raw / "dataset.json").write_text("{")
    assert "dataset.json cannot be read" in findings(check_dataset(dataset.name, **DOCTOR), "bad")


def test_memory_estimate_is_that_of_the_cost_model_for_both_networks(planned_dataset, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_mn_backbone", "efficientnet-lite0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    planned = load_planned(find_dataset(planned_dataset().name), **DOCTOR)
    plan = planned.configuration_manager.configuration
    labels = LabelSpace(num_channels=len(planned.dataset_json["labels"]))
    model = CostModel(planned.config(), channels=1, labels=labels)
    axes = (0, 1, 2) if max(plan["spacing"]) < 3 * min(plan["spacing"]) else (0,)
    cost = model.of(plan["architecture"], plan["patch_size"], plan["batch_size"], axes=axes)
    slices = cost.most_slices  # so few pixels that all are in flight
    needed = max(cost.phase_3d_gib(slices), cost.phase_2d_gib(slices))
    assert cost.networks_gib[1] > 0.01  # GiB that the 2D network alone takes
    assert check_memory(planned) == [
        Row("good", "GPU memory", f"both networks take about {needed:.1f} GiB in training")
    ]


@pytest.mark.parametrize(("needed", "state"), [(4.0, "good"), (9.0, "note"), (11.0, "bad")])
def test_plan_larger_than_the_card_is_bad(needed: float, state: str) -> None:
    row = judge(needed, total=10.0)
    assert row.state == state
    assert f"{needed:.1f} GiB in training, of the 10.0 GiB of GPU 0" in row.finding
    assert ("nnUNet_mn_slices_per_forward" in row.finding) == (state != "good")


@pytest.mark.parametrize(("total", "state"), [(1000, "good"), (1, "bad")])
def test_plans_are_compared_with_the_first_gpu(planned_dataset, monkeypatch, total: int, state: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, total * 2**30))
    row = check_memory(load_planned(find_dataset(planned_dataset().name), **DOCTOR))[0]
    assert row.state == state
    assert f"of the {total}.0 GiB" in row.finding


def test_weights_that_are_elsewhere_are_noted_beside_the_memory(planned_dataset, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_mn_backbone", "nobody/no-such-model")
    _, note = check_memory(load_planned(find_dataset(planned_dataset().name), **DOCTOR))
    assert note.state == "note"
    assert "SegFormer-B2's as measured once" in note.finding


def test_architecture_that_cannot_be_measured_is_a_note(planned_dataset) -> None:
    planned = load_planned(find_dataset(planned_dataset().name), **DOCTOR)
    planned.configuration_manager.configuration["architecture"]["network_class_name"] = "torch.nn.Identity"
    (row,) = check_memory(planned)
    assert row.state == "note"
    assert "torch.nn.Identity it cannot be estimated" in row.finding


@pytest.mark.parametrize(("batch", "noted"), [(2, True), (4, False)])
def test_batch_smaller_than_the_measured_ones_is_noted(fresh_planned_dataset, batch: int, noted: bool) -> None:
    dataset = fresh_planned_dataset()
    plans = dataset.preprocessed / "nnUNetPlans.json"
    rewrite(plans, lambda content: content["configurations"]["3d_fullres"].update(batch_size=batch))
    assert ("with batches of 4" in findings(check_dataset(dataset.name, **DOCTOR), "note")) == noted


def test_split_files_that_disagree_are_noted(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset()
    rewrite(dataset.raw / "splits_final.json", lambda splits: splits[0]["unlabeled"].pop())
    assert "differs" in findings(check_dataset(dataset.name, **DOCTOR), "note")


def test_leak_is_bad_and_named(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset()
    rewrite(dataset.preprocessed / "splits_final.json", lambda splits: splits[0]["unlabeled"].append(dataset.val[0]))
    assert dataset.val[0] in findings(check_dataset(dataset.name, **DOCTOR), "bad")


def test_labeled_case_that_is_not_preprocessed_is_bad(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset()
    (dataset.preprocessed / "nnUNetPlans_3d_fullres" / f"{dataset.labeled[0]}.b2nd").unlink()
    assert f"({dataset.labeled[0]}) are not preprocessed" in findings(check_dataset(dataset.name, **DOCTOR), "bad")


@pytest.mark.usefixtures("cases_alone")
@pytest.mark.parametrize("split_file", [True, False])
def test_dataset_that_is_planned_but_not_preprocessed_is_bad_with_the_command(tiny_plans, split_file: bool) -> None:
    folder = tiny_plans / "nnUNetPlans_3d_fullres"
    if not split_file:
        (tiny_plans / "splits_final.json").unlink()
    found = findings(check_dataset(tiny_plans.name, **DOCTOR), "bad")
    assert f"{folder} does not hold preprocessed cases and nothing else" in found
    assert "run nnUNetv2_preprocess" in found
    assert "no labeled case" not in found


@pytest.fixture
def tiny_plans(fresh_planned_dataset) -> Path:
    """The folder of a planned dataset that is not preprocessed."""
    dataset = fresh_planned_dataset()
    (dataset.raw / "splits_final.json").unlink()
    shutil.rmtree(dataset.preprocessed / "nnUNetPlans_3d_fullres")
    return Path(dataset.preprocessed)


@pytest.mark.usefixtures("cases_alone")
def test_cases_in_nnunets_older_format_are_counted(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    folder = dataset.preprocessed / "nnUNetPlans_3d_fullres"
    for name in (*dataset.labeled, *dataset.val):
        volumes = {"data": folder / f"{name}.b2nd", "seg": folder / f"{name}_seg.b2nd"}
        np.savez_compressed(folder / f"{name}.npz", **{key: blosc2.open(str(v))[:] for key, v in volumes.items()})
        for file in volumes.values():
            file.unlink()
    rows = list(check_dataset(dataset.name, **DOCTOR))
    assert findings(rows, "bad") == ""
    assert "fold 0: 3 labeled, 2 val, 3 unlabeled" in findings(rows, "good")


@pytest.mark.usefixtures("cases_alone")
@pytest.mark.parametrize("kind", ["", "_unlabeled"])
def test_strange_file_among_preprocessed_cases_is_bad(fresh_planned_dataset, kind: str) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    assert CliRunner().invoke(cli.app, ["preprocess", "-d", dataset.name, "-np", "1"]).exit_code == 0
    folder = dataset.preprocessed / f"nnUNetPlans_3d_fullres{kind}"
    (folder / "notes.txt").touch()
    found = findings(check_dataset(dataset.name, **DOCTOR), "bad")
    assert f"{folder} does not hold preprocessed cases and nothing else" in found
    assert "remove other files from there" in found


def test_fully_supervised_fold_beside_others_is_a_note(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset()
    supervised = {"train": [*dataset.labeled, *dataset.unlabeled], "val": list(dataset.val)}
    for folder in (dataset.raw, dataset.preprocessed):
        rewrite(folder / "splits_final.json", lambda splits: splits.append(supervised))
    rows = list(check_dataset(dataset.name, **DOCTOR))
    assert findings(rows, "bad") == ""
    assert "fold 1: 6 labeled, 2 val, no unlabeled" in findings(rows, "note")


def test_fold_of_few_labels_is_shown_as_the_training_will_make_it(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset()
    for folder in (dataset.raw, dataset.preprocessed):
        (folder / "splits_final.json").unlink()
    (dataset.raw / "imagesUn").mkdir()
    for name in dataset.unlabeled:
        image = f"{name}_0000.nii.gz"
        (dataset.raw / "imagesTr" / image).rename(dataset.raw / "imagesUn" / image)
    preprocessed = dataset.preprocessed / "nnUNetPlans_3d_fullres"
    for file in sorted(preprocessed.glob("*.pkl"))[4:]:
        file.unlink()
    for file in preprocessed.glob("*.b2nd"):
        if not (preprocessed / f"{file.stem.removesuffix('_seg')}.pkl").exists():
            file.unlink()
    notes = findings(check_dataset(dataset.name, **DOCTOR), "note")
    assert "fold 0: 4 labeled cases are too few for nnU-Net's 5 folds" in notes
    assert "five folds" not in notes


def test_dataset_without_any_unlabeled_case_is_bad(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset()
    for folder in (dataset.raw, dataset.preprocessed):
        rewrite(folder / "splits_final.json", lambda splits: splits[0].pop("unlabeled"))
    assert "imagesUn" in findings(check_dataset(dataset.name, **DOCTOR), "bad")


def test_cases_that_training_would_preprocess_are_noted_with_the_command(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset()  # trainings of other tests preprocess those of a shared one
    notes = findings(check_dataset(dataset.name, **DOCTOR), "note")
    assert f"preprocess 3 cases at its start, unless you run 'nnunet-mn preprocess -d {dataset.name}" in notes


def test_cases_that_are_left_out_do_not_count_and_changed_images_are_noted(fresh_planned_dataset, cases_alone) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    image = dataset.raw / "imagesUn" / f"{dataset.unlabeled[0]}_0000.nii.gz"
    arguments = ["preprocess", "-d", dataset.name, "-np", "1"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert "3 cases of all folds are preprocessed" in findings(check_dataset(dataset.name, **DOCTOR), "good")
    image.write_bytes(image.read_bytes()[:3000])
    notes = findings(check_dataset(dataset.name, **DOCTOR), "note")
    assert "training will preprocess 1 cases at its start" in notes
    assert "Preprocessing will show whether they can be read. Then the doctor and the training look for copies" in notes
    assert CliRunner().invoke(cli.app, [*arguments, "--skip-bad"]).exit_code == 0
    rows = list(check_dataset(dataset.name, **DOCTOR))
    assert "3 labeled, 2 val, 2 unlabeled" in findings(rows, "good")
    assert "2 cases of all folds are preprocessed" in findings(rows, "good")
    assert f"left out by --skip-bad: {dataset.unlabeled[0]}" in findings(rows, "note")


def test_copy_of_a_val_image_under_another_name_is_bad(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    shutil.copy(
        dataset.raw / "imagesTr" / f"{dataset.val[0]}_0000.nii.gz", dataset.raw / "imagesUn" / "copy_0000.nii.gz"
    )
    arguments = ["preprocess", "-d", dataset.name, "-np", "1"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert f"'copy' (of '{dataset.val[0]}')" in findings(check_dataset(dataset.name, **DOCTOR), "bad")


def preprocess(dataset: Any, *options: str) -> None:
    result = CliRunner().invoke(cli.app, ["preprocess", "-d", dataset.name, "-np", "1", *options])
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("cases_alone")
def test_copy_of_a_labeled_image_is_bad_in_the_fold_that_nnunet_will_hold_it_out_of(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn", split_file=False)
    name = dataset.labeled[0]
    shutil.copy(dataset.raw / "imagesTr" / f"{name}_0000.nii.gz", dataset.raw / "imagesUn" / "copy_0000.nii.gz")
    preprocess(dataset)
    drawn = generate_crossval_split(sorted((*dataset.labeled, *dataset.val)))
    of_copy = [f"fold {k}" for k, fold in enumerate(drawn) if name in fold["val"]]
    rows = list(check_dataset(dataset.name, **DOCTOR))
    assert [row.topic for row in rows if row.state == "bad"] == of_copy
    assert f"'copy' (of '{name}')" in findings(rows, "bad")
    assert findings(rows, "good").count("4 labeled, 1 val, 4 unlabeled") == 4
    assert not (dataset.preprocessed / "splits_final.json").exists()


@pytest.mark.usefixtures("cases_alone")
def test_replaced_copy_of_a_val_image_is_no_longer_bad(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    images, copy = dataset.raw / "imagesTr", dataset.raw / "imagesUn" / "copy_0000.nii.gz"
    shutil.copy(images / f"{dataset.val[0]}_0000.nii.gz", copy)
    preprocess(dataset)
    shutil.copy(images / f"{dataset.labeled[0]}_0000.nii.gz", copy)
    rows = list(check_dataset(dataset.name, **DOCTOR))
    assert findings(rows, "bad") == ""
    assert "training will preprocess 1 cases" in findings(rows, "note")


@pytest.mark.usefixtures("cases_alone")
def test_repaired_image_is_no_longer_left_out(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn", n_unlabeled=1)
    image = dataset.raw / "imagesUn" / f"{dataset.unlabeled[0]}_0000.nii.gz"
    whole = SimpleITK.ReadImage(str(image))
    SimpleITK.WriteImage(whole * float("nan"), str(image))
    preprocess(dataset, "--skip-bad")
    assert "every unlabeled case was left out" in findings(check_dataset(dataset.name, **DOCTOR), "bad")
    SimpleITK.WriteImage(whole, str(image))
    rows = list(check_dataset(dataset.name, **DOCTOR))
    assert findings(rows, "bad") == ""
    assert "3 labeled, 2 val, 1 unlabeled" in findings(rows, "good")
    assert "training will preprocess 1 cases" in findings(rows, "note")


@pytest.mark.usefixtures("cases_alone")
def test_val_case_with_damaged_properties_is_named_with_the_command(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    preprocess(dataset)
    os.truncate(dataset.preprocessed / "nnUNetPlans_3d_fullres" / f"{dataset.val[0]}.pkl", 0)
    found = findings(check_dataset(dataset.name, **DOCTOR), "bad")
    assert re.match(f"fold 0: the preprocessed case '{dataset.val[0]}' in .* run nnUNetv2_preprocess", found), found


@pytest.fixture
def forbid_writing_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Takes a folder that then looks as if this user may not write to it. Root may."""
    access = os.access

    def forbid(folder: Path) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and (Path(path), mode) != (folder, 2))

    return forbid


@pytest.mark.usefixtures("cases_alone")
def test_result_folder_of_the_dataset_that_cannot_be_written_to_is_bad(
    planned_dataset, forbid_writing_to, monkeypatch, tmp_path: Path
) -> None:
    dataset, folder = planned_dataset(), tmp_path / planned_dataset().name
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    forbid_writing_to(folder)
    assert findings(check_dataset(dataset.name, **DOCTOR), "bad") == ""
    folder.mkdir()
    assert f"{folder} cannot be written to" in findings(check_dataset(dataset.name, **DOCTOR), "bad")


@pytest.mark.usefixtures("cases_alone")
def test_preprocessed_folder_must_be_writable_only_where_something_is_to_be_written(
    fresh_planned_dataset, forbid_writing_to
) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    forbid_writing_to(dataset.preprocessed)
    finding = f"{dataset.preprocessed} cannot be written to"
    assert f"unlabeled: {finding}" in findings(check_dataset(dataset.name, **DOCTOR), "bad")
    preprocess(dataset)
    assert findings(check_dataset(dataset.name, **DOCTOR), "bad") == ""
    for folder in (dataset.raw, dataset.preprocessed):
        (folder / "splits_final.json").unlink()
    assert findings(check_dataset(dataset.name, **DOCTOR), "bad") == f"splits: {finding}; " + (
        "change its permissions or the variable"
    )


def test_other_dataset_of_this_number_among_the_results_is_bad(planned_dataset, monkeypatch, tmp_path: Path) -> None:
    dataset, other = planned_dataset(), tmp_path / f"Dataset{planned_dataset().number}_Old"
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    other.mkdir()
    (row,) = check_dataset(str(dataset.number), **DOCTOR)
    assert row.state == "bad"
    assert f"{dataset.raw} and {dataset.preprocessed} and {other}; rename all but one" in row.finding
    assert find_dataset(dataset.name).name == dataset.name


def test_dataset_that_has_only_results_is_none_to_train(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    (tmp_path / "Dataset999_Old").mkdir()
    assert "no dataset fits '999'" in findings(check_dataset("999", **DOCTOR), "bad")


@pytest.mark.usefixtures("cases_alone")
@pytest.mark.parametrize(
    ("name", "target", "finding"),
    [
        (b"u_0000.nii.gz", "/mnt/archive", "u_0000.nii.gz is a link to /mnt/archive, which does not exist here"),
        (b"M\xfcller_0000.nii.gz", None, r"M\xfcller_0000.nii.gz is not UTF-8"),
    ],
)
def test_image_that_cannot_be_opened_is_bad_until_it_is_skipped(
    fresh_planned_dataset, name: bytes, target: str | None, finding: str
) -> None:
    dataset = fresh_planned_dataset()
    (dataset.raw / "imagesUn").mkdir()
    image = dataset.raw / "imagesUn" / os.fsdecode(name)
    if target is None:
        shutil.copy(dataset.raw / "imagesTr" / f"{dataset.labeled[0]}_0000.nii.gz", image)
    else:
        image.symlink_to(target)
    assert finding in findings(check_dataset(dataset.name, **DOCTOR), "bad")
    result = CliRunner().invoke(cli.app, ["preprocess", "-d", dataset.name, "-np", "1", "--skip-bad"])
    assert result.exit_code == 0, result.output
    assert finding in result.output
    assert findings(check_dataset(dataset.name, **DOCTOR), "bad") == ""


@pytest.fixture
def cases_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the estimate of memory, which takes seconds."""
    monkeypatch.setattr("nnunet_mn.bridge.doctor.dataset.check_memory", lambda _: [])


@pytest.mark.usefixtures("cases_alone")
def test_flipped_val_image_is_noted_and_flat_labeled_case_is_bad(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    image = SimpleITK.ReadImage(str(dataset.raw / "imagesTr" / f"{dataset.val[0]}_0000.nii.gz"))
    flipped = SimpleITK.Flip(image, [True, True, False])
    SimpleITK.WriteImage(flipped, str(dataset.raw / "imagesUn" / "copy_0000.nii.gz"))
    assert CliRunner().invoke(cli.app, ["preprocess", "-d", dataset.name, "-np", "1"]).exit_code == 0
    rows = list(check_dataset(dataset.name, **DOCTOR))
    assert f"'copy' ('{dataset.val[0]}', correlation 1.000)" in findings(rows, "note")
    assert findings(rows, "bad") == ""
    file = dataset.preprocessed / "nnUNetPlans_3d_fullres" / f"{dataset.labeled[0]}.b2nd"
    blosc2.asarray(np.zeros(blosc2.open(str(file)).shape, np.float32), urlpath=str(file), mode="w")
    assert f"'{dataset.labeled[0]}' has the same value" in findings(check_dataset(dataset.name, **DOCTOR), "bad")


@pytest.mark.usefixtures("cases_alone")
def test_raw_data_without_images_are_no_fault(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    assert CliRunner().invoke(cli.app, ["preprocess", "-d", dataset.name, "-np", "1"]).exit_code == 0
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        shutil.rmtree(dataset.raw / folder)
    rows = list(check_dataset(dataset.name, **DOCTOR))
    assert findings(rows, "bad") == ""
    assert "fold 0: 3 labeled, 2 val, 3 unlabeled" in findings(rows, "good")


@pytest.mark.usefixtures("cases_alone")
def test_removed_case_lives_on_nowhere(fresh_planned_dataset, monkeypatch) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    copy = dataset.raw / "imagesUn" / "copy_0000.nii.gz"
    shutil.copy(dataset.raw / "imagesTr" / f"{dataset.val[0]}_0000.nii.gz", copy)
    for _ in range(2):
        assert CliRunner().invoke(cli.app, ["preprocess", "-d", dataset.name, "-np", "1"]).exit_code == 0
        copy.unlink(missing_ok=True)
    monkeypatch.delenv("nnUNet_raw")
    rows = list(check_dataset(dataset.name, **DOCTOR))
    assert findings(rows, "bad") == ""
    assert f"{len(dataset.unlabeled)} unlabeled" in findings(rows, "good")


def test_changed_plans_ask_for_no_removed_case(fresh_planned_dataset, monkeypatch) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    arguments = ["preprocess", "-d", dataset.name, "-np", "1"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    (dataset.raw / "imagesUn" / f"{dataset.unlabeled[0]}_0000.nii.gz").unlink()
    plans = json.loads((dataset.preprocessed / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["NoNormalization"]
    (dataset.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    monkeypatch.delenv("nnUNet_raw")
    result = CliRunner().invoke(cli.app, arguments)
    assert f"{len(dataset.unlabeled) - 1} unlabeled cases are ready" in result.output


def test_unlabeled_cases_of_all_folds_are_found_but_no_val_case(planned_dataset) -> None:
    dataset = planned_dataset()
    planned = load_planned(find_dataset(dataset.name), **DOCTOR)
    assert {case.name for case in find_unlabeled_of_all_folds(planned.cases, None).cases} == set(dataset.unlabeled)


def test_planners_that_are_not_registered_are_noted(monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(registration.trainers_path()))
    monkeypatch.setattr(registration, "registered_files", lambda _: [])
    assert "-pl MNPlanner is not found" in findings(examine("look-up", environment.check_look_up), "note")


def test_planners_are_looked_up_as_stock_does() -> None:
    row = environment._planner_row("nnUNetPlannerResEncM", registered=True)
    assert (row.state, row.finding) == ("good", "-pl nnUNetPlannerResEncM is found")
