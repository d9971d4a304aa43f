"""The joint model: a folder in nnUNet_results from which stock nnU-Net predicts with both networks."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock

from nnunet_mn.bridge.files import why_no_lock
from nnunet_mn.bridge.model_folders import CHECKPOINT, JOINT_TRAINER, ModelFolders, read_json
from nnunet_mn.bridge.reading import mn_part, read_by_environment
from nnunet_mn.bridge.staging import save_tensors, staging_beside, take_place
from nnunet_mn.bridge.training.checkpoint import STOCK_TRAINER, check_network
from nnunet_mn.bridge.training.joint_plans import TrainedPlans, trainer_of
from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks import Network2D, build_network_2d
from nnunet_mn.networks.joint import Joint
from nnunet_mn.networks.weights import frozen_hash, load_learned_state

_OF_MODEL = ("dataset.json", "dataset_fingerprint.json")
_OF_NETWORKS = ("backbone", "adaptation", "lora_rank", "dropout_2d", "slice_axes", "slices_per_forward")
_KEPT = ("init_args", "inference_allowed_mirroring_axes", "logging", "_best_ema", "current_epoch")
_TOLERANCE = 1e-3  # of a logit of the 2D network when it is built again


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
            2D networks or trainers; when there is a joint model already.
    """
    if not 0 < weight_2d < 1:
        raise MNError(f"--weight-2d is {weight_2d}, but must lie between 0 and 1, without both: give 0.5 for the mean")
    files = [folders.finished(fold) for fold in dict.fromkeys(folds)]
    lock = folders.joint.with_name(f".{folders.joint.name}.lock")
    with FileLock(lock) if keep and why_no_lock(lock) is None else nullcontext(), _staged(folders.joint) as staging:
        if folders.joint.exists() and not (force or keep):
            raise MNError(
                f"{folders.joint} exists; give --force to replace it, and -f with all folds that it is to hold"
            )
        for name in _OF_MODEL:
            if (folders.trained / name).is_file():
                shutil.copyfile(folders.trained / name, staging / name)
        for file in files:
            _join_fold(file, staging, folders.configuration, weight_2d=weight_2d)
        if keep and folders.joint.exists():
            _keep_other_folds(folders, staging)
    return folders.joint


def _keep_other_folds(folders: ModelFolders, staging: Path) -> None:
    """Bring the other folds of a joint model into the new one. Trainer and plans must be the same."""
    there, new = (read_json(folder / "plans.json", "configurations") for folder in (folders.joint, staging))
    before, now = (trainer_of(plans, folders.configuration) for plans in (there, new))
    if before != now:
        raise MNError(
            f"{folders.joint} holds folds of {before}, but this one is of {now}; replace them by 'nnunet-mn join "
            f"--force' with all folds that it is to hold"
        )
    if there != new:
        raise MNError(
            f"{folders.joint} holds folds with another 2D network or weight; replace them by 'nnunet-mn join --force' "
            f"with all folds that it is to hold"
        )
    for fold in folders.joint.glob("fold_*"):
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
    plans = read_json(file.parents[1] / "plans.json", "configurations")
    description = read_json(file.parents[1] / "dataset.json", "labels")
    trained = TrainedPlans(plans, description, configuration)
    stored = checkpoint["mn"]["config"]  # 0.1.0 has no dropout_2d, which changes no prediction
    config = MNConfig(**{name: stored[name] for name in _OF_NETWORKS if name in stored})
    network_2d = _trained_network_2d(checkpoint["mn"], config, trained, file)
    joined = trained.joined(network_2d.spec.to_json(), config, weight_2d=weight_2d, trainer=checkpoint["mn"]["trainer"])
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
    save_tensors(_checkpoint(checkpoint, model.plans.plans, model.network.state_dict()), fold / CHECKPOINT)
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
        raise MNError(
            f"{file} has another 2D network than the first fold (its settings or its trainer differ); join only like "
            f"folds"
        )
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
    try:
        with staging_beside(target) as staging:
            yield staging
            take_place(staging, target)
    except OSError as error:
        raise MNError(f"{target} cannot be written ({error}); free some space, or look at its rights") from error


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
    return {**plans, "configurations": read_json(folders.joint / "plans.json", "configurations")["configurations"]}
