"""The contract of a pretrained 2D backbone: images in, feature maps out, whatever library it comes from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_mn.networks.geometry import Geometry, Shape
from nnunet_mn.networks.registry import Kind

_PROBE = 64  # pixels a side of the image for measuring feature maps


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts about a backbone besides its weights.

    Args:
        name: as the user wrote it.
        license: of its weights.
        kind: transformer or convolutional; None: its layers decide.
        mean, std: of the pixels it was trained on, on a scale from 0 to 1, per channel.
        patch: pixels; both sides of its input must be multiples of it.
        shape: of its input.
    """

    name: str
    license: str
    kind: Kind | None
    mean: Sequence[float]
    std: Sequence[float]
    patch: int
    shape: Shape = "any"


class Backbone(nn.Module, ABC):
    """A pretrained encoder, with or without a pretrained decode head: images (N, 3, H, W) -> feature maps.

    Args:
        model: the library's module.
        facts: its name, license and input.
    """

    def __init__(self, model: nn.Module, facts: Facts) -> None:
        super().__init__()
        self.model: Any = model  # a module of a library without types
        self.facts = facts

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps, the finest first."""

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The part pretrained on natural images, without a decode head."""

    @property
    def is_decoded(self) -> bool:
        """Whether a pretrained decode head has fused the features into one map."""
        return False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The feature maps of a backbone.

    Args:
        channels: of each map, finest first.
        geometry: the stride of the finest map, and the block.
    """

    channels: tuple[int, ...]
    geometry: Geometry


def accepted_shape(model: Any, *, patch: int, image_size: int | None) -> Shape:
    """Try out the image sizes of a model: the libraries do not say them.

    Args:
        model: images to anything, in evaluation mode.
        patch: pixels; sides are multiples of it.
        image_size: pixels; the side of the images it was trained on, if known.
    """
    side = _probe_side(patch)
    if image_size is None or _runs(model, side, 2 * side):
        return "any"
    return "square" if _runs(model, side, side) and _runs(model, 2 * side, 2 * side) else image_size


def _runs(model: Any, height: int, width: int) -> bool:
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, height, width))
    except (RuntimeError, ValueError):  # raised by the models for a wrong size
        return False
    return True


def _probe_side(patch: int) -> int:
    return lcm(_PROBE, patch) if patch <= _PROBE else 2 * patch


def probe_image(facts: Facts) -> Tensor:
    """A black image of a size fit for a backbone."""
    side = facts.shape if isinstance(facts.shape, int) else _probe_side(facts.patch)
    return torch.zeros(1, 3, side, side)


def measure(backbone: Backbone) -> Measured:
    """Run a backbone once and measure its feature maps."""
    image = probe_image(backbone.facts)
    backbone.eval()
    with torch.no_grad():
        maps = backbone(image)
    stride = image.shape[-1] // maps[0].shape[-1]
    geometry = Geometry(stride=stride, block=lcm(stride, backbone.facts.patch), shape=backbone.facts.shape)
    return Measured(channels=tuple(map_.shape[1] for map_ in maps), geometry=geometry)
