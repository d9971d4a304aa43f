"""Both networks as one network: its probabilities are the mean of theirs.

nnU-Net builds a `Joint` from the plans that `nnunet-mn join` wrote. This needs nnunet_mn, but no pretrained file.
"""

import pydoc
from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_mn.device import without_search
from nnunet_mn.errors import MNError
from nnunet_mn.networks.build import rebuild_network_2d
from nnunet_mn.slices import SliceWise, along_axis

LOWEST = -30.0  # of a log probability: 1e-13. A sum of many stays finite in fp16


class Joint(nn.Module):
    """A 3D network and a 2D one along its axes: volume `(B, C, D, H, W)` -> logits `(B, K, D, H, W)`, in fp32.

    The logits are the log of the mean of both networks' probabilities: softmax gives this mean. For regions they are
    the logit of the mean: sigmoid gives it.

    Args:
        input_channels: C.
        num_classes: K.
        network_3d: nnU-Net's architecture: the keys `network_class_name`, `arch_kwargs` and `_kw_requires_import`.
        network_2d: `Spec.to_json` of the 2D network.
        axes: spatial axes that the 2D network looks along, 0 to 2. Its probabilities are averaged over them.
        regions: the channels are overlapping regions (sigmoid) rather than classes (softmax).
        weight_2d: of the 2D network in the mean, between 0 and 1.
        slices_per_forward: most slices in flight, in joint models of earlier versions; see `SliceWise`.
        deep_supervision: nnU-Net's argument. There is one output, whatever it says.

    Raises:
        MNError: when the classes of the networks are not installed.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        network_3d: Mapping[str, Any],
        network_2d: Mapping[str, Any],
        axes: Sequence[int],
        regions: bool,
        weight_2d: float = 0.5,
        slices_per_forward: int | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.network_3d: Any = build_network_3d(network_3d, input_channels, num_classes)
        self.network_2d = SliceWise(rebuild_network_2d(network_2d), slices_per_forward=slices_per_forward)
        self.axes = tuple(axes)
        self.regions = regions
        self.weight_2d = weight_2d

    @property
    def decoder(self) -> nn.Module:
        """The 3D network's decoder: nnU-Net switches its deep supervision."""
        decoder: nn.Module = self.network_3d.decoder
        return decoder

    def forward(self, volume: Tensor) -> Tensor:
        of_3d, of_2d = self._log_probabilities_of_each(volume)
        return self._to_logits(torch.logaddexp(of_3d + log(1 - self.weight_2d), of_2d + log(self.weight_2d)))

    def logits_of_each(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the 3D network and those of the 2D one, `(B, K, D, H, W)` each, as `forward` gives the mean."""
        of_3d, of_2d = self._log_probabilities_of_each(volume)
        return self._to_logits(of_3d), self._to_logits(of_2d)

    def _log_probabilities_of_each(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        of_3d = self._log_probabilities(self.network_3d(volume))
        of_2d = self._along(volume, self.axes[0])
        for axis in self.axes[1:]:
            of_2d = torch.logaddexp(of_2d, self._along(volume, axis))
        return of_3d, of_2d - log(len(self.axes))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # slices along three axes would be thousands of nodes
    def _along(self, volume: Tensor, axis: int) -> Tensor:
        """The 2D network's log probabilities along one axis."""
        with without_search():
            outputs = self.network_2d(along_axis(volume, axis))
        return self._log_probabilities(along_axis(outputs[0], axis))

    def _log_probabilities(self, outputs: Tensor | Sequence[Tensor]) -> Tensor:
        """The log of probabilities. Regions have a second one before all axes: that of the opposite."""
        logits = (outputs if isinstance(outputs, Tensor) else outputs[0]).float()
        if self.regions:
            return torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)])  # (2, B, K, D, H, W)
        return functional.log_softmax(logits, dim=1)

    def _to_logits(self, logs: Tensor) -> Tensor:
        return (logs[0] - logs[1]).clamp(LOWEST, -LOWEST) if self.regions else logs.clamp_min(LOWEST)


class SideBySide(nn.Module):
    """Both networks of a `Joint`: volume `(B, C, D, H, W)` -> logits `(B, 2·K, D, H, W)`, those of the 3D one first."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.joint = joint

    def forward(self, volume: Tensor) -> Tensor:
        return torch.cat(self.joint.logits_of_each(volume), dim=1)


def build_network_3d(architecture: Mapping[str, Any], in_channels: int, num_classes: int) -> nn.Module:
    """Build a 3D network as nnU-Net's plans name it, without deep supervision.

    Raises:
        MNError: when a class that it names is not installed.
    """
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        if arguments[name] is not None:
            arguments[name] = _locate(arguments[name])
    network: nn.Module = _locate(architecture["network_class_name"])(
        input_channels=in_channels, num_classes=num_classes, **{**arguments, "deep_supervision": False}
    )
    return network


def _locate(path: str) -> Any:
    found = pydoc.locate(path)
    if found is None:
        raise MNError(f"the plans name '{path}' as a part of the 3D network, which is not here; install its package")
    return found
