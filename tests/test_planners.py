"""The planners through the functions that `nnUNetv2_plan_and_preprocess` calls."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprint_dataset,
    plan_experiment_dataset,
    preprocess_dataset,
)
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_mn.bridge.cases.dataset import find_dataset
from nnunet_mn.bridge.cases.planned import PLANNERS, load_planned
from nnunet_mn.bridge.cases.roles import labeled_for_planning
from nnunet_mn.bridge.planning.cost import network_2d_cost
from nnunet_mn.bridge.planning.cost_model import CostModel, cost_of_planned, written_settings
from nnunet_mn.bridge.registration import nnunet_package, register, trainers_path
from nnunet_mn.config import MNConfig, resolve
from nnunet_mn.errors import MNError
from nnunet_mn.planners.MNPlanner import (
    MNFingerprintExtractor,
    MNPlanner,
    MNPlannerResEncL,
    MNPlannerResEncM,
    MNPlannerResEncXL,
)
from nnunet_mn.targets import LabelSpace

pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's presets warn of other memory targets


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few voxels for the statistics, no process but this one."""
    stock = DatasetFingerprintExtractor.__init__

    def few_voxels(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e4

    monkeypatch.setattr(DatasetFingerprintExtractor, "__init__", few_voxels)
    monkeypatch.setattr("nnunet_mn.planners.MNPlanner.default_num_processes", 1)
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
    monkeypatch.setenv("nnUNet_mn_backbone", "efficientnet-lite0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _plan(dataset: Any, planner: type[Any] = MNPlanner, extractor: type[Any] = MNFingerprintExtractor) -> Any:
    """The planned 3d_fullres, as stock's commands plan."""
    extract_fingerprint_dataset(dataset.number, extractor, num_processes=1)
    _, name = plan_experiment_dataset(dataset.number, planner)
    return json.loads((dataset.preprocessed / f"{name}.json").read_text())


def _configuration(plans: Any) -> dict[str, Any]:
    found: dict[str, Any] = plans["configurations"]["3d_fullres"]
    return found


def _scramble(labels: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (labels / f"{name}.nii.gz").write_bytes(b"nothing that could be read")


def test_no_label_of_an_unlabeled_case_is_read(tiny_dataset: Callable[..., Any]) -> None:
    dataset = tiny_dataset()
    plans = _plan(dataset)
    shutil.rmtree(dataset.preprocessed)
    _scramble(dataset.raw / "labelsTr", dataset.unlabeled)
    assert _plan(dataset) == plans


def test_stocks_fingerprint_of_all_labels_does_not_reach_the_plans(tiny_dataset: Callable[..., Any]) -> None:
    dataset = tiny_dataset()
    plans = _plan(dataset)
    shutil.rmtree(dataset.preprocessed)
    assert _plan(dataset, extractor=DatasetFingerprintExtractor) == plans


def test_intensities_of_a_labeled_dataset_are_stocks(tiny_dataset: Callable[..., Any]) -> None:
    dataset = tiny_dataset(layout="imagesUn")
    ours = _plan(dataset)["foreground_intensity_properties_per_channel"]["0"]
    theirs = extract_fingerprint_dataset(dataset.number, num_processes=1)["foreground_intensity_properties_per_channel"]
    assert ours == pytest.approx(theirs[0])


def test_the_geometry_of_unlabeled_images_counts(tiny_dataset: Callable[..., Any], volume_tools: Any) -> None:
    dataset = tiny_dataset(layout="imagesUn", n_unlabeled=9)
    for name in dataset.unlabeled:
        volume = np.random.default_rng(0).normal(size=(30, 40, 40)).astype(np.float32) + 9
        volume_tools.write(volume, dataset.raw / "imagesUn" / f"{name}_0000.nii.gz", spacing=(0.5, 0.5, 2.0))
    plans = _plan(dataset)
    assert _configuration(plans)["spacing"] == [2.0, 0.5, 0.5]
    assert plans["original_median_shape_after_transp"] == [30, 40, 40]


def test_shapes_of_unlabeled_images_shrink_as_labeled_ones_do(
    tiny_dataset: Callable[..., Any], volume_tools: Any
) -> None:
    dataset = tiny_dataset(layout="imagesUn", n_unlabeled=9)
    for file in (dataset.raw / "imagesTr").iterdir():
        volume = volume_tools.read(file)
        volume[:6] = 0  # stock crops it away
        volume_tools.write(volume, file)
    assert _plan(dataset)["original_median_shape_after_transp"] == [18, 20, 22]


def test_a_broken_unlabeled_image_is_named_and_left_out(tiny_dataset: Callable[..., Any], capsys: Any) -> None:
    dataset = tiny_dataset(layout="imagesUn")
    (dataset.raw / "imagesUn" / f"{dataset.unlabeled[0]}_0000.nii.gz").write_bytes(b"no image")
    _plan(dataset)
    assert "1 unlabeled case(s) are left out of the planning" in capsys.readouterr().out


def test_an_unlabeled_image_with_a_name_that_is_not_utf_8_is_left_out(
    tiny_dataset: Callable[..., Any], capsys: Any
) -> None:
    dataset = tiny_dataset(layout="imagesUn")
    image = dataset.raw / "imagesUn" / f"{dataset.unlabeled[0]}_0000.nii.gz"
    image.rename(image.with_name(os.fsdecode(b"M\xfcller_0000.nii.gz")))
    _plan(dataset)
    assert "M\\xfcller_0000.nii.gz is not UTF-8" in capsys.readouterr().out


def test_without_unlabeled_cases_it_says_where_they_go(tiny_dataset: Callable[..., Any]) -> None:
    with pytest.raises(MNError, match="no unlabeled case"):
        _plan(tiny_dataset(layout="imagesUn", n_unlabeled=0))


def test_no_more_processes_start_than_there_are_cpus(
    tiny_dataset: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_mn.planners.MNPlanner.default_num_processes", 8)
    monkeypatch.setattr("nnunet_mn.planners.MNPlanner.cpu_count", lambda: 1)
    monkeypatch.delattr("nnunet_mn.bridge.processes.ProcessPoolExecutor")
    _plan(tiny_dataset())


def test_batch_settings_and_table(tiny_dataset: Callable[..., Any], capsys: Any) -> None:
    dataset = tiny_dataset(n_labeled=3, n_val=1)
    planned = _configuration(_plan(dataset))
    assert planned["batch_size"] == 4  # stock plans 2 for so few cases
    assert planned["mn"] == {"backbone": "efficientnet-lite0", "slices_per_forward": 4 * planned["patch_size"][0]}
    assert planned["data_identifier"] == "nnUNetMNPlans_3d_fullres"
    table = capsys.readouterr().out
    for row in ("patch", "batch", "2D network (GiB)", "TFLOP", "hours"):
        assert row in table


def test_residual_encoders_share_the_cases_of_the_default(tiny_dataset: Callable[..., Any]) -> None:
    dataset = tiny_dataset()
    plans = _plan(dataset, MNPlannerResEncM)
    assert plans["plans_name"] == "nnUNetResEncUNetMMNPlans"
    assert _configuration(plans)["data_identifier"] == "nnUNetMNPlans_3d_fullres"
    assert _configuration(plans)["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")


STOCK_PLANNERS = {
    MNPlanner: (8, "nnUNetMNPlans"),
    MNPlannerResEncM: (8, "nnUNetResEncUNetMMNPlans"),
    MNPlannerResEncL: (24, "nnUNetResEncUNetLMNPlans"),
    MNPlannerResEncXL: (40, "nnUNetResEncUNetXLMNPlans"),
}


@pytest.mark.parametrize("planner", STOCK_PLANNERS)
def test_a_planner_has_stocks_memory_target_a_name_of_its_own_and_takes_others(
    tiny_dataset: Callable[..., Any], planner: type[Any]
) -> None:
    dataset = tiny_dataset()
    extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)
    made = planner(dataset.number)
    assert (made.UNet_vram_target_GB, made.plans_identifier) == STOCK_PLANNERS[planner]
    made = planner(dataset.number, 5, "DefaultPreprocessor", "Mine", [1.0, 2.0, 3.0], True)
    assert (made.UNet_vram_target_GB, made.plans_identifier, made.suppress_transpose) == (5, "Mine", True)
    assert made.overwrite_target_spacing == [1.0, 2.0, 3.0]


def test_the_remedy_for_missing_plans_names_their_planner() -> None:
    planners = (MNPlanner, MNPlannerResEncM, MNPlannerResEncL, MNPlannerResEncXL)
    named = {name: option for name, option in PLANNERS.items() if option}
    extractor = MNFingerprintExtractor.__name__
    assert named == {one.default_plans_name: f" -pl {one.__name__} -fpe {extractor}" for one in planners}


def test_stocks_options_reach_the_plans(tiny_dataset: Callable[..., Any]) -> None:
    dataset = tiny_dataset()
    extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)
    plans, name = plan_experiment_dataset(
        dataset.number, MNPlanner, gpu_memory_target_in_gb=6, overwrite_target_spacing=(2.0, 1.0, 1.0),
        overwrite_plans_name="Mine",
    )  # fmt: skip
    assert name == plans["plans_name"] == "Mine"
    assert _configuration(plans)["spacing"] == [2.0, 1.0, 1.0]
    assert (dataset.preprocessed / "Mine.json").is_file()


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainerMN"])
def test_both_trainers_take_the_plans(
    tiny_dataset: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    dataset = tiny_dataset()
    plans = _plan(dataset)
    kwargs = _configuration(plans)["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = [4] * kwargs["n_stages"]
    (dataset.preprocessed / "nnUNetMNPlans.json").write_text(json.dumps(plans))
    preprocess_dataset(dataset.number, "nnUNetMNPlans", ("3d_fullres",), (1,))
    for name, value in {
        "nnUNet_results": str(tmp_path), "nnUNet_n_proc_DA": "0", "nnUNet_extTrainer": str(trainers_path()),
        "nnUNet_mn_epochs": "1", "nnUNet_mn_iterations_per_epoch": "1", "nnUNet_mn_val_iterations_per_epoch": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    made = get_trainer_from_args(
        str(dataset.number), "3d_fullres", 0, trainer, "nnUNetMNPlans", device=torch.device("cpu")
    )
    made.num_epochs = made.num_iterations_per_epoch = made.num_val_iterations_per_epoch = 1
    made.run_training()
    assert (Path(made.output_folder) / "checkpoint_final.pth").exists()


# ---- which labels may be read -----------------------------------------------------------------------------------


def _fold(train: Iterable[str], val: Iterable[str], unlabeled: Iterable[str]) -> dict[str, list[str]]:
    return {"train": list(train), "val": list(val), "unlabeled": list(unlabeled)}


@pytest.mark.slow
def test_a_batch_of_one_trains_with_an_unlabeled_sample_on_top(site_of: Callable[..., Any], train: Any) -> None:
    site = site_of()
    site.validate = False
    site.plans(batch_size=1)
    site.set(iterations_per_epoch=4)
    code, output = train(site)
    assert code == 0, output
    assert "unlabeled share 0.250" in output  # the third of four samples has one beside it


def test_cases_that_no_fold_calls_unlabeled_are_labeled() -> None:
    assert labeled_for_planning("abcd", [_fold("a", "b", "cd")]) == (["a", "b"], [])
    assert labeled_for_planning("abc", None) == (["a", "b", "c"], [])


def test_folds_that_share_their_cases_give_a_warning() -> None:
    names, warnings = labeled_for_planning("abcd", [_fold("a", "b", "cd"), _fold("c", "d", "ab")])
    assert names == ["a", "c"]
    assert len(warnings) == 1
    assert "every fold's labeled cases are unlabeled in another fold" in warnings[0]


def test_a_case_that_one_fold_labels_and_another_does_not_is_planned_once(
    tiny_dataset: Callable[..., Any], capsys: Any
) -> None:
    dataset = tiny_dataset()
    folds = [
        _fold(dataset.labeled, dataset.val, dataset.unlabeled),
        _fold(dataset.val, dataset.unlabeled, dataset.labeled),
        _fold(dataset.unlabeled, dataset.labeled, dataset.val),
    ]
    (dataset.raw / "splits_final.json").write_text(json.dumps(folds))
    assert _configuration(_plan(dataset))["batch_size"] >= 4
    assert "M&N plans for 8 labeled and 0 unlabeled cases" in capsys.readouterr().out


# ---- the user's mistakes -----------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """Runs one of nnU-Net's commands where the planners are registered: exit code and lines of output."""
    shutil.copytree(nnunet_package(), tmp_path / "nnunetv2", ignore=shutil.ignore_patterns("__pycache__"))
    register(tmp_path / "nnunetv2")

    def run(name: str, *arguments: str, **environment: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            [Path(sys.executable).with_name(name), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env={**os.environ, "PYTHONPATH": str(tmp_path), **environment},
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines()

    return run


@pytest.mark.parametrize("case", [0, 1])  # of the first one stock asks which reader it takes
def test_a_broken_labeled_image_is_named(tiny_dataset: Callable[..., Any], case: int) -> None:
    dataset = tiny_dataset()
    image = dataset.raw / "imagesTr" / f"{dataset.labeled[case]}_0000.nii.gz"
    image.write_bytes(b"no image")
    with pytest.raises(MNError, match=f"{image} cannot be read"):
        extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)


def _no_label(file: Path, _: Any) -> None:
    file.unlink()


def _smaller_label(file: Path, volume_tools: Any) -> None:
    volume_tools.write(volume_tools.read(file)[1:], file)


def _broken_label(file: Path, _: Any) -> None:
    file.write_bytes(b"no label")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_label, r"'labeled_01' has no label .*labeled_01\.nii\.gz"),
        (_smaller_label, r"'labeled_01' has a label of \(23, 20, 22\) voxels, but an image of \(24, 20, 22\)"),
        (_broken_label, r"labelsTr.labeled_01\.nii\.gz cannot be read"),
    ],
)
def test_a_faulty_label_is_named(
    tiny_dataset: Callable[..., Any], volume_tools: Any, spoil: Callable[..., None], said: str
) -> None:
    dataset = tiny_dataset()
    extract_fingerprint_dataset(dataset.number, DatasetFingerprintExtractor, num_processes=1)
    spoil(dataset.raw / "labelsTr" / "labeled_01.nii.gz", volume_tools)
    with pytest.raises(MNError, match=said):
        extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)
    with pytest.raises(MNError, match=said):
        plan_experiment_dataset(dataset.number, MNPlanner)


def test_a_case_whose_fault_shows_only_when_it_is_read_is_named(
    tiny_dataset: Callable[..., Any], volume_tools: Any
) -> None:
    dataset = tiny_dataset(ending=".nrrd")  # of a NIfTI file, ITK reads NaN as 0
    label = dataset.raw / "labelsTr" / "labeled_01.nrrd"
    volume_tools.write(np.full_like(volume_tools.read(label), np.nan, dtype=np.float32), label)
    with pytest.raises(MNError, match=r"image or label of 'labeled_01' cannot be used .*NaN"):
        extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)


def _misnamed(images: Path) -> None:
    (images / "labeled_01_0000.nii.gz").rename(images / "labeled_01.nii.gz")
    (images / "labeled_01_0001.nii.gz").unlink()


def _hidden(images: Path) -> None:
    (images / "._labeled_01_0000.nii.gz").write_bytes(b"of macOS")


def _second_missing(images: Path) -> None:
    (images / "labeled_01_0001.nii.gz").unlink()


def _second_linked(images: Path) -> None:
    _second_missing(images)
    (images / "labeled_01_0001.nii.gz").symlink_to("/not/there.nii.gz")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_misnamed, r"imagesTr holds labeled_01\.nii\.gz, and nnU-Net takes this for case 'label'"),
        (_hidden, r"imagesTr holds \._labeled_01_0000\.nii\.gz, .* images are visible files"),
        (_second_missing, r"case 'labeled_01' in .*imagesTr lacks labeled_01_0001\.nii\.gz"),
        (_second_linked, r"labeled_01_0001\.nii\.gz is a link to /not/there\.nii\.gz"),
    ],
)
def test_a_misnamed_or_missing_image_of_a_labeled_case_is_named(
    tiny_dataset: Callable[..., Any], spoil: Callable[[Path], None], said: str
) -> None:
    dataset = tiny_dataset(channels=2)
    spoil(dataset.raw / "imagesTr")
    with pytest.raises(MNError, match=said):
        extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)


def test_an_ending_without_its_dot_is_told(tiny_dataset: Callable[..., Any]) -> None:
    dataset = tiny_dataset()
    (dataset.raw / "dataset.json").write_text(json.dumps({**dataset.dataset_json, "file_ending": "nii.gz"}))
    with pytest.raises(MNError, match=r"'file_ending' in .*dataset\.json must be '\.nii\.gz', but is 'nii\.gz'"):
        extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"label": None},
            r"1 case\(s\) in the entry 'dataset' of .*dataset\.json have no text under 'label' \(labeled_01\)",
        ),
        ({"images": [3]}, r"'labeled_01' in the entry 'dataset' of .* must have a list of images, each a text"),
        ({"images": []}, r"dataset\.json lists 0 images of 'labeled_01'"),
        ({"images": ["imagesTr/none.nii.gz"]}, r"dataset\.json lists .*none\.nii\.gz for case 'labeled_01'"),
    ],
)
def test_a_faulty_entry_of_a_listed_case_is_told(
    tiny_dataset: Callable[..., Any], change: dict[str, Any], said: str
) -> None:
    dataset = tiny_dataset(layout="imagesUn")
    names = (*dataset.labeled, *dataset.val)
    listed = {n: {"images": [f"imagesTr/{n}_0000.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for n in names}
    description = {**dataset.dataset_json, "dataset": listed}
    (dataset.raw / "dataset.json").write_text(json.dumps(description))
    extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)
    entry = {key: value for key, value in (listed["labeled_01"] | change).items() if value is not None}
    (dataset.raw / "dataset.json").write_text(json.dumps({**description, "dataset": {**listed, "labeled_01": entry}}))
    with pytest.raises(MNError, match=said):
        extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)
    with pytest.raises(MNError, match=said):
        plan_experiment_dataset(dataset.number, MNPlanner)


def test_split_files_that_do_not_agree_are_named(tiny_dataset: Callable[..., Any]) -> None:
    dataset = tiny_dataset()
    _plan(dataset)
    used, raw = (folder / "splits_final.json" for folder in (dataset.preprocessed, dataset.raw))
    (first, *more), held_out = dataset.labeled, [*dataset.val]
    used.write_text(json.dumps([_fold([first], held_out, [*dataset.unlabeled, *more])]))
    with pytest.raises(MNError, match=f"{used} and {raw} do not agree .*copy the one that is to hold"):
        plan_experiment_dataset(dataset.number, MNPlanner)
    shutil.copy(used, raw)
    plan_experiment_dataset(dataset.number, MNPlanner)


def test_half_written_descriptions_are_named(tiny_dataset: Callable[..., Any]) -> None:
    dataset = tiny_dataset()
    extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)
    fingerprint = dataset.preprocessed / "dataset_fingerprint.json"
    fingerprint.write_text('{"spacings": [')
    with pytest.raises(
        MNError, match=f"{fingerprint} cannot be read .*nnUNetv2_extract_fingerprint -d {dataset.number} --"
    ):
        plan_experiment_dataset(dataset.number, MNPlanner)
    (dataset.raw / "dataset.json").write_text('{"labels": {')
    with pytest.raises(MNError, match=r"dataset\.json cannot be read"):
        plan_experiment_dataset(dataset.number, MNPlanner)
    with pytest.raises(MNError, match=r"dataset\.json cannot be read"):
        extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)


def test_spacing_of_another_unit_is_left_out_or_named(
    tiny_dataset: Callable[..., Any], volume_tools: Any, capsys: Any
) -> None:
    dataset = tiny_dataset(layout="imagesUn")
    volume = volume_tools.make(0)[0][0]
    volume_tools.write(volume, dataset.raw / "imagesUn" / f"{dataset.unlabeled[0]}_0000.nii.gz", spacing=(0.001,) * 3)
    assert min(_configuration(_plan(dataset))["spacing"]) == 1
    assert f"'{dataset.unlabeled[0]}' has spacing 0.001 mm against 1 mm of the plans" in capsys.readouterr().out
    volume_tools.write(volume, dataset.raw / "imagesTr" / f"{dataset.labeled[0]}_0000.nii.gz", spacing=(1000.0,) * 3)
    with pytest.raises(MNError, match=f"'{dataset.labeled[0]}' has spacing 1000 mm against 1 mm"):
        extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)


@pytest.mark.parametrize("case", [0, 1])
def test_labeled_image_with_a_name_that_is_not_utf_8_is_named(tiny_dataset: Callable[..., Any], case: int) -> None:
    dataset = tiny_dataset(split_file=False)
    odd = os.fsdecode((b"A\xfc", b"M\xfcller")[case])
    for folder, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        file = dataset.raw / folder / f"{dataset.labeled[case]}{end}"
        file.rename(file.with_name(f"{odd}{end}"))
    with pytest.raises(MNError, match=r"\\xfc.*_0000.nii.gz is not UTF-8"):
        extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)


def test_a_mistake_ends_the_commands_with_one_sentence(
    tiny_dataset: Callable[..., Any], command: Callable[..., tuple[int, list[str]]]
) -> None:
    dataset = tiny_dataset()
    extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)
    which = ("-d", str(dataset.number))
    misspelled = command("nnUNetv2_plan_experiment", *which, "-pl", "MNPlanner", nnUNet_mn_backbone="segformr")
    image = dataset.raw / "imagesTr" / f"{dataset.labeled[1]}_0000.nii.gz"
    image.write_bytes(b"no image")
    corrupt = command("nnUNetv2_extract_fingerprint", *which, "--clean", "-fpe", "MNFingerprintExtractor")
    for (code, lines), said in ((misspelled, "segformr"), (corrupt, f"{image} cannot be read")):
        assert code == 1, lines
        assert lines[-1].startswith("ERROR: ")
        assert said in lines[-1]
        assert not [line for line in lines if "Traceback" in line]


# ---- memory -----------------------------------------------------------------------------------------------------

ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 6, "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": "torch.nn.modules.conv.Conv3d", "kernel_sizes": [[3] * 3] * 6, "strides": [[1] * 3] + [[2] * 3] * 5,
        "n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5, "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}  # fmt: skip
CONFIG = MNConfig(backbone="efficientnet-lite0")


@pytest.fixture(scope="module")
def costs() -> CostModel:
    return CostModel(
        dataclasses.replace(CONFIG, slice_step=2, batch="replace"), channels=1, labels=LabelSpace(num_channels=14)
    )


def test_the_estimate_for_stocks_largest_patch_is_what_nnunet_documents(costs: CostModel) -> None:
    cost = costs.of(ARCHITECTURE, (128, 128, 160), 2)  # 600e6 features, where stock plans 560e6 for 8 GB
    assert cost.phase_3d_gib(1) - cost.networks_gib[1] == pytest.approx(7.7, rel=0.1)


def test_fewer_slices_in_flight_take_less(costs: CostModel) -> None:
    cost = costs.of(ARCHITECTURE, (64, 96, 96), 4)
    assert cost.phase_2d_gib(8) < cost.phase_2d_gib(64) < cost.phase_2d_gib(128) == cost.phase_2d_gib(256)
    assert cost.slices_that_fit(100) == 4 * 64
    assert cost.slices_that_fit(1) == 0
    replace = dataclasses.replace  # only the slices that learn take memory now
    learning = replace(cost, sample=replace(cost.sample, saved=0), slice=replace(cost.slice, teaching=0))
    fitting = learning.slices_that_fit(3)
    assert learning.phase_2d_gib(fitting) <= 3 < learning.phase_2d_gib(fitting + 1)


def test_slices_in_flight_follow_from_teaching_too(costs: CostModel) -> None:
    cost = costs.of(ARCHITECTURE, (64, 96, 96), 4)
    heavy = dataclasses.replace(cost, slice=dataclasses.replace(cost.slice, teaching=100 * cost.slice.cost.saved))
    target = heavy.phase_3d_gib(1) + 1
    fitting = heavy.slices_that_fit(target)
    assert 1 <= fitting < cost.slices_that_fit(target)
    assert heavy.phase_3d_gib(fitting) <= target < heavy.phase_3d_gib(fitting + 1)


def test_without_a_setting_half_of_a_cards_free_memory_is_for_slices(costs: CostModel) -> None:
    cost = costs.of(ARCHITECTURE, (128, 256, 256), 2)  # 2^20 pixels are 16 of its slices
    assert costs.slices_in_flight(cost, None) == 16
    small, large = (costs.slices_in_flight(cost, gib) for gib in (24, 80))
    assert 16 < small < large == cost.most_slices
    while_teaching = cost.phase_3d_gib(1) - cost.slice.teaching / 2**30  # above what is held then
    assert small * cost.slice.cost.saved > 0.5 * (24 - while_teaching) * 2**30
    assert small * cost.slice.cost.saved < 0.5 * (24 - cost.phase_2d_gib(0)) * 2**30
    assert costs.slices_in_flight(cost, 1) == 1  # a training tries, at least


def test_a_patch_seen_along_all_axes_is_measured_where_its_slices_are_largest(costs: CostModel) -> None:
    along_all = costs.of(ARCHITECTURE, (64, 96, 128), 2, axes=(0, 1, 2))
    along_first = costs.of(ARCHITECTURE, (64, 96, 128), 2)
    assert along_all.slices == along_first.slices == (2 * 32, 2 * 64)
    assert (along_all.most_slices, along_first.most_slices) == (2 * 128, 2 * 64)
    assert along_all.slices_that_fit(100) == 2 * 128
    assert along_all.flops(500) == pytest.approx(along_first.flops(500))
    deep = costs.of(ARCHITECTURE, (128, 96, 64), 2, axes=(0, 1, 2))
    assert deep.phase_2d_gib(8) == pytest.approx(along_all.phase_2d_gib(8))


def test_slices_that_are_enlarged_for_the_encoder_take_the_most(costs: CostModel) -> None:
    cost = costs.of(ARCHITECTURE, (32, 64, 64), 2, axes=(0, 1, 2))
    assert cost.largest == (64, 32, 64)  # its slices become 64x128 pixels


def test_chunks_are_computed_twice(costs: CostModel) -> None:
    cost = costs.of(ARCHITECTURE, (64, 96, 96), 4)
    learned = 4 * 32
    assert cost.flops(8) - cost.flops(learned) == pytest.approx(learned * cost.slice.cost.forward)


def test_samples_on_top_take_time_but_hardly_memory(costs: CostModel) -> None:
    cost = costs.of(ARCHITECTURE, (64, 96, 96), 4)
    on_top = dataclasses.replace(cost, config=dataclasses.replace(cost.config, batch="add"))
    assert 1.3 < on_top.flops(10**6) / cost.flops(10**6) < 1.5  # 0.41 batches on top, on average
    assert cost.peak_gib < on_top.peak_gib < 1.05 * cost.peak_gib  # one more sample is taught


def test_a_slice_costs_by_its_size(costs: CostModel) -> None:
    small, large = (network_2d_cost(costs._network, (n, n), channels=1) for n in (128, 256))
    assert large.cost.forward == pytest.approx(4 * small.cost.forward, rel=0.2)
    assert large.weights == small.weights


def test_weights_that_are_not_here_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nnunet_mn.bridge.planning.cost_model.weights_are_here", lambda _: False)
    config = MNConfig(backbone="segformer-b2")
    costs = CostModel(config, channels=1, labels=LabelSpace(num_channels=2))
    assert "nnunet-mn weights fetch" in costs.warnings[0]
    assert costs.of(ARCHITECTURE, (64, 96, 96), 2).phase_2d_gib(10) > 2


def test_a_name_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(MNError, match="segformr"):
        CostModel(MNConfig(backbone="segformr"), channels=1, labels=LabelSpace(num_channels=2))


def test_the_cost_of_finished_plans_is_what_they_were_planned_with(tiny_dataset: Callable[..., Any]) -> None:
    dataset = tiny_dataset()
    extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)
    planner = MNPlanner(dataset.number)
    planner.plan_experiment()
    planned = load_planned(find_dataset(dataset.name), plans="nnUNetMNPlans", configuration="3d_fullres")
    assert cost_of_planned(planned) == (planner.planned["3d_fullres"], [])


def test_too_little_memory_is_an_error(tiny_dataset: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny_dataset()
    extract_fingerprint_dataset(dataset.number, MNFingerprintExtractor, num_processes=1)
    with pytest.raises(MNError, match=r"1 GiB of GPU memory .* backbone efficientnet-lite0, .* -gpu_memory_target$"):
        plan_experiment_dataset(dataset.number, MNPlanner, gpu_memory_target_in_gb=1)
    monkeypatch.setenv("nnUNet_mn_backbone", "timm:resnet18.a1_in1k")
    with pytest.raises(MNError, match=r"backbone timm:.* or choose .* nnUNet_mn_backbone=efficientnet-lite0$"):
        plan_experiment_dataset(dataset.number, MNPlanner, gpu_memory_target_in_gb=1)


def test_settings_of_a_preset_are_not_written() -> None:
    paper = resolve(*[_layer(preset="paper", slices_per_forward=9, epochs=3)])
    assert set(written_settings(paper)) == {"backbone", "preset", "slices_per_forward"}
    assert written_settings(MNConfig(slice_step=1))["slice_step"] == 1
    assert {"loss", "dropout_2d"} < set(written_settings(MNConfig(loss="paper", dropout_2d=0.1)))


def _layer(**values: Any) -> Any:
    from nnunet_mn.config import Layer

    return Layer("test", values)
