"""Builds the co-trainer from nnU-Net's plans and the settings."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import cast

import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from nnunet_mn.config import MNConfig
from nnunet_mn.cotraining import CoTrainer, Student
from nnunet_mn.device import autocast_type, fused
from nnunet_mn.losses import DeepSupervisionLoss, SoftTargetLoss
from nnunet_mn.networks import build_network_2d
from nnunet_mn.networks.joint import Joint
from nnunet_mn.networks.precision import hold_frozen_weights
from nnunet_mn.ranks import Ranks
from nnunet_mn.schedule import scale_learning_rates
from nnunet_mn.slices import SliceSampler, SliceWise
from nnunet_mn.targets import LabelSpace
from nnunet_mn.teaching import FrozenPair, MeanOfBoth, OtherNetwork

WEIGHT_DECAY_2D = 0.01  # AdamW's default
TEACHERS = {"both": MeanOfBoth, "other": OtherNetwork}


def label_space(labels: LabelManager) -> LabelSpace:
    """Translate nnU-Net's labels for the core."""
    return LabelSpace(
        num_channels=labels.num_segmentation_heads, regions=labels.has_regions, ignore_label=labels.ignore_label
    )


def loss_for(config: MNConfig, labels: LabelSpace, *, batch_dice: bool, ranks: Ranks) -> SoftTargetLoss:
    """The loss for one output: nnU-Net's form or the reference's."""
    if config.loss == "paper":
        return SoftTargetLoss(regions=labels.regions, background=True, squared=True, average="elements", ranks=ranks)
    return SoftTargetLoss(regions=labels.regions, batch_dice=batch_dice, ranks=ranks)


def slice_axes(config: MNConfig, spacing: Sequence[float]) -> tuple[int, ...]:
    """The axes to slice along. `auto` takes all three if nnU-Net's planner would call the spacing isotropic."""
    nearly_cubes = max(spacing) < ANISO_THRESHOLD * min(spacing)
    return (0, 1, 2) if config.slice_axes == "auto" and nearly_cubes else (0,)


def build(
    config: MNConfig,
    network_3d: nn.Module,
    optimizer_3d: torch.optim.Optimizer,
    *,
    scaler_3d: GradScaler | None,
    deep_supervision_weights: tuple[float, ...],
    batch_dice: bool,
    labels: LabelSpace,
    in_channels: int,
    spacing: Sequence[float],
    device: torch.device,
    ranks: Ranks,
) -> CoTrainer:
    """Put the 2D network beside nnU-Net's 3D network.

    Args:
        network_3d, optimizer_3d, scaler_3d: from nnU-Net's trainer. The network comes without its wrapper for several
            GPUs: the students sum gradients over the ranks.
        deep_supervision_weights: one for each output of the 3D network.
        in_channels: of an image.
        spacing: mm between voxels along each axis, as planned.
        device: of both networks.

    Raises:
        MNError: if the 2D network's weights are missing or do not fit.
    """
    autocast = autocast_type(config.precision, device)
    network_2d = build_network_2d(config, in_channels=in_channels, num_classes=labels.num_channels).to(device)
    ranks.take_from_first([*network_2d.parameters(), *network_2d.buffers()])
    if autocast is not None:
        hold_frozen_weights(network_2d, autocast)
    groups = network_2d.parameter_groups(lr=config.lr_2d, weight_decay=WEIGHT_DECAY_2D)
    optimizer_2d = torch.optim.AdamW(groups, fused=fused(device))
    scale_learning_rates(optimizer_2d, 1)
    loss = loss_for(config, labels, batch_dice=batch_dice, ranks=ranks)
    student_3d = Student(
        name="3D",
        network=network_3d,
        optimizer=optimizer_3d,
        loss=DeepSupervisionLoss(loss=loss, weights=deep_supervision_weights),
        scaler=_scaler(scaler_3d, autocast, device),
        ranks=ranks,
    )
    student_2d = Student(
        name="2D",
        network=SliceWise(network_2d, slices_per_forward=config.slices_per_forward),
        optimizer=optimizer_2d,
        loss=DeepSupervisionLoss(loss=loss),
        scaler=GradScaler(device.type, enabled=autocast == torch.float16),
        ranks=ranks,
    )
    sampler = SliceSampler(
        axes=slice_axes(config, spacing), step=config.slice_step, generator=_generator(config, ranks)
    )
    teacher = TEACHERS[config.teacher](
        network_3d=network_3d, network_2d=student_2d.network, labels=labels, sampler=sampler
    )
    return CoTrainer(
        student_3d=student_3d,
        student_2d=student_2d,
        teacher=teacher,
        labels=labels,
        sampler=sampler,
        autocast=_autocast(autocast, device),
    )


def build_student(
    config: MNConfig,
    network_3d: nn.Module,
    optimizer_3d: torch.optim.Optimizer,
    joint: Joint,
    *,
    scaler_3d: GradScaler | None,
    deep_supervision_weights: tuple[float, ...],
    batch_dice: bool,
    labels: LabelSpace,
    device: torch.device,
    ranks: Ranks,
) -> CoTrainer:
    """Put a frozen joint model before nnU-Net's 3D network. For the arguments see `build`."""
    autocast = autocast_type(config.precision, device)
    loss = loss_for(config, labels, batch_dice=batch_dice, ranks=ranks)
    student = Student(
        name="3D",
        network=network_3d,
        optimizer=optimizer_3d,
        loss=DeepSupervisionLoss(loss=loss, weights=deep_supervision_weights),
        scaler=_scaler(scaler_3d, autocast, device),
        ranks=ranks,
    )
    frozen = joint.eval().requires_grad_(False)
    sampler = SliceSampler(axes=frozen.axes, generator=_generator(config, ranks))
    teacher = FrozenPair(
        network_3d=frozen.network_3d,
        network_2d=frozen.network_2d,
        labels=labels,
        sampler=sampler,
        weight_2d=frozen.weight_2d,
    )
    return CoTrainer(
        student_3d=student, teacher=teacher, labels=labels, sampler=sampler, autocast=_autocast(autocast, device)
    )


def _scaler(stock: GradScaler | None, autocast: torch.dtype | None, device: torch.device) -> GradScaler:
    """nnU-Net's scaler in fp16, else one that does nothing."""
    return stock if stock is not None and autocast == torch.float16 else GradScaler(device.type, enabled=False)


def _autocast(kind: torch.dtype | None, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    return nullcontext if kind is None else partial(torch.autocast, device.type, dtype=kind)


def _generator(config: MNConfig, ranks: Ranks) -> torch.Generator:
    """The slices' generator, in the same state on all ranks: they train on the same slices."""
    seed = torch.initial_seed() % 2**63 if config.seed is None else config.seed
    return torch.Generator().manual_seed(ranks.number_of_first(seed))


def without_ddp(network: nn.Module) -> nn.Module:
    """nnU-Net's network without its wrapper for several GPUs."""
    return cast(nn.Module, network.module) if isinstance(network, DistributedDataParallel) else network


def unwrapped(network: nn.Module) -> nn.Module:
    """nnU-Net's network without the wrappers for several GPUs and for compiled code. They rename its weights."""
    network = without_ddp(network)
    return cast(nn.Module, getattr(network, "_orig_mod", network))


def network_2d(cotrainer: CoTrainer) -> nn.Module:
    """The 2D network without its wrapper for volumes. Another second student has no wrapper."""
    network = cotrainer.students[1].network
    return cast(nn.Module, network.network) if isinstance(network, SliceWise) else network
