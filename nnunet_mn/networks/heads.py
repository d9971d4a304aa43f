"""Heads: a backbone's features and the slice itself -> logits."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 64  # channels of each projected feature map; the pilot's, enough for the few classes of a dataset
LOGIT_SCALE = 4  # Adam moves a weight by its rate, whatever the gradient: at 1, logits of few inputs grow too slowly


class FeatureHead(nn.Module):
    """Features at several strides and the slice -> logits of the slice's size.

    In the style of SegFormer's all-MLP head (Xie et al., NeurIPS 2021, section 3.2): every map is projected to the same
    width, resized to the finest, and all are fused. Then they are joined with the slice: a pretrained encoder has lost
    its detail at the finest stride. A transposed convolution doubles the resolution. There are two departures, since
    the head learned faster with them: a 3x3 convolution after the fusion, and the norm after the doubling.

    Args:
        channels: of the feature maps, finest first.
        in_channels: C of the slices.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], *, in_channels: int, num_classes: int) -> None:
        super().__init__()
        half = WIDTH // 2
        self.projections = nn.ModuleList(nn.Conv2d(width, WIDTH, kernel_size=1) for width in channels)
        self.fuse = nn.Conv2d(WIDTH * len(channels), WIDTH, kernel_size=1, bias=False)
        self.fuse_norm = _norm(WIDTH)
        self.smooth = nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1, bias=False)
        self.smooth_norm = _norm(WIDTH)
        self.enlarge = nn.ConvTranspose2d(WIDTH + in_channels, half, kernel_size=2, stride=2, bias=False)
        self.enlarge_norm = _norm(half)
        self.classify = nn.Conv2d(half + in_channels, num_classes, kernel_size=1)

    def forward(self, features: Sequence[Tensor], slices: Tensor) -> Tensor:
        cells = features[0].shape[-2:]
        projected = [resize(project(map_), cells) for project, map_ in zip(self.projections, features, strict=True)]
        fused = functional.relu(self.fuse_norm(self.fuse(torch.cat(projected, dim=1))))  # (N, 64, h, w)
        fused = functional.relu(self.smooth_norm(self.smooth(fused)))  # (N, 64, h, w)
        joined = torch.cat([fused, _average(slices, cells)], dim=1)  # (N, 64 + C, h, w)
        enlarged = functional.relu(self.enlarge_norm(self.enlarge(joined)))  # (N, 32, 2h, 2w)
        return LOGIT_SCALE * self._classify(enlarged, slices)

    def _classify(self, enlarged: Tensor, slices: Tensor) -> Tensor:
        """Classify features and slice as if joined: `(N, 32, 2h, 2w)` and `(N, C, H, W)` -> `(N, K, H, W)`.

        A 1x1 convolution and a bilinear resizing may change places: K channels are resized in place of 32. On slices of
        128x128 voxels this saves a fifth of the 2D network's time in training (`benchmarks/results/head.txt`).
        """
        size, many = slices.shape[-2:], self.classify.out_channels > enlarged.shape[1]
        if enlarged.shape[-2:] == size or many:  # then one convolution is faster than two
            joined: Tensor = self.classify(torch.cat([resize(enlarged, size), slices], dim=1))
            return joined
        of_features, of_slices = self.classify.weight.split([enlarged.shape[1], slices.shape[1]], dim=1)
        logits = resize(functional.conv2d(enlarged, of_features), size)
        return logits + functional.conv2d(slices, of_slices, self.classify.bias)


def _norm(channels: int) -> nn.Module:
    """Each channel of each slice by itself: unlike batch norm, no slice's logits depend on the other slices."""
    return nn.GroupNorm(channels, channels)


class FusedHead(nn.Module):
    """The fused features of a pretrained decode head and the slice -> logits of the slice's size.

    As in the reference: both are joined at the features' stride and one transposed convolution leads back to pixels
    (Yeung et al., MLMI 2025). If the slice was enlarged for the backbone, the pixels of a voxel are averaged.

    Args:
        channels: of the fused features.
        stride: pixels per cell of the fused features, and the size of the transposed convolution's kernel.
        in_channels: C of the slices.
        num_classes: K.
    """

    def __init__(self, channels: int, *, stride: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(channels + in_channels, num_classes, kernel_size=stride, stride=stride)

    def forward(self, features: Sequence[Tensor], slices: Tensor) -> Tensor:
        (fused,) = features
        joined = torch.cat([fused, _average(slices, fused.shape[-2:])], dim=1)
        logits = self.enlarge(joined)  # (N, K, H' = the backbone's input height, W')
        return _average(logits, slices.shape[-2:])


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly; free if the size is right already."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _average(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Shrink maps by the mean over each cell; free if the size is right already."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return functional.adaptive_avg_pool2d(maps, (size[0], size[1]))
