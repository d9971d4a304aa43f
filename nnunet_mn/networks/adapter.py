"""Turns slices of medical images into three-channel images like the natural images of the pretraining."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Mean and standard deviation of ImageNet's pixels, over its three channels, on a scale from 0 (black) to 1 (white).
PIXEL_MEAN, PIXEL_STD = 0.449, 0.226

Intensities = Sequence[tuple[float, float]]  # center and spread of each channel


def to_pixels(intensities: Tensor) -> Tensor:
    """Map nnU-Net's normalized intensities to the range of pixels in natural images.

    Zero mean and unit deviation become the mean and the deviation of natural images. Values below black or above
    white are clipped, as in a photograph.

    Args:
        intensities: of any shape, z-scored or otherwise of about zero mean and unit deviation.
    """
    return (intensities * PIXEL_STD + PIXEL_MEAN).clamp(0, 1)


class Standardized(nn.Module):
    """Slices (N, C, H, W) -> the same with about zero mean and unit deviation in each channel.

    nnU-Net's z-score and CT normalization give such slices. Its other schemes do not: the pretrained network would see
    their slices too dark, too bright or clipped.

    Args:
        intensities: of each channel.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, intensities: Intensities) -> None:
        super().__init__()
        center, spread = torch.tensor(intensities).T[..., None, None]  # (C, 1, 1) each
        self.register_buffer("center", center, persistent=False)
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, slices: Tensor) -> Tensor:
        standardized: Tensor = (slices - self.center) / self.spread
        return standardized


class ChannelAdapter(nn.Module):
    """Slices of C channels -> images of three channels, normalized as the backbone's training images were.

    A learned 1x1 convolution. It starts as the mean over the channels, three times: a single channel is repeated
    exactly, and pretrained features are in range from the first step.

    Args:
        in_channels: C.
        mean, std: the backbone's normalization of pixels from 0 to 1, per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_channels: int, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mix = nn.Conv2d(in_channels, 3, kernel_size=1)
        nn.init.constant_(self.mix.weight, 1 / in_channels)
        if self.mix.bias is not None:
            nn.init.zeros_(self.mix.bias)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, slices: Tensor) -> Tensor:
        pixels = self.mix(to_pixels(slices))  # (N, 3, H, W)
        normalized: Tensor = (pixels - self.mean) / self.std
        return normalized
