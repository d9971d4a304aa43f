"""`nnUNetTrainerMNStudent`: nnU-Net's 3D network anew, taught by the joint model of a finished training."""

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_mn.bridge.model_folders import ModelFolders
from nnunet_mn.bridge.reading import mn_part, read
from nnunet_mn.bridge.training.join import join
from nnunet_mn.bridge.training.joint_model import plans_of, read_trained
from nnunet_mn.bridge.training.stored_masks import StoredMasks, store, to_labels
from nnunet_mn.bridge.training.teacher_model import TeacherModel, load
from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks.weights import hash_of
from nnunet_mn.slices import SliceSampler
from nnunet_mn.trainers.nnUNetTrainerMN import nnUNetTrainerMNStudent

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # nnU-Net warns

STUDENT = "nnUNetTrainerMNStudent"


@pytest.fixture(scope="module")
def taught(planned_dataset: Any, copy_site: Any, train: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A site with a finished M&N training. Tests copy it."""
    site = copy_site(planned_dataset(), tmp_path_factory.mktemp("student") / "root")
    site.validate = False
    code, output = train(site)
    assert code == 0, output
    return site


@pytest.fixture
def site(taught: Any, tmp_path: Path) -> Any:
    """A copy, whose training is the student's."""
    shutil.copytree(taught.root, tmp_path / "root")
    return replace(taught, root=tmp_path / "root", trainer=STUDENT, environment={}, arguments=[])


def _folders(site: Any) -> ModelFolders:
    return ModelFolders(
        dataset=site.root / "nnUNet_results" / site.name,
        trainer="nnUNetTrainerMN",
        plans="nnUNetPlans",
        configuration="3d_fullres",
    )


def _checkpoint(site: Any, name: str = "checkpoint_final.pth") -> dict[str, Any]:
    content: dict[str, Any] = read(site.fold / name)
    return content


def test_a_student_learns_from_a_finished_training_and_leaves_an_ordinary_model(site: Any, train: Any) -> None:
    site.set(iterations_per_epoch=20, rounding="floor")
    site.draw = True
    code, output = train(site)
    assert code == 0, output
    told = re.findall(r"WARNING: nnUNet_mn_(\w+) changes nothing", output)
    assert sorted(told) == ["adaptation", "backbone", "rounding", "supervised_fraction"]
    assert all((site.fold / name).is_file() for name in ("progress.png", "progress_mn.png"))
    assert "the teacher is" in output
    assert str(_folders(site).finished("0")) in output
    content = _checkpoint(site)
    assert content["trainer_name"] == "nnUNetTrainer"
    mn = mn_part(content, site.fold)
    assert mn["trainer"] == STUDENT
    assert "network_2d" not in mn
    assert mn["teacher_backbone"] == "efficientnet-lite0"
    with pytest.raises(MNError, match=f"was written by {STUDENT} and holds no 2D network; name a training of both"):
        read_trained(site.fold / "checkpoint_final.pth")
    # as many on top as labeled ones, but in the last tenth
    assert content["logging"]["unlabeled_fraction"] == [pytest.approx(0.9)]


def test_the_joint_models_own_folder_comes_first_and_has_the_same_weights(site: Any, train: Any) -> None:
    code, output = train(site)
    assert code == 0, output
    from_training = _checkpoint(site)
    join(_folders(site), ["0"])
    code, output = train(site)
    assert code == 0, output
    assert "nnUNetTrainerMNJoint__nnUNetPlans__3d_fullres" in output
    assert _checkpoint(site)["mn"]["teacher_hash"] == from_training["mn"]["teacher_hash"]


def test_the_same_networks_with_another_weight_or_other_axes_are_another_teacher(site: Any) -> None:
    folders = _folders(site)
    own = plans_of(folders.finished("0"), read_trained(folders.finished("0")), "3d_fullres")

    def teacher() -> TeacherModel:
        return load(folders, "0", MNConfig(), like=own)

    usual = teacher()
    assert usual.hash == usual.weights_hash == hash_of(usual.network.state_dict().items())  # as in earlier versions
    join(folders, ["0"])
    assert teacher().hash == usual.hash
    join(folders, ["0"], weight_2d=0.75, force=True)
    heavier = teacher()
    plans = folders.joint / "plans.json"
    content = json.loads(plans.read_text())
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= {"axes": [0], "weight_2d": 0.5}
    plans.write_text(json.dumps(content))
    along_one = teacher()
    assert usual.weights_hash == heavier.weights_hash == along_one.weights_hash
    assert len({usual.hash, heavier.hash, along_one.hash}) == 3


def test_a_student_whose_teacher_had_another_weight_is_joined_again_and_again(site: Any, train: Any) -> None:
    join(_folders(site), ["0"], weight_2d=0.75)
    code, output = train(site)
    assert code == 0, output
    for _ in range(2):  # the second one finds the teacher's networks in its training, with the usual weight
        join(replace(_folders(site), trainer=STUDENT), ["0"], force=True)


def test_a_student_is_joined_with_the_2d_network_that_taught_it(site: Any, train: Any) -> None:
    code, output = train(site)
    assert code == 0, output
    of_teacher = _weights(join(_folders(site), ["0"]))
    folders = replace(_folders(site), trainer=STUDENT)
    with pytest.raises(MNError, match="give --force to replace it"):
        join(folders, ["0"])
    for _ in range(2):  # the second one finds the student's model in the place of the teacher's
        joint = join(folders, ["0"], weight_2d=0.25, force=True)
    plans = json.loads((joint / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    assert (architecture["trained_by"], architecture["arch_kwargs"]["weight_2d"]) == (STUDENT, 0.25)
    own = {f"network_3d.{name}": one for name, one in _checkpoint(site)["network_weights"].items()}
    weights = _weights(joint)
    assert weights.keys() == of_teacher.keys()
    for name, one in weights.items():
        assert torch.equal(one, own.get(name, of_teacher[name])), name
    assert any(not torch.equal(one, of_teacher[name]) for name, one in own.items())
    file = _folders(site).finished("0")
    content = torch.load(file, weights_only=False)
    content["network_weights"] = {name: one + 1 for name, one in content["network_weights"].items()}
    torch.save(content, file)
    with pytest.raises(MNError, match=r"is not the model that taught .*nnUNetTrainerMNStudent.*_teacher_folder"):
        join(folders, ["0"], force=True)
    assert _weights(joint).keys() == weights.keys()


def _weights(joint: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = read(joint / "fold_0" / "checkpoint_final.pth")["network_weights"]
    return weights


def test_a_joint_model_teaches_from_any_folder_and_knows_its_cases(site: Any, tmp_path: Path) -> None:
    folders = _folders(site)
    own = plans_of(folders.finished("0"), read_trained(folders.finished("0")), "3d_fullres")
    cases = read_trained(folders.finished("0"))["mn"]["trained_on"]
    join(folders, ["0"])
    elsewhere = tmp_path / "teachers" / folders.joint.name
    shutil.copytree(folders.joint, elsewhere)
    shutil.rmtree(folders.trained)
    assert sorted(load(folders, "0", MNConfig(teacher_folder=str(elsewhere)), like=own).trained_on) == cases != []


def test_stored_masks_are_made_once_and_stand_in_for_labels(site: Any, train: Any) -> None:
    site.set(student_masks="stored", iterations_per_epoch=10)
    code, output = train(site)
    assert code == 0, output
    n = len(site.names["unlabeled"])
    assert f"{n} cases are stored in" in output
    assert f"{n} of them were missing" in output
    assert f"foreground of {n} unlabeled cases taken from the teacher's masks" in output
    content = _checkpoint(site)
    (folder,) = site.fold.glob("masks_of_*")
    assert content["mn"]["teacher_hash"].startswith(folder.name.removeprefix("masks_of_"))
    assert {file.stem for file in folder.iterdir()} == set(site.names["unlabeled"])
    assert content["logging"]["unlabeled_fraction"] == [pytest.approx(0.45, abs=0.06)]
    site.set(iterations_per_epoch=1)
    code, output = train(site)
    assert code == 0, output
    assert "; 0 of them were missing" in output


def test_without_a_finished_training_one_sentence_names_the_command(site: Any, train: Any) -> None:
    _folders(site).finished("0").unlink()
    code, output = train(site)
    assert code != 0
    assert "fold 0 has no finished training" in output.splitlines()[-1]
    assert "-tr nnUNetTrainerMN -p nnUNetPlans --c" in output.splitlines()[-1]


def test_a_teacher_folder_without_the_fold_is_named(site: Any, train: Any) -> None:
    site.set(teacher_folder="/nowhere/nnUNetTrainerMN__nnUNetPlans__3d_fullres")
    code, output = train(site)
    assert code != 0
    assert "nnUNet_mn_teacher_folder is '/nowhere/" in output.splitlines()[-1]


def test_a_teacher_of_other_patches_is_refused(site: Any, train: Any) -> None:
    site.plans(patch_size=[16, 16, 16])
    code, output = train(site)
    assert code != 0
    assert "was trained with patch_size" in output.splitlines()[-1]


def test_a_teacher_of_other_labels_is_refused(site: Any, train: Any) -> None:
    file = _folders(site).trained / "dataset.json"
    description = json.loads(file.read_text())
    description["labels"] = {"background": 0, "other": 1, "organs": 2}
    file.write_text(json.dumps(description))
    code, output = train(site)
    assert code != 0
    assert "was trained with labels {'background': 0, 'other': 1, 'organs': 2}" in output.splitlines()[-1]


@pytest.mark.parametrize("joined", [False, True])
def test_a_teacher_that_was_trained_on_a_validation_case_is_refused(site: Any, train: Any, joined: bool) -> None:
    if joined:
        join(_folders(site), ["0"])
    seen, *others = site.names["labeled"]
    site.split(site.entry(train=others, val=[seen, *site.names["val"]]))
    code, output = train(site)
    assert code != 0
    told = (
        f"1 validation case(s) ({seen}) were trained on by the teacher of this student: put that training's split back"
    )
    assert told in output.splitlines()[-1]


def test_a_stored_mask_may_have_labels_beyond_the_segmentations_type(tmp_path: Path) -> None:
    masks = StoredMasks(tmp_path, "0123456789abcdef")
    masks.write("a", np.array([[[0, 200]]]), np.zeros((1, 1, 1, 2)), np.array([[[[-1, 0]]]], np.int8))
    assert masks.of("a")[:].tolist() == [[[[-1, 200]]]]


def test_a_stored_mask_stays_on_disk_and_is_divided_as_nnunets_segmentation(tmp_path: Path) -> None:
    masks = StoredMasks(tmp_path, "0123456789abcdef")
    segmentation = blosc2.zeros((1, 40, 40, 40), dtype=np.int8, chunks=(1, 20, 20, 20), blocks=(1, 10, 10, 10))
    masks.write("a", np.ones((40, 40, 40)), np.zeros((1, 40, 40, 40), np.float32), segmentation)
    stored = masks.of("a")
    assert isinstance(stored, blosc2.NDArray)
    assert (stored.chunks, stored.blocks) == (segmentation.chunks, segmentation.blocks)
    assert stored[:, 15:25].min() == 1


def test_a_damaged_stored_mask_is_named(tmp_path: Path) -> None:
    masks = StoredMasks(tmp_path, "0123456789abcdef")
    masks.write("a", np.zeros((1, 1, 2)), np.zeros((1, 1, 1, 2)), np.zeros((1, 1, 1, 2)))
    (masks.folder / "a.b2nd").write_bytes(b"damaged")
    with pytest.raises(MNError, match=r"a\.b2nd cannot be read .*delete it and continue with --c"):
        masks.of("a")


def test_stored_masks_are_made_anew_for_changed_images_and_damaged_files(tmp_path: Path) -> None:
    images = {name: np.full((1, 4, 5, 6), fill, np.float32) for name, fill in (("a", 1), ("b", 2), ("c", 3), ("d", 4))}
    cases: Any = SimpleNamespace(identifiers=list(images), load_case=lambda name: (images[name], images[name][:1]))
    masks = StoredMasks(tmp_path, "0123456789abcdef")
    predicted: list[float] = []

    def predict(image: torch.Tensor) -> np.ndarray:
        predicted.append(float(image.max()))
        return np.zeros(image.shape[1:], np.uint8)

    assert store(masks, cases, predict) == 4
    assert store(masks, cases, predict) == 0
    images["b"] = np.full((1, 4, 5, 7), 5, np.float32)
    images["c"] = np.full((1, 4, 5, 6), 6, np.float32)
    (masks.folder / "d.b2nd").write_bytes(b"damaged")
    assert store(masks, cases, predict) == 3
    assert predicted[4:] == [5, 6, 4]


def test_labels_are_found_from_logits_on_a_card(tmp_path: Path) -> None:
    class OnCard(torch.Tensor):
        def numpy(self, *_: Any, **__: Any) -> np.ndarray:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

        def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    labels = LabelManager({"background": 0, "organ": 1}, None)
    logits = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 4, 5).as_subclass(OnCard)
    assert (to_labels(logits, labels) == np.ones((3, 4, 5))).all()


def test_a_joint_model_of_an_earlier_training_is_refused(site: Any, train: Any) -> None:
    join(_folders(site), ["0"])
    file = _folders(site).finished("0")
    content = torch.load(file, weights_only=False)
    content["network_weights"] = {name: one + 1 for name, one in content["network_weights"].items()}
    torch.save(content, file)
    code, output = train(site)
    assert code != 0
    assert f"is of another training than {file}; run 'nnunet-mn join --force'" in output.splitlines()[-1]


def test_a_student_is_not_refused_for_settings_that_it_ignores() -> None:
    planned = SimpleNamespace(batch_size=1, patch_size=(8, 8, 8), previous_stage_name=None)
    for masks, fields in (("online", {"rounding": "floor"}), ("online", {"batch": "replace"}), ("stored", {})):
        config = MNConfig(student_masks=masks, **fields)  # type: ignore[arg-type]
        student: Any = SimpleNamespace(mn_config=config, _stores_masks=masks == "stored")
        with nullcontext() if masks == "online" else pytest.raises(MNError, match="plans a batch of 1"):
            nnUNetTrainerMNStudent.check_plans(student, "3d_fullres", planned)


@pytest.mark.parametrize("masks", ["online", "stored"])
@pytest.mark.parametrize("leftover", [{"unlabeled_weight": 0.5}, {"guidance": "weight"}])
def test_a_leftover_weight_of_unlabeled_samples_does_not_stop_a_student(leftover: dict[str, Any], masks: Any) -> None:
    planned = SimpleNamespace(batch_size=2, patch_size=(8, 8, 8), previous_stage_name=None)
    student: Any = SimpleNamespace(mn_config=MNConfig(student_masks=masks, **leftover), _stores_masks=masks == "stored")
    nnUNetTrainerMNStudent.check_plans(student, "3d_fullres", planned)


def test_a_teacher_of_another_configuration_is_refused(site: Any, train: Any) -> None:
    file = _folders(site).finished("0")
    content = torch.load(file, weights_only=False)
    content["init_args"]["configuration"] = "3d_lowres"
    torch.save(content, file)
    code, output = train(site)
    assert code != 0
    assert "was trained with the configuration 3d_lowres, but the student has 3d_fullres" in output.splitlines()[-1]


def test_a_dataset_may_have_the_older_name_of_channels(site: Any, train: Any) -> None:
    for folder in (site.preprocessed, site.raw, _folders(site).trained):
        description = json.loads((folder / "dataset.json").read_text())
        description["modality"] = description.pop("channel_names")
        (folder / "dataset.json").write_text(json.dumps(description))
    code, output = train(site)
    assert code == 0, output


def test_a_stopped_student_goes_on_but_not_with_another_teacher(site: Any, train: Any) -> None:
    site.set(epochs=2, checkpoint_every=1)
    code, output = train(site)
    assert code == 0, output
    final = site.fold / "checkpoint_final.pth"
    content = torch.load(final, weights_only=False)
    content["current_epoch"] = 1  # as after the first epoch
    generator = torch.Generator().manual_seed(7)
    content["mn"]["slices"] = generator.get_state()
    torch.save(content, site.fold / "checkpoint_latest.pth")
    final.unlink()
    site.arguments = ["--c"]
    code, output = train(site)
    assert code == 0, output
    states = []
    for _ in range(8):  # more axes than an epoch draws
        SliceSampler(axes=(0, 1, 2), generator=generator).draw_axis()
        states.append(generator.get_state().tolist())
    assert torch.load(final, weights_only=False)["mn"]["slices"].tolist() in states
    content["mn"]["teacher_hash"] = "another"
    torch.save(content, site.fold / "checkpoint_latest.pth")
    final.unlink()
    code, output = train(site)
    assert code != 0
    assert "the teacher differs from the one that this training began with" in output.splitlines()[-1]
