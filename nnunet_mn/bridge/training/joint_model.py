"""Both networks of a checkpoint as one network in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nnunet_mn.bridge.reading import mn_part, read_by_environment
from nnunet_mn.bridge.trained_with import files_beside
from nnunet_mn.bridge.training.assembly import slice_axes
from nnunet_mn.bridge.training.checkpoint import check_network
from nnunet_mn.bridge.training.joint_plans import TrainedPlans
from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks import Network2D, build_network_2d
from nnunet_mn.networks.joint import Joint
from nnunet_mn.networks.weights import frozen_hash, load_learned_state

_OF_NETWORKS = ("backbone", "adaptation", "lora_rank", "dropout_2d", "slice_axes")
_TOLERANCE = 1e-3  # of a logit of the 2D network when it is built again


def read_trained(file: Path) -> dict[str, Any]:
    """A checkpoint of a training of both networks. Raises an MNError if the file is none, or cannot be read."""
    content = read_by_environment(file)
    check_has_2d_network(content, file)
    return content


def check_has_2d_network(content: Mapping[str, Any], file: Path) -> None:
    """Raise an MNError unless a checkpoint is of a training of both networks."""
    mn = mn_part(content, file)
    if "network_2d" not in mn:
        raise MNError(
            f"{file} was written by {mn['trainer']} and holds no 2D network; name a training of both networks, such as "
            f"that of nnUNetTrainerMN"
        )


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
    trained = plans_of(file, checkpoint, configuration)
    stored = checkpoint["mn"]["config"]  # 0.1.0 has no dropout_2d, which changes no prediction
    config = MNConfig(**{name: stored[name] for name in _OF_NETWORKS if name in stored})
    network_2d = _trained_network_2d(checkpoint["mn"], config, trained, file)
    joined = trained.joined(
        network_2d.spec.to_json(),
        axes=slice_axes(config, trained.spacing),
        weight_2d=weight_2d,
        trainer=checkpoint["mn"]["trainer"],
    )
    return build_joint(joined, checkpoint["network_weights"], network_2d, file)


def plans_of(file: Path, checkpoint: Mapping[str, Any], configuration: str) -> TrainedPlans:
    """The plans beside the fold of a checkpoint. Raises an MNError if a file cannot be read, or is of other folds."""
    plans, description = files_beside(file, checkpoint)
    return TrainedPlans(plans, description, configuration)


def build_joint(
    joined: TrainedPlans, weights_3d: Mapping[str, Tensor], network_2d: Network2D, file: Path
) -> JointModel:
    """Build the network of joined plans with these weights.

    Args:
        joined: from `TrainedPlans.joined`.
        weights_3d: of nnU-Net's network, from the checkpoint.
        network_2d: it is built again without its pretrained files.
        file: the checkpoint, for messages.

    Raises:
        MNError: when the weights do not fit, or the 2D network cannot be built here.
    """
    joint = joined.build()
    check_network(weights_3d, joint.network_3d, file)
    joint.network_3d.load_state_dict(weights_3d)
    rebuilt = cast(Network2D, joint.network_2d.network)
    rebuilt.load_state_dict(network_2d.state_dict())
    _check_rebuilt(rebuilt, network_2d)
    return JointModel(joint, joined)


def _trained_network_2d(mn: Mapping[str, Any], config: MNConfig, trained: TrainedPlans, file: Path) -> Network2D:
    """The 2D network of a training: pretrained weights, and the trained ones over them."""
    network = build_network_2d(
        config,
        in_channels=trained.in_channels,
        num_classes=trained.num_classes,
        intensities=mn.get("intensities"),  # earlier versions had none
    )
    if mn["frozen_hash"] != frozen_hash(network):
        raise MNError(
            f"the frozen weights of '{config.backbone}' here differ from those that {file} was trained with; put the "
            f"same weights in place"
        )
    load_learned_state(network, mn["network_2d"])
    return network.eval()


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
