"""A volume in numbers: how a pretrained 2D network sees its slices. Volumes that look alike have similar numbers."""

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_mn.networks.adapter import ChannelAdapter
from nnunet_mn.networks.backbone import Backbone, measure
from nnunet_mn.slices import along_axis, volume_to_slices

SIDE = 128  # pixels of a slice at the backbone's input; organs and their surroundings are told apart at this size
SLICES = 12  # along each axis, evenly spread
_AXES = (0, 1, 2)


@torch.no_grad()
def describe(backbone: Backbone, volume: Tensor) -> Tensor:
    """The mean of the deepest features over slices along the three axes: (C, D, H, W) -> (F,).

    Every slice becomes a square image of the same size. Volumes of any shape and spacing have the same number of
    features then.

    Args:
        backbone: in evaluation mode. It is not adapted to the data.
        volume: raw intensities.
    """
    spread = volume.flatten(1).std(dim=1).clamp_min(1e-8)
    normalized = (volume - volume.flatten(1).mean(dim=1).view(-1, 1, 1, 1)) / spread.view(-1, 1, 1, 1)
    images = ChannelAdapter(len(volume), mean=backbone.facts.mean, std=backbone.facts.std)
    side = _side(backbone)
    means = []
    for axis in _AXES:
        slices = _square_slices(normalized[None], axis, side=side)  # (N, C, side, side)
        means.append(backbone(images(slices))[-1].mean(dim=(0, 2, 3)))
    return torch.cat(means)


def _square_slices(volume: Tensor, axis: int, *, side: int) -> Tensor:
    slices = volume_to_slices(along_axis(volume, axis))  # (D', C, H', W')
    chosen = torch.linspace(0, len(slices) - 1, min(SLICES, len(slices))).round().long()
    return functional.interpolate(slices[chosen], size=(side, side), mode="bilinear", antialias=True)


def _side(backbone: Backbone) -> int:
    """Pixels of a side that the backbone takes."""
    geometry = measure(backbone).geometry
    return geometry.shape if isinstance(geometry.shape, int) else -(-SIDE // geometry.block) * geometry.block
