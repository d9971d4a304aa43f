"""The size of a slice at a backbone's input: padded to whole blocks, each block enlarged by one exact factor."""

from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

from torch import Tensor
from torch.nn import functional

Shape = Literal["any", "square"] | int

VOXELS_PER_CELL = 4  # of the finest feature map, a side, at most
SHORTEST_SIDE = 64  # pixels at the encoder's input, at least: the deepest of five halvings still has two cells


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A backbone's demands on the size of its input.

    Args:
        stride: pixels a side per cell of its finest feature map.
        block: pixels; both sides of its input must be multiples of it (and it is itself one of the stride).
        shape: of its input: of `any` size, `square`, or always of this many pixels a side.
    """

    stride: int
    block: int
    shape: Shape = "any"

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The padded size of a slice, in voxels, and the size of the backbone's input, in pixels."""
        if isinstance(self.shape, int):
            return (height, width), (self.shape, self.shape)
        if self.shape == "square":
            height = width = max(height, width)
        voxels, pixels = self._scale(min(height, width))
        blocks = ceil(height / voxels), ceil(width / voxels)
        return (blocks[0] * voxels, blocks[1] * voxels), (blocks[0] * pixels, blocks[1] * pixels)

    def _scale(self, short: int) -> tuple[int, int]:
        """Voxels and the pixels made of them; a padded slice is enlarged by exactly their ratio."""
        voxels = min(self.block, VOXELS_PER_CELL * self.block / self.stride, self.block * short / SHORTEST_SIDE)
        if voxels >= 1:
            return floor(voxels), self.block
        return 1, self.block * ceil(SHORTEST_SIDE / (self.block * short))


def pad_slices(slices: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Repeat the last row and column of slices (N, C, H, W) up to a size; `crop_slices` is the inverse."""
    bottom, right = size[0] - slices.shape[-2], size[1] - slices.shape[-1]
    if bottom == 0 and right == 0:
        return slices
    return functional.pad(slices, (0, right, 0, bottom), mode="replicate")


def crop_slices(slices: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Cut padded slices (N, K, H', W') back to a size."""
    return slices[..., : size[0], : size[1]]
