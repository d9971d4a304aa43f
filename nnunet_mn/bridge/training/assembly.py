"""Builds the co-trainer from nnU-Net's plans and the settings."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
from nnunet_mn.networks.adapter import PIXEL_MEAN, PIXEL_STD, Intensities
from nnunet_mn.networks.joint import Joint
from nnunet_mn.networks.precision import hold_frozen_weights
from nnunet_mn.ranks import Ranks
from nnunet_mn.schedule import scale_learning_rates
from nnunet_mn.slices import SliceSampler, SliceWise
from nnunet_mn.targets import LabelSpace
from nnunet_mn.teaching import FrozenPair, MeanOfBoth, OtherNetwork

WEIGHT_DECAY_2D = 0.01  # AdamW's default
_FROM_0_TO_1 = ("RescaleTo01Normalization", "RGBTo01Normalization")
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
    """The axes to slice along. `auto` takes all three if nnU-Net would resample all axes alike at this spacing."""
    nearly_cubes = max(spacing) < ANISO_THRESHOLD * min(spacing)
    return (0, 1, 2) if config.slice_axes == "auto" and nearly_cubes else (0,)


def channel_intensities(schemes: Sequence[str], foreground: Mapping[str, Mapping[str, float]]) -> Intensities | None:
    """Center and spread of each channel after nnU-Net's normalization; None where all are about 0 and 1.

    Args:
        schemes: nnU-Net's class of each channel's normalization.
        foreground: the plans' statistics of each channel's raw intensities in the foreground.
    """

    def of(channel: int, scheme: str) -> tuple[float, float]:
        if scheme in _FROM_0_TO_1:
            return PIXEL_MEAN, PIXEL_STD  # they are pixels already
        if scheme != "NoNormalization":
            return 0.0, 1.0
        raw = foreground[str(channel)]
        return float(raw["mean"]), float(raw["std"]) or 1.0

    found = tuple(of(channel, scheme) for channel, scheme in enumerate(schemes))
    return None if set(found) == {(0.0, 1.0)} else found


@dataclass(frozen=True, kw_only=True)
class StockParts:
    """nnU-Net's 3D network and what its trainer trains it with.

    Args:
        network: without its wrapper for several GPUs: the students sum gradients over the ranks.
        optimizer, scaler: of its weights.
        deep_supervision_weights: one for each output of the network.
        batch_dice: whether the Dice is that of the batch, not of each sample.
        labels: how labels become channels.
        device: of the network.
        ranks: the processes of one batch.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler | None
    deep_supervision_weights: tuple[float, ...]
    batch_dice: bool
    labels: LabelSpace
    device: torch.device
    ranks: Ranks

    def student_3d(self, config: MNConfig) -> Student:
        """The 3D student."""
        in_fp16 = autocast_type(config.precision, self.device) == torch.float16
        return Student(
            name="3D",
            network=self.network,
            optimizer=self.optimizer,
            loss=DeepSupervisionLoss(loss=self.loss(config), weights=self.deep_supervision_weights),
            scaler=self.scaler if self.scaler is not None and in_fp16 else GradScaler(self.device.type, enabled=False),
            ranks=self.ranks,
        )

    def loss(self, config: MNConfig) -> SoftTargetLoss:
        """The loss of one output."""
        return loss_for(config, self.labels, batch_dice=self.batch_dice, ranks=self.ranks)


def build_cotraining(
    config: MNConfig,
    parts: StockParts,
    *,
    in_channels: int,
    spacing: Sequence[float],
    intensities: Intensities | None = None,
) -> CoTrainer:
    """Put the 2D network beside nnU-Net's 3D network.

    Args:
        in_channels: of an image.
        spacing: mm between voxels along each axis, as planned.
        intensities: from `channel_intensities`.

    Raises:
        MNError: if the 2D network's weights are missing or do not fit.
    """
    student_2d = _student_2d(config, parts, in_channels, intensities)
    axes = slice_axes(config, spacing)
    sampler = SliceSampler(axes=axes, step=config.slice_step, generator=_generator(config, parts.ranks))
    teacher = TEACHERS[config.teacher](
        network_3d=parts.network, network_2d=student_2d.network, labels=parts.labels, sampler=sampler
    )
    return CoTrainer(
        student_3d=parts.student_3d(config),
        student_2d=student_2d,
        teacher=teacher,
        labels=parts.labels,
        sampler=sampler,
        autocast=_autocast(config, parts.device),
    )


def build_distillation(config: MNConfig, parts: StockParts, joint: Joint) -> CoTrainer:
    """Put a frozen joint model before nnU-Net's 3D network. It teaches along a random one of its axes in each step."""
    frozen = joint.eval().requires_grad_(False)
    sampler = SliceSampler(axes=frozen.axes, generator=_generator(config, parts.ranks))
    teacher = FrozenPair(
        network_3d=frozen.network_3d,
        network_2d=frozen.network_2d,
        labels=parts.labels,
        sampler=sampler,
        weight_2d=frozen.weight_2d,
    )
    return CoTrainer(
        student_3d=parts.student_3d(config),
        teacher=teacher,
        labels=parts.labels,
        sampler=sampler,
        autocast=_autocast(config, parts.device),
    )


def _student_2d(config: MNConfig, parts: StockParts, in_channels: int, intensities: Intensities | None) -> Student:
    device, ranks, autocast = parts.device, parts.ranks, autocast_type(config.precision, parts.device)
    network = build_network_2d(
        config, in_channels=in_channels, num_classes=parts.labels.num_channels, intensities=intensities
    ).to(device)
    ranks.take_from_first([*network.parameters(), *network.buffers()])
    if autocast is not None:
        hold_frozen_weights(network, autocast)
    groups = network.parameter_groups(lr=config.lr_2d, weight_decay=WEIGHT_DECAY_2D)
    optimizer = torch.optim.AdamW(groups, fused=fused(device))
    scale_learning_rates(optimizer, 1)
    return Student(
        name="2D",
        network=SliceWise(network, slices_per_forward=config.slices_per_forward),
        optimizer=optimizer,
        loss=DeepSupervisionLoss(loss=parts.loss(config)),
        scaler=GradScaler(device.type, enabled=autocast == torch.float16),
        ranks=ranks,
    )


def _autocast(config: MNConfig, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    kind = autocast_type(config.precision, device)
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
