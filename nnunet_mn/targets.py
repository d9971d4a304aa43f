"""Masks and pseudo-masks as soft targets for both networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_mn.errors import MNError


class SoftTarget(NamedTuple):
    """A target at one resolution.

    Args:
        values: class probabilities, `(B, K, ...)`.
        mask: 1 for voxels that count, else 0, `(B, 1, ...)`; None: all count.
    """

    values: Tensor
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """How a dataset's labels become channels.

    Args:
        num_channels: classes with background, or regions; the logits' channels K.
        regions: the channels are overlapping regions (sigmoid) rather than classes (softmax).
        ignore_label: the value of voxels that must not count; None: the dataset has none.

    Raises:
        MNError: when there are too few channels.
    """

    num_channels: int
    regions: bool = False
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        if self.num_channels < (1 if self.regions else 2):
            raise MNError(
                f"num_channels is {self.num_channels}: give at least 2 for classes, since the background counts, or "
                f"at least 1 with regions=True"
            )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class or region probabilities of logits `(B, K, ...)`, in fp32."""
        return logits.float().sigmoid() if self.regions else logits.float().softmax(1)

    def encode(self, target: Tensor) -> SoftTarget:
        """Turn a mask as nnU-Net's loader gives it into a soft target.

        Args:
            target: labels `(B, 1, ...)`, or one channel a region `(B, K, ...)`. An ignore label adds a channel to
                regions.

        Returns:
            Values `(B, K, ...)` in fp32, and a mask `(B, 1, ...)` if there is an ignore label.

        Raises:
            MNError: when the masks have another number of channels. On the CPU also for a label that is no class; a
                card would have to be waited for.
        """
        channels = self.num_channels + (self.ignore_label is not None) if self.regions else 1
        if target.shape[1] != channels:
            counted = "one channel" if channels == 1 else f"{channels} channels"
            raise MNError(
                f"the masks have shape {tuple(target.shape)}, but must have {counted}: (B, {channels}, D, H, W)"
            )
        if self.regions:
            values = target[:, : self.num_channels].float()
            return SoftTarget(values, None if self.ignore_label is None else 1 - target[:, -1:].float())
        labels, mask = target.long(), None
        if self.ignore_label is not None:
            mask = (labels != self.ignore_label).float()
            labels = labels.masked_fill(labels == self.ignore_label, 0)  # any class: the mask hides it
        if labels.device.type == "cpu" and labels.numel():
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.num_channels:
                raise MNError(
                    f"the masks hold labels from {low} to {high}, but the classes are 0 to {self.num_channels - 1}: "
                    f"correct them, or num_channels"
                )
        values = torch.zeros(len(labels), self.num_channels, *labels.shape[2:], device=labels.device)
        return SoftTarget(values.scatter_(1, labels, 1), mask)


def combine(target: Tensor, pseudo_mask: Tensor, labels: LabelSpace) -> SoftTarget:
    """The target of a batch: labeled samples first, then unlabeled ones.

    Args:
        target: the loader's masks of the whole batch, `(B, ...)`; those of unlabeled samples are not looked at.
        pseudo_mask: the teacher's probabilities for the unlabeled samples, `(n_u, K, ...)`, n_u from 0 to B. They
            have the target's resolution, or a multiple of it: then they are brought down by average pooling.
        labels: the dataset's labels.

    Returns:
        Values `(B, K, ...)` in fp32, and the mask of the labeled samples' ignore label.
    """
    known = labels.encode(target[: len(target) - len(pseudo_mask)])
    if len(pseudo_mask) == 0:
        return known
    values = torch.cat([known.values, _pool(pseudo_mask, target.shape[2:])])
    if known.mask is None:
        return SoftTarget(values, None)
    return SoftTarget(values, torch.cat([known.mask, torch.ones_like(values[len(known.values) :, :1])]))


def _pool(values: Tensor, size: Sequence[int]) -> Tensor:
    """Bring `(n, K, ...)` down to a size that divides its own. MPS lacks torch's adaptive pooling of volumes."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    depth, height, width = size
    cells: Tensor = values.unflatten(4, (width, -1)).unflatten(3, (height, -1)).unflatten(2, (depth, -1))
    return cells.mean((3, 5, 7))


def combine_scales(targets: Sequence[Tensor], pseudo_mask: Tensor, labels: LabelSpace) -> list[SoftTarget]:
    """`combine` for the target of every deep-supervision output, finest first."""
    return [combine(target, pseudo_mask, labels) for target in targets]
