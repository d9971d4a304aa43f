"""The plans of a joint model: one architecture that holds both networks."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_mn.networks.joint import Joint

_TRAINER = "trained_by"


def trainer_of(plans: Mapping[str, Any], configuration: str) -> str:
    """The trainer of the folds in a joint model, by its plans."""
    return str(plans["configurations"].get(configuration, {}).get("architecture", {}).get(_TRAINER, "another trainer"))


@dataclass(frozen=True)
class TrainedPlans:
    """The plans of a trained model.

    Args:
        plans: the content of its plans.json.
        description: the content of its dataset.json.
        configuration: the name of the trained one.
    """

    plans: dict[str, Any]
    description: dict[str, Any]
    configuration: str

    @property
    def in_channels(self) -> int:
        """Channels of an image at the networks."""
        return int(determine_num_input_channels(self._manager, self._configuration, self.description))

    @property
    def num_classes(self) -> int:
        """Channels of the logits."""
        return int(self._labels.num_segmentation_heads)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Of the preprocessed images, in mm."""
        return tuple(self._configuration.spacing)

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Of the windows, in voxels."""
        return tuple(self._configuration.patch_size)

    def joined(
        self,
        network_2d: Mapping[str, Any],
        *,
        axes: Sequence[int],
        weight_2d: float,
        trainer: str,
    ) -> "TrainedPlans":
        """The same plans, but with both networks in the configuration.

        Args:
            network_2d: the description of the 2D network (`Spec.to_json`).
            axes: that the 2D network looks along, 0 to 2.
            weight_2d: of the 2D network in the mean of probabilities.
            trainer: the name of the training's, for `trainer_of`.
        """
        configuration = self._configuration
        architecture = {
            "network_class_name": f"{Joint.__module__}.{Joint.__qualname__}",
            "arch_kwargs": {
                "network_3d": {
                    "network_class_name": configuration.network_arch_class_name,
                    "arch_kwargs": configuration.network_arch_init_kwargs,
                    "_kw_requires_import": list(configuration.network_arch_init_kwargs_req_import),
                },
                "network_2d": dict(network_2d),
                "axes": list(axes),
                "regions": bool(self._labels.has_regions),
                "weight_2d": weight_2d,
            },
            "_kw_requires_import": [],
            _TRAINER: trainer,  # nnU-Net reads none but the keys above
        }
        plans = deepcopy(self.plans)
        plans["configurations"][self.configuration]["architecture"] = architecture
        return TrainedPlans(plans, self.description, self.configuration)

    def build(self) -> Joint:
        """Build the network of joined plans, as nnU-Net does for a prediction."""
        network = get_network_from_plans(
            self._configuration.network_arch_class_name,
            self._configuration.network_arch_init_kwargs,
            self._configuration.network_arch_init_kwargs_req_import,
            self.in_channels,
            self.num_classes,
            deep_supervision=False,
        )
        return cast(Joint, network)

    @property
    def _manager(self) -> PlansManager:
        return PlansManager(self.plans)

    @property
    def _configuration(self) -> ConfigurationManager:
        return self._manager.get_configuration(self.configuration)

    @property
    def _labels(self) -> LabelManager:
        return self._manager.get_label_manager(self.description)
