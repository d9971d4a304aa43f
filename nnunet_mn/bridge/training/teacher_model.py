"""The teacher of a student: a frozen joint model, from its own folder or from the M&N training behind it."""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, cast

from nnunet_mn.bridge.model_folders import (
    FINAL,
    JOINT_TRAINER,
    MN_TRAINER,
    STUDENT_TRAINER,
    ModelFolders,
    read_json,
)
from nnunet_mn.bridge.reading import read_by_environment
from nnunet_mn.bridge.trained_with import first_difference, meaning
from nnunet_mn.bridge.training.assembly import slice_axes
from nnunet_mn.bridge.training.checkpoint import check_network
from nnunet_mn.bridge.training.joint_model import JointModel, build_joint, joint_model, plans_of, read_trained
from nnunet_mn.bridge.training.joint_plans import TrainedPlans, trainer_of
from nnunet_mn.config import Layer, MNConfig, environment_layer, resolve
from nnunet_mn.errors import MNError
from nnunet_mn.networks import Network2D
from nnunet_mn.networks.joint import Joint
from nnunet_mn.networks.weights import hash_of

USUAL_WEIGHT = 0.5  # of the 2D network in the mean, as `nnunet-mn join` has it


class TeacherModel(NamedTuple):
    """A joint model and where it comes from.

    Args:
        network: with the trained weights.
        source: its file.
        weights_hash: of its networks' weights.
        hash: of these, of the 2D network's weight in the mean, and of its axes: equal hashes give equal masks.
        trained_on: the names of the cases that it was trained on.
    """

    network: Joint
    source: Path
    weights_hash: str
    hash: str
    trained_on: frozenset[str]


def load(folders: ModelFolders, fold: str, config: MNConfig, *, like: TrainedPlans) -> TeacherModel:
    """Load the teacher of a fold.

    Args:
        folders: of the M&N training of the same dataset, plans and configuration, for a teacher without a folder.
        fold: its name, such as `0` or `all`.
        config: names the folder, or none.
        like: the student's plans.

    Raises:
        MNError: when there is no finished training, the teacher was trained on other patches, images or labels, or the
            joint model is not of the training beside it.
    """
    file = _checkpoint(folders, fold, config.teacher_folder)
    is_joint = file.parents[1].name.startswith(JOINT_TRAINER)
    content = read_by_environment(file) if is_joint else read_trained(file)
    _check_configuration(content, file, folders.configuration)
    if is_joint:
        model = _from_joint(file, content, folders.configuration)
        if config.teacher_folder is None:
            _check_of_training(model.network, file, folders.trained / f"fold_{fold}" / FINAL)
    else:
        model = joint_model(file, content, folders.configuration)
    _check_like(model.plans, like, file)
    weights_hash = hash_of(model.network.state_dict().items())
    return TeacherModel(
        model.network, file, weights_hash, _hash_with_mean(weights_hash, model), cases_behind(file, content)
    )


def _hash_with_mean(weights_hash: str, model: JointModel) -> str:
    """A hash of all that shapes the masks. With the usual mean it is that of the weights, as in earlier versions."""
    mean = model.network.weight_2d, model.network.axes
    if mean == (USUAL_WEIGHT, slice_axes(MNConfig(), model.plans.spacing)):
        return weights_hash
    return sha256(f"{weights_hash} {mean}".encode()).hexdigest()[: len(weights_hash)]


def cases_behind(file: Path, content: Mapping[str, Any]) -> frozenset[str]:
    """The names of the cases that a model was trained on.

    An earlier version's joint model does not hold them. They are those of the training beside it; if that is gone,
    nobody knows them.

    Args:
        file: a final checkpoint of a training or of a joint model, in its fold's folder.
        content: of this file.
    """
    if "mn" in content or "trained_on" in content:
        return frozenset(content.get("mn", content).get("trained_on", ()))
    folders = ModelFolders.of(file.parents[1])
    trainer = trainer_of(read_json(folders.joint / "plans.json", "configurations"), folders.configuration)
    behind = replace(folders, trainer=trainer).trained / file.parent.name / FINAL
    if not behind.is_file():
        return frozenset()
    return frozenset(read_by_environment(behind).get("mn", {}).get("trained_on", ()))


def joined_with_student(
    file: Path, checkpoint: Mapping[str, Any], folders: ModelFolders, *, weight_2d: float
) -> JointModel:
    """A student's 3D network and the 2D network that taught it, in memory.

    Args:
        file: the student's final checkpoint, in its fold's folder.
        checkpoint: its content.
        folders: of the student.
        weight_2d: of the 2D network's probabilities in the mean, between 0 and 1.

    Raises:
        MNError: when its teacher is not found, or was trained again.
    """
    mn, own = checkpoint["mn"], plans_of(file, checkpoint, folders.configuration)
    named = Layer(str(file), {"teacher_folder": mn["config"]["teacher_folder"]})
    fold = file.parent.name.removeprefix("fold_")
    teacher = load(replace(folders, trainer=MN_TRAINER), fold, resolve(named, environment_layer()), like=own)
    if teacher.weights_hash != mn.get("teacher_weights", mn["teacher_hash"]):
        raise MNError(
            f"{teacher.source} is not the model that taught {file}; name the folder of its teacher in "
            f"nnUNet_mn_teacher_folder"
        )
    network_2d = cast(Network2D, teacher.network.network_2d.network)
    joined = own.joined(
        network_2d.spec.to_json(),
        axes=teacher.network.axes,
        weight_2d=weight_2d,
        trainer=mn["trainer"],
    )
    return build_joint(joined, checkpoint["network_weights"], network_2d, file)


def _checkpoint(folders: ModelFolders, fold: str, folder: str | None) -> Path:
    if folder is None:
        joint = folders.joint / f"fold_{fold}" / FINAL
        return joint if joint.is_file() and not _is_of_a_student(folders) else folders.finished(fold)
    file = Path(folder).absolute() / f"fold_{fold}" / FINAL
    if not file.is_file():
        raise MNError(
            f"nnUNet_mn_teacher_folder is '{folder}', but there is no {file}; give the folder "
            f"TRAINER__PLANS__CONFIGURATION of a joint model or of a finished M&N training with this fold"
        )
    return file


def _is_of_a_student(folders: ModelFolders) -> bool:
    """Whether the joint model holds a student's 3D network."""
    plans = read_json(folders.joint / "plans.json", "configurations")
    return trainer_of(plans, folders.configuration) == STUDENT_TRAINER


def _check_configuration(content: Mapping[str, Any], file: Path, configuration: str) -> None:
    trained = content["init_args"]["configuration"]
    if trained != configuration:
        raise MNError(
            f"the teacher {file} was trained with the configuration {trained}, but the student has {configuration}; "
            f"name a teacher with the student's configuration"
        )


def _check_of_training(joint: Joint, file: Path, trained: Path) -> None:
    """Raise an MNError if the joint model of this fold is of an earlier training, or of a trainer of another length."""
    if not trained.is_file():
        return
    weights = read_by_environment(trained)["network_weights"]
    if hash_of(joint.network_3d.state_dict().items()) != hash_of(weights.items()):
        raise MNError(
            f"the joint model {file} is of another training than {trained}; run 'nnunet-mn join --force' for this one, "
            f"or name one of both folders in nnUNet_mn_teacher_folder"
        )


def _from_joint(file: Path, content: Mapping[str, Any], configuration: str) -> JointModel:
    joined, description = (read_json(file.parents[1] / name) for name in ("plans.json", "dataset.json"))
    plans = TrainedPlans(joined, description, configuration)
    network = plans.build()
    weights = content["network_weights"]
    check_network(weights, network, file)
    network.load_state_dict(weights)
    return JointModel(network, plans)


def _check_like(theirs: TrainedPlans, ours: TrainedPlans, file: Path) -> None:
    """Raise an MNError unless both have the same images, patches and labels."""
    one, other = (
        {
            "patch_size": plans.patch_size,
            **meaning(plans.plans, plans.configuration, plans.description),
            "channels": plans.description.get("channel_names", plans.description.get("modality")),
        }
        for plans in (theirs, ours)
    )
    if name := first_difference(one, other):
        raise MNError(
            f"the teacher {file} was trained with {name} {one[name]}, but the student's plans have {other[name]}; "
            f"train both on one dataset with the same plans"
        )
