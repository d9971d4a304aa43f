"""A planned dataset: its folders, its plans, and one configuration of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_mn.bridge.cases.dataset import CaseFolders, DatasetFolders
from nnunet_mn.config import Layer, MNConfig, environment_layer, resolve
from nnunet_mn.errors import MNError


@dataclass(frozen=True)
class PlannedDataset:
    """A dataset, its plans and one configuration of them."""

    folders: DatasetFolders
    plans_manager: PlansManager
    configuration: str
    configuration_manager: ConfigurationManager
    dataset_json: dict[str, Any]

    @property
    def cases(self) -> CaseFolders:
        """The folders of its cases."""
        labeled = self.folders.preprocessed / str(self.configuration_manager.data_identifier)
        return CaseFolders(raw=self.folders.raw, labeled=labeled, description=self.dataset_json)

    def config(self) -> MNConfig:
        """The settings of a training started now, without those fixed by a trainer variant."""
        planned = self.configuration_manager.configuration.get("mn", {})
        return resolve(Layer(f"'mn' in the plans' configuration {self.configuration}", planned), environment_layer())


def load_planned(folders: DatasetFolders, *, plans: str, configuration: str) -> PlannedDataset:
    """Read the plans and the dataset's description.

    Args:
        folders: from `find_dataset`.
        plans: their name, such as `nnUNetPlans`.
        configuration: its name, such as `3d_fullres`.

    Raises:
        MNError: when one of them is missing or broken.
    """
    hint = f"run 'nnUNetv2_plan_and_preprocess -d {int(folders.name[7:10])} -c {configuration}'"
    found = PlansManager(_read_json(folders.preprocessed / f"{plans}.json", hint))
    if configuration not in found.available_configurations:
        raise MNError(
            f"{plans} have no configuration '{configuration}'; use {', '.join(found.available_configurations)}"
        )
    return PlannedDataset(
        folders,
        found,
        configuration,
        found.get_configuration(configuration),
        _read_json(folders.preprocessed / "dataset.json", hint),
    )


def _read_json(file: Path, hint: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise MNError(f"{file} does not exist; {hint}") from error
    except (OSError, ValueError) as error:
        raise MNError(f"{file} cannot be read ({error}); {hint}") from error
    return content
