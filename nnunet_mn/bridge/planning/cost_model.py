"""The costs of plans while they are made, and the settings that they carry."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.planning.cost import (
    PlanCost,
    SliceCost,
    largest_view,
    loss_bytes,
    network_2d_cost,
    network_3d_cost,
    typical_2d_cost,
    views,
)
from nnunet_mn.bridge.planning.measure import Cost
from nnunet_mn.config import PRESETS, MNConfig
from nnunet_mn.networks import build_network_2d
from nnunet_mn.networks.inventory import is_here
from nnunet_mn.networks.registry import find
from nnunet_mn.targets import LabelSpace

# What decides on memory, and so belongs to the plans; a length or a seed does not.
PLANNED = (
    "backbone", "adaptation", "preset", "optimizer_3d", "lora_rank", "slice_axes", "slice_step",
    "slices_per_forward",
)  # fmt: skip
ALWAYS_WRITTEN = ("backbone", "slices_per_forward")


class CostModel:
    """Measures both networks once for each size that planning tries.

    Args:
        config: settings.
        channels: of an image.
        labels: of the dataset.

    Raises:
        MNError: when the 2D network is unknown or its weights are damaged. Weights that are not on this machine are no
            error: plans are often made where they are not needed; then a typical network's cost stands in.
    """

    def __init__(self, config: MNConfig, *, channels: int, labels: LabelSpace) -> None:
        self.config, self.channels, self.labels = config, channels, labels
        self.warnings: list[str] = []
        self._network = None
        self._slices: dict[tuple[int, int], SliceCost] = {}
        self._samples: dict[str, tuple[Cost, int]] = {}
        if weights_are_here(config.backbone):
            self._network = build_network_2d(config, in_channels=channels, num_classes=labels.num_channels)
        else:
            self.warnings.append(
                f"WARNING: the weights of '{config.backbone}' are not on this machine, so that the memory of the 2D "
                f"network is SegFormer-B2's as measured once; for an exact plan run `nnunet-mn weights fetch "
                f"{config.backbone}` and plan again"
            )

    def of(
        self, architecture: dict[str, Any], patch_size: Sequence[int], batch_size: int, *, axes: Sequence[int] = (0,)
    ) -> PlanCost:
        """The cost of a planned network with its patch and batch, and the axes along which it is sliced."""
        patch = tuple(int(n) for n in patch_size)
        key = f"{patch} {architecture['arch_kwargs']['strides']}"
        if key not in self._samples:
            self._samples[key] = network_3d_cost(
                architecture, patch, channels=self.channels, labels=self.labels, config=self.config
            )
        sample, weights = self._samples[key]
        seen = views(patch, axes)
        largest = largest_view(seen)
        return PlanCost(
            patch_size=patch,
            batch_size=batch_size,
            views=seen,
            classes=self.labels.num_channels,
            sample=sample,
            weights_3d=weights,
            slice=self._slice(largest[1:]),
            loss_2d=loss_bytes(largest, labels=self.labels, config=self.config),
            config=self.config,
        )

    def _slice(self, size: tuple[int, int]) -> SliceCost:
        if self._network is None:
            return typical_2d_cost(size)
        if size not in self._slices:
            self._slices[size] = network_2d_cost(self._network, size, channels=self.channels)
        return self._slices[size]


def weights_are_here(backbone: str) -> bool:
    """Whether a 2D network can be built without fetching anything; true for a name that nobody knows."""
    entry = find(backbone)
    if entry is not None:
        return is_here(entry.source)
    from_hub = backbone.startswith("timm:") and "@" not in backbone
    return is_here(backbone) if from_hub or (backbone.count("/") == 1 and not Path(backbone).is_dir()) else True


def written_settings(config: MNConfig) -> dict[str, Any]:
    """The dictionary `mn` of a planned configuration: what decided on memory, where it is not the preset's default."""
    values = config.to_dict()
    defaults = {field.name: field.default for field in fields(MNConfig)} | dict(PRESETS[config.preset])
    return {
        name: values[name] for name in PLANNED if name in ALWAYS_WRITTEN or values[name] != _default(defaults, name)
    }


def _default(defaults: dict[str, Any], name: str) -> Any:
    return "nnunet" if name == "preset" else defaults[name]
