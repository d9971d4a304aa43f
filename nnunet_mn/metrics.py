"""Dice on training patches, counted over an epoch as nnU-Net counts its pseudo-Dice."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_mn.ranks import ALONE, Ranks
from nnunet_mn.targets import LabelSpace, SoftTarget


class Counts(NamedTuple):
    """Voxels of each foreground class or region, `(K',)`: predicted and true, predicted only, true only."""

    true_positive: Tensor
    false_positive: Tensor
    false_negative: Tensor


def count(logits: Tensor, target: SoftTarget, labels: LabelSpace) -> Counts:
    """Compare the most likely classes of logits `(B, K, ...)` with a hard target, leaving out masked voxels."""
    if labels.regions:
        prediction = (logits > 0).float()
    else:
        prediction = torch.zeros_like(target.values).scatter_(1, logits.argmax(1, keepdim=True), 1)
    truth = target.values
    if target.mask is not None:
        prediction, truth = prediction * target.mask, truth * target.mask
    over = (0, *range(2, logits.ndim))
    first = 0 if labels.regions else 1  # background is no class of interest
    both, predicted, true = (v.sum(over)[first:].cpu() for v in (prediction * truth, prediction, truth))
    return Counts(both, predicted - both, true - both)


def dice_per_class(counts: Iterable[Counts], ranks: Ranks = ALONE) -> list[float]:
    """Dice of the voxels counted by all ranks. NaN for a class that is neither in the truth nor predicted."""
    sums = (torch.stack(column).double().sum(0) for column in zip(*counts, strict=True))
    tp, fp, fn = (ranks.total(column.to(ranks.device)) for column in sums)
    return [float(value) for value in 2 * tp / (2 * tp + fp + fn)]
