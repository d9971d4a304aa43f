"""The costs of plans, during planning and later, and the settings in them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from nnunet_mn.bridge.cases.planned import PlannedDataset
from nnunet_mn.bridge.cases.raw_images import n_channels
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
from nnunet_mn.bridge.training.assembly import label_space, slice_axes
from nnunet_mn.config import PRESETS, MNConfig
from nnunet_mn.memory import GIB
from nnunet_mn.networks import build_network_2d
from nnunet_mn.networks.inventory import can_be_fetched, weights_are_here
from nnunet_mn.networks.precision import hold_frozen_weights
from nnunet_mn.slices import PIXELS_PER_FORWARD
from nnunet_mn.targets import LabelSpace

# These settings decide on memory and belong to the plans. A length or a seed does not.
PLANNED = (
    "backbone", "adaptation", "preset", "optimizer_3d", "lora_rank", "dropout_2d", "loss", "batch", "slice_axes",
    "slice_step", "slices_per_forward",
)  # fmt: skip
ALWAYS_WRITTEN = ("backbone", "slices_per_forward")


class CostModel:
    """Measures both networks once for each size tried in planning.

    Args:
        config: settings.
        channels: of an image.
        labels: of the dataset.

    Missing weights are no error: a machine for planning alone does not need them. Then a typical network's cost stands
    in, and `warnings` say so.

    Raises:
        MNError: when the 2D network is unknown or its weights are damaged.
    """

    def __init__(self, config: MNConfig, *, channels: int, labels: LabelSpace) -> None:
        self.config, self.channels, self.labels = config, channels, labels
        self.warnings: list[str] = []
        self._network = None
        self._slices: dict[tuple[int, int], SliceCost] = {}
        self._samples: dict[str, tuple[Cost, int]] = {}
        if weights_are_here(config.backbone) or not can_be_fetched(config.backbone):
            self._network = build_network_2d(config, in_channels=channels, num_classes=labels.num_channels)
            hold_frozen_weights(self._network, torch.bfloat16)  # as in a training on a card
        else:
            self.warnings.append(
                f"WARNING: the weights of '{config.backbone}' are not on this machine. The memory of the 2D network is "
                f"SegFormer-B2's as measured once; for an exact plan run `nnunet-mn weights fetch {config.backbone}` "
                f"and plan again"
            )

    def of(
        self, architecture: dict[str, Any], patch_size: Sequence[int], batch_size: int, *, axes: Sequence[int] = (0,)
    ) -> PlanCost:
        """The cost of a planned network with its patch, its batch, and the axes of the 2D network."""
        patch = tuple(int(n) for n in patch_size)
        key = f"{patch} {architecture}"
        if key not in self._samples:
            self._samples[key] = network_3d_cost(
                architecture, patch, channels=self.channels, labels=self.labels, config=self.config
            )
        sample, weights = self._samples[key]
        seen = views(patch, axes)
        largest = largest_view(seen, self._input_pixels)
        return PlanCost(
            patch_size=patch,
            batch_size=batch_size,
            views=seen,
            largest=largest,
            classes=self.labels.num_channels,
            sample=sample,
            weights_3d=weights,
            slice=self._slice(largest[1:]),
            loss_2d=loss_bytes(largest, labels=self.labels, config=self.config),
            config=self.config,
        )

    def slices_in_flight(self, cost: PlanCost, card_gib: float | None) -> int:
        """How many slices of the largest view a training has in flight with these settings.

        Args:
            cost: of the plans.
            card_gib: memory of the card; None: unknown.
        """
        if self.config.slices_per_forward is not None:
            return self.config.slices_per_forward
        if card_gib is not None:
            return cost.slices_on_card(card_gib)
        return max(1, PIXELS_PER_FORWARD // self._input_pixels(*cost.largest[1:]))

    def _input_pixels(self, height: int, width: int) -> int:
        return height * width if self._network is None else self._network.input_pixels(height, width)

    def _slice(self, size: tuple[int, int]) -> SliceCost:
        if self._network is None:
            return typical_2d_cost(size)
        if size not in self._slices:
            self._slices[size] = network_2d_cost(self._network, size, channels=self.channels)
        return self._slices[size]


def cost_of_planned(planned: PlannedDataset) -> tuple[PlanCost, list[str]]:
    """The cost of training a planned configuration. Its settings hold the slices in flight.

    Without such a setting they depend on the first card here. Where none is, they are those of a CPU.

    Returns:
        The cost, and warnings.

    Raises:
        MNError: as `CostModel`. An architecture from elsewhere than nnU-Net may raise anything.
    """
    labels = label_space(planned.plans_manager.get_label_manager(planned.dataset_json))
    model = CostModel(planned.config(), channels=n_channels(planned.dataset_json), labels=labels)
    plan = planned.configuration_manager.configuration
    axes = slice_axes(model.config, plan["spacing"])
    cost = model.of(plan["architecture"], plan["patch_size"], plan["batch_size"], axes=axes)
    card_gib = torch.cuda.mem_get_info(0)[1] / GIB if torch.cuda.is_available() else None
    slices = model.slices_in_flight(cost, card_gib)
    return replace(cost, config=replace(model.config, slices_per_forward=slices)), model.warnings


def written_settings(config: MNConfig) -> dict[str, Any]:
    """The dictionary `mn` of a planned configuration: settings with an effect on memory, without preset defaults."""
    values = config.to_dict()
    defaults = {field.name: field.default for field in fields(MNConfig)} | dict(PRESETS[config.preset])
    return {
        name: values[name] for name in PLANNED if name in ALWAYS_WRITTEN or values[name] != _default(defaults, name)
    }


def _default(defaults: dict[str, Any], name: str) -> Any:
    return "nnunet" if name == "preset" else defaults[name]
