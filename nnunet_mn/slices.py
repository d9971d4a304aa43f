"""A volume as a stack of slices along its first axis, and a 2D network for volumes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from nnunet_mn.memory import free_bytes, kept_for_backward

PIXELS_PER_FORWARD = 2**20  # activations of a few GB for the encoders we know
SHARE_OF_FREE_MEMORY = 0.5  # the rest is for the loss, gradients on their way, workspaces, and other processes


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode. Afterwards each layer has its own mode again: some may be frozen."""
    training = [layer for layer in network.modules() if layer.training]
    network.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.training = True


class SliceNetwork(Protocol):
    """The interface of a 2D network: `(N, C, H, W)` -> logits `(N, K, H, W)`, and its input size."""

    def __call__(self, slices: Tensor) -> Tensor: ...

    def input_pixels(self, height: int, width: int) -> int:
        """Pixels at the encoder's input for a slice of `height` x `width` voxels."""
        ...


def volume_to_slices(volume: Tensor) -> Tensor:
    """Stack the slices of all samples: `(B, C, D, H, W)` -> `(B*D, C, H, W)`."""
    return volume.transpose(1, 2).flatten(0, 1)


def slices_to_volume(slices: Tensor, batch_size: int) -> Tensor:
    """Undo `volume_to_slices`: `(B*D, C, H, W)` -> `(B, C, D, H, W)`."""
    return slices.reshape(batch_size, -1, *slices.shape[1:]).transpose(1, 2)


def along_axis(volume: Tensor, axis: int) -> Tensor:
    """Swap the first spatial axis of a volume with another one, 0 to 2; its own inverse."""
    return volume.transpose(2, 2 + axis)


def every_nth_slice(volume: Tensor, step: int, first: int) -> Tensor:
    """Every `step`-th slice from `first` on: `(B, C, D, H, W)` -> `(B, C, ceil((D - first) / step), H, W)`."""
    return volume[:, :, first::step]


@dataclass(frozen=True, kw_only=True)
class SliceSampler:
    """Draws the 2D network's view of volumes: an axis and a first slice.

    >>> SliceSampler(axes=(1,), step=2).draw_view()(torch.zeros(1, 1, 4, 16, 6)).shape
    torch.Size([1, 1, 8, 4, 6])

    Args:
        axes: spatial axes to look along, 0 to 2.
        step: the 2D network learns from every `step`-th slice.
        generator: for the random draws. Ranks that share a batch need generators in the same state.
    """

    axes: tuple[int, ...] = (0,)
    step: int = 1
    generator: torch.Generator = field(default_factory=torch.Generator)

    def draw_axis(self) -> int:
        """Draw one of the axes at random."""
        return self.axes[self._draw(len(self.axes))]

    def draw_view(self) -> "SliceView":
        """Draw a random axis and a random first slice."""
        return SliceView(axis=self.draw_axis(), step=self.step, first=self._draw(self.step))

    def _draw(self, choices: int) -> int:
        return int(torch.randint(choices, (), generator=self.generator))


@dataclass(frozen=True, kw_only=True)
class SliceView:
    """Every `step`-th slice along an axis, from the slice `first` on: `(B, C, D, H, W)` -> `(B, C, D', H', W')`.

    A volume of fewer than `step` slices gives one of them.
    """

    axis: int
    step: int
    first: int

    def __call__(self, volume: Tensor) -> Tensor:
        along = along_axis(volume, self.axis)
        return every_nth_slice(along, self.step, self.first % along.shape[2])


class SliceWise(nn.Module):
    """A 2D network applied to each slice of a volume: `(B, C, D, H, W)` -> `[logits (B, K, D, H, W)]`.

    The list has one entry, because there is no deep supervision.

    If the slices do not fit into memory, they are computed in equal chunks. The backward pass computes the activations
    of each chunk again.

    Args:
        network: the 2D network.
        slices_per_forward: most slices computed at once. None: on a CUDA card, as many as fit into half of the memory
            that is free at that moment. Elsewhere as many as hold 2^20 pixels at the encoder's input: on other devices
            starting a chunk costs nothing, and the free memory is not known.
    """

    def __init__(self, network: SliceNetwork, *, slices_per_forward: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.slices_per_forward = slices_per_forward
        self._measured: dict[tuple[bool, int, int], int] = {}  # bytes of a slice

    def forward(self, volume: Tensor) -> list[Tensor]:
        slices = volume_to_slices(volume)  # (B·D, C, H, W)
        chunks = ceil(len(slices) / (self.slices_per_forward or self._slices_that_fit(slices)))
        if chunks == 1:
            logits = self.network(slices)
        else:
            logits = torch.cat([self._run(part) for part in slices.tensor_split(chunks)])
        return [slices_to_volume(logits, len(volume))]

    def _run(self, part: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.network(part)
        logits: Tensor = checkpoint(self.network, part, use_reentrant=False)
        return logits

    def _slices_that_fit(self, slices: Tensor) -> int:
        """How many slices of this size are computed at once.

        The free memory is looked up in each pass: a teacher's pass has less than a validation's, because the 3D
        network's activations are held beside it.
        """
        height, width = slices.shape[-2:]
        free = None if torch.compiler.is_compiling() else free_bytes(slices.device)
        if free is None:
            return max(1, PIXELS_PER_FORWARD // self.network.input_pixels(height, width))
        key = torch.is_grad_enabled(), height, width  # a pass without a gradient has other tensors
        if key not in self._measured:
            self._measured[key] = self._bytes_of_a_slice(slices)
        return max(1, int(SHARE_OF_FREE_MEMORY * free) // self._measured[key])

    def _bytes_of_a_slice(self, slices: Tensor) -> int:
        """Bytes that a training pass keeps for each slice. A pass without a gradient takes less.

        It is measured on empty slices in evaluation mode, with copies of the weights: nnU-Net's predictor moves weights
        to the card in inference mode, and autograd refuses such tensors. No random number is drawn, no statistics
        change.
        """
        is_student = torch.is_grad_enabled()  # else frozen weights count, too: their layers take memory all the same
        network = cast(nn.Module, self.network)
        with evaluating(network), torch.inference_mode(False), torch.enable_grad():
            sizes = ((count, *slices.shape[1:]) for count in (1, 2))
            empty = [torch.zeros(size, dtype=slices.dtype, device=slices.device) for size in sizes]
            weights = {
                name: tensor.detach().clone().requires_grad_(tensor.requires_grad)
                for name, tensor in (*network.named_parameters(), *network.named_buffers())
            }
            one, two = (
                kept_for_backward(
                    partial(functional_call, network, weights, slices_.requires_grad_(not is_student)), weights.values()
                )[0]
                for slices_ in empty
            )
        torch.clear_autocast_cache()
        return max(1, two - one)
