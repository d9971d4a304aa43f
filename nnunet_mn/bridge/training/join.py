"""The joint model: a folder in nnUNet_results from which stock nnU-Net predicts with both networks."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import torch
from filelock import FileLock

from nnunet_mn.bridge.files import why_no_lock
from nnunet_mn.bridge.reading import mn_part, read_by_environment
from nnunet_mn.bridge.training.checkpoint import STOCK_TRAINER, check_network
from nnunet_mn.bridge.training.joint_plans import TrainedPlans
from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks import Network2D, build_network_2d
from nnunet_mn.networks.joint import Joint
from nnunet_mn.networks.weights import frozen_hash, load_learned_state

JOINT_TRAINER = "nnUNetTrainerMNJoint"
CHECKPOINT = "checkpoint_final.pth"
_OF_MODEL = ("dataset.json", "dataset_fingerprint.json")
_OF_NETWORKS = ("backbone", "adaptation", "lora_rank", "dropout_2d", "slice_axes", "slices_per_forward")
_KEPT = ("init_args", "inference_allowed_mirroring_axes", "logging", "_best_ema", "current_epoch")
_TOLERANCE = 1e-3  # of a logit of the 2D network when it is built again


@dataclass(frozen=True, kw_only=True)
class ModelFolders:
    """The folders of a training and of its joint model.

    Args:
        dataset: nnUNet_results/DATASET.
        trainer, plans, configuration: their names.
    """

    dataset: Path
    trainer: str
    plans: str
    configuration: str

    @property
    def trained(self) -> Path:
        """The folder of the training."""
        return self.dataset / f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def joint(self) -> Path:
        """The folder of the joint model, beside it."""
        return self.dataset / f"{JOINT_TRAINER}__{self.plans}__{self.configuration}"

    def finished(self, fold: str) -> Path:
        """The final checkpoint of a fold. Raises an MNError when its training has not ended."""
        file = self.trained / f"fold_{fold}" / CHECKPOINT
        if file.is_file():
            return file
        begun = " --c" if file.parent.is_dir() else ""
        raise MNError(
            f"fold {fold} has no finished training: there is no {file}; run 'nnUNetv2_train {self.dataset.name} "
            f"{self.configuration} {fold} -tr {self.trainer} -p {self.plans}{begun}' to its end"
        )


def join(
    folders: ModelFolders, folds: Sequence[str], *, weight_2d: float = 0.5, force: bool = False, keep: bool = False
) -> Path:
    """Write the joint model of trained folds, whole or not at all.

    Args:
        folders: of an M&N training.
        folds: their names, such as `0` or `all`.
        weight_2d: of the 2D network's probabilities in the mean, between 0 and 1.
        force: replace an existing joint model, with its validation.
        keep: add the folds to those of an existing joint model, or replace these folds in it. Two trainings may do so
            at once.

    Returns:
        Its folder.

    Raises:
        MNError: when a training is not finished or its 2D network cannot be built here; when the folds have different
            2D networks; when there is a joint model already.
    """
    if not 0 < weight_2d < 1:
        raise MNError(f"--weight-2d is {weight_2d}, but must lie between 0 and 1, without both: give 0.5 for the mean")
    files = [folders.finished(fold) for fold in dict.fromkeys(folds)]
    if folders.joint.exists() and not (force or keep):
        raise MNError(f"{folders.joint} exists; give --force to replace it, and -f with all folds that it is to hold")
    lock = folders.joint.with_name(f".{folders.joint.name}.lock")
    with FileLock(lock) if keep and why_no_lock(lock) is None else nullcontext(), _staged(folders.joint) as staging:
        for name in _OF_MODEL:
            if (folders.trained / name).is_file():
                shutil.copyfile(folders.trained / name, staging / name)
        for file in files:
            _join_fold(file, staging, folders.configuration, weight_2d=weight_2d)
        if keep and folders.joint.exists():
            _keep_other_folds(folders.joint, staging)
    return folders.joint


def _keep_other_folds(joint: Path, staging: Path) -> None:
    """Bring the other folds of a joint model into the new one. Their plans must be equal."""
    if read_json(joint / "plans.json") != read_json(staging / "plans.json"):
        raise MNError(
            f"{joint} holds folds with another 2D network or weight; replace them by 'nnunet-mn join --force' with all "
            f"folds that it is to hold"
        )
    for fold in joint.glob("fold_*"):
        if not (staging / fold.name).exists():
            shutil.copytree(fold, staging / fold.name)


@dataclass(frozen=True)
class JointModel:
    """Both networks of a checkpoint as one network.

    Args:
        network: with the trained weights.
        plans: its plans.
    """

    network: Joint
    plans: TrainedPlans


def joint_model(file: Path, checkpoint: dict[str, Any], configuration: str, *, weight_2d: float = 0.5) -> JointModel:
    """Build the joint model of a checkpoint in memory.

    Args:
        file: of an M&N training, in its fold's folder.
        checkpoint: its content, from `read_trained`.
        configuration: the name of the trained one.
        weight_2d: of the 2D network's probabilities in the mean, between 0 and 1.

    Raises:
        MNError: when a file cannot be read, or the 2D network cannot be built here.
    """
    plans, description = (read_json(file.parents[1] / name) for name in ("plans.json", "dataset.json"))
    trained = TrainedPlans(plans, description, configuration)
    stored = checkpoint["mn"]["config"]  # 0.1.0 has no dropout_2d, which changes no prediction
    config = MNConfig(**{name: stored[name] for name in _OF_NETWORKS if name in stored})
    network_2d = _trained_network_2d(checkpoint["mn"], config, trained, file)
    joined = trained.joined(network_2d.spec.to_json(), config, weight_2d=weight_2d)
    joint = joined.build()
    weights_3d = {name.removeprefix("module."): tensor for name, tensor in checkpoint["network_weights"].items()}
    check_network(weights_3d, joint.network_3d, file)
    joint.network_3d.load_state_dict(weights_3d)
    rebuilt = cast(Network2D, joint.network_2d.network)
    rebuilt.load_state_dict(network_2d.state_dict())
    _check_rebuilt(rebuilt, network_2d)
    return JointModel(joint, joined)


def _join_fold(file: Path, staging: Path, configuration: str, *, weight_2d: float) -> None:
    checkpoint = read_trained(file)
    model = joint_model(file, checkpoint, configuration, weight_2d=weight_2d)
    _write_plans(model.plans.plans, staging, file)
    fold = staging / file.parent.name
    fold.mkdir()
    try:
        torch.save(_checkpoint(checkpoint, model.plans.plans, model.network.state_dict()), fold / CHECKPOINT)
    except RuntimeError as error:  # of torch's zip writer, on a full disk
        raise OSError(str(error)) from error
    if (file.parent / "progress.png").is_file():  # nnU-Net's export insists on it
        shutil.copyfile(file.parent / "progress.png", fold / "progress.png")


def read_trained(file: Path) -> dict[str, Any]:
    """A checkpoint of a training of both networks. Raises an MNError if the file is none, or cannot be read."""
    content = read_by_environment(file)
    mn = mn_part(content, file)
    if "network_2d" not in mn:
        raise MNError(
            f"{file} was written by {mn['trainer']} and holds no 2D network; name a training of both networks, such as "
            f"that of nnUNetTrainerMN"
        )
    return content


def read_json(file: Path) -> dict[str, Any]:
    """The content of a model folder's file. Raises an MNError when it cannot be read."""
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise MNError(f"{file} cannot be read ({error}); put back the file that the training wrote") from error
    return content


def _trained_network_2d(mn: Mapping[str, Any], config: MNConfig, trained: TrainedPlans, file: Path) -> Network2D:
    """The 2D network of a training: pretrained weights, and the trained ones over them."""
    network = build_network_2d(config, in_channels=trained.in_channels, num_classes=trained.num_classes)
    if mn["frozen_hash"] != frozen_hash(network):
        raise MNError(
            f"the frozen weights of '{config.backbone}' here differ from those that {file} was trained with; put the "
            f"same weights in place"
        )
    load_learned_state(network, mn["network_2d"])
    return network.eval()


def _write_plans(plans: dict[str, Any], staging: Path, file: Path) -> None:
    """Write the plans of the first fold. Those of the others must equal them."""
    written, text = staging / "plans.json", json.dumps(plans, indent=4)
    if written.exists() and written.read_text(encoding="utf-8") != text:
        raise MNError(f"{file} has another 2D network than the first fold (its settings differ); join only like folds")
    written.write_text(text, encoding="utf-8")


def _check_rebuilt(rebuilt: Network2D, original: Network2D) -> None:
    """Raise an MNError unless the 2D network computes the same without its pretrained files."""
    slices = torch.randn(2, original.spec.in_channels, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = float((rebuilt(slices) - original(slices)).abs().max())
    if not difference < _TOLERANCE:
        raise MNError(
            f"the 2D network '{original.spec.facts.name}' cannot be joined: built without its pretrained files, its "
            f"logits differ by {difference:.2g}; predict with the 3D network alone"
        )


def _checkpoint(source: Mapping[str, Any], plans: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint for stock prediction and validation."""
    kept = {key: source[key] for key in _KEPT if key in source}
    return {
        **kept,
        "init_args": {**source["init_args"], "plans": plans},
        "network_weights": weights,
        "trainer_name": STOCK_TRAINER,  # it builds what the plans name
        "optimizer_state": None,
        "grad_scaler_state": None,
    }


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder beside the target. It takes the target's place at the end, unless something was raised."""
    own = uuid4().hex
    staging, old = (target.with_name(f".{target.name}.{own}.{kind}") for kind in ("new", "old"))
    try:
        staging.mkdir()
        yield staging
        if target.exists():
            target.rename(old)
        staging.rename(target)
    except OSError as error:
        raise MNError(f"{target} cannot be written ({error}); free some space, or look at its rights") from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for folder in (staging, old):
            shutil.rmtree(folder, ignore_errors=True)


def joined_plans(plans: Mapping[str, Any], folders: ModelFolders, fold: int | str) -> dict[str, Any]:
    """The plans of a training, but with the architecture of its joint model.

    Raises:
        MNError: when there is no joint model of this fold.
    """
    if not (folders.joint / f"fold_{fold}" / CHECKPOINT).is_file():
        raise MNError(
            f"{JOINT_TRAINER} trains nothing, and {folders.joint} holds no fold_{fold} to validate; run "
            f"'nnunet-mn join -d {folders.dataset.name} -c {folders.configuration} -f {fold} -p {folders.plans}'"
        )
    return {**plans, "configurations": read_json(folders.joint / "plans.json")["configurations"]}
