"""Soft Dice plus Kullback-Leibler divergence to soft targets, with deep supervision, regions and an ignore mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mn.ranks import ALONE, Ranks
from nnunet_mn.targets import SoftTarget


@dataclass(frozen=True, kw_only=True)
class SoftTargetLoss:
    """`KL(target || prediction) - Dice`. With hard targets it equals nnU-Net's own loss, in value and in gradient.

    The paper also adds Dice and cross entropy (arXiv 2509.15167). With a soft target, cross entropy has the same
    gradient as this divergence. But only the divergence is 0 when the prediction equals the target.

    Args:
        regions: channels are regions (sigmoid, Bernoulli KL) rather than classes (softmax).
        batch_dice: one Dice over the batch rather than the mean of each sample's.
        background: the first class counts in the Dice (nnU-Net: only for regions; reference: always).
        squared: a Dice with squared denominators, as in V-Net and the reference. With a soft target it is highest for
            the target itself. nnU-Net's linear Dice is highest for a mask: 1 for each voxel with a target above half
            of the present Dice, else 0. It lets unsure pseudo-masks grow; the squared one leaves them too small.
        average: KL over `voxels` (nnU-Net's cross entropy) or over all `elements` (voxels and channels).
        smooth: added to numerator and denominator of the Dice.
        ranks: the processes with parts of the batch; each gets the value of the whole batch.
    """

    regions: bool = False
    batch_dice: bool = False
    background: bool = False
    squared: bool = False
    average: Literal["voxels", "elements"] = "voxels"
    smooth: float = 1e-5
    ranks: Ranks = ALONE

    def __call__(self, logits: Tensor, target: SoftTarget) -> Tensor:
        """The loss of logits `(B, K, ...)` in fp32."""
        logits = logits.float()
        if self.regions:
            divergence = F.binary_cross_entropy_with_logits(logits, target.values, reduction="none")
            divergence = divergence - _binary_entropy(target.values)
            prediction = logits.sigmoid()
        else:
            log_prediction = logits.log_softmax(1)
            divergence = -(target.values * log_prediction) - torch.special.entr(target.values)
            prediction = log_prediction.exp()
        return self._mean(divergence, target.mask) - self._dice(prediction, target)

    def _mean(self, divergence: Tensor, mask: Tensor | None) -> Tensor:
        """Average `(B, K, ...)` over the unmasked voxels."""
        if mask is None:
            voxels = self.ranks.total_count(divergence) / divergence.shape[1]
            total = self.ranks.total(divergence.sum()) / voxels
            # nnU-Net averages the BCE over regions too, but only without an ignore label
            return total / divergence.shape[1] if self.regions or self.average == "elements" else total
        total = self.ranks.total((divergence * mask).sum()) / self.ranks.total(mask.sum()).clamp_min(1e-8)
        return total / divergence.shape[1] if self.average == "elements" else total

    def _dice(self, prediction: Tensor, target: SoftTarget) -> Tensor:
        values = target.values
        if not (self.background or self.regions):
            prediction, values = prediction[:, 1:], values[:, 1:]
        if target.mask is not None:
            prediction, values = prediction * target.mask, values * target.mask
        over = tuple(range(2, prediction.ndim))
        overlap = (prediction * values).sum(over)  # (B, K)
        size = self.sizes(prediction, values).sum(over)
        if self.batch_dice:
            overlap, size = self.ranks.total(overlap.sum(0)), self.ranks.total(size.sum(0))
        dice = (2 * overlap + self.smooth) / (size + self.smooth).clamp_min(1e-8)
        return dice.mean() if self.batch_dice else self.ranks.total(dice.sum()) / self.ranks.total_count(dice)

    def sizes(self, prediction: Tensor, values: Tensor) -> Tensor:
        """What each voxel of `(B, K, ...)` adds to the Dice's denominator; a subclass may count otherwise."""
        return prediction.square() + values.square() if self.squared else prediction + values


@dataclass(frozen=True, kw_only=True)
class DeepSupervisionLoss:
    """A loss summed over a network's outputs, finest first, with nnU-Net's weights.

    Args:
        loss: for one output.
        weights: one for each output; outputs of weight 0 are left out.
    """

    loss: SoftTargetLoss
    weights: tuple[float, ...] = (1.0,)

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[SoftTarget]) -> Tensor:
        """The weighted sum over outputs `[(B, K, ...), ...]` and their targets."""
        terms = [
            weight * self.loss(output, target)
            for weight, output, target in zip(self.weights, outputs, targets, strict=True)
            if weight != 0
        ]
        return torch.stack(terms).sum()


def _binary_entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
    return entropy
