"""The description of a 2D network. It builds the network again without a pretrained file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nnunet_mn.config import MNConfig
from nnunet_mn.networks.adaptation import Adaptation
from nnunet_mn.networks.adapter import Intensities
from nnunet_mn.networks.backbone import Facts, Measured
from nnunet_mn.networks.geometry import Geometry
from nnunet_mn.networks.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The modules of a 2D network, without their weights.

    Args:
        recipe: of the backbone (`recipes.recipe_of`).
        facts: of the backbone.
        measured: of its feature maps.
        adaptation: of its weights.
        lora_rank, dropout: of the low-rank updates.
        in_channels: C of the slices.
        num_classes: K of the logits.
        intensities: center and spread of each channel; None: about 0 and 1.
    """

    recipe: Recipe
    facts: Facts
    measured: Measured
    adaptation: Adaptation
    lora_rank: int
    dropout: float
    in_channels: int
    num_classes: int
    intensities: Intensities | None = None  # descriptions of earlier versions have none

    def to_json(self) -> dict[str, Any]:
        """The description as plain JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists
        return plain

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Spec":
        """Undo `to_json`."""
        measured = content["measured"]
        parts = {
            "facts": Facts(**content["facts"]),
            "measured": Measured(channels=tuple(measured["channels"]), geometry=Geometry(**measured["geometry"])),
        }
        return cls(**{**content, **parts})

    @property
    def config(self) -> MNConfig:
        """The settings behind the network's shape."""
        return MNConfig(
            backbone=self.facts.name,
            adaptation=self.adaptation,
            lora_rank=self.lora_rank,
            dropout_2d=self.dropout,
        )
