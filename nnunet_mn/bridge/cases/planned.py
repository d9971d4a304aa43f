"""A planned dataset: its folders, its plans, and one configuration of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_mn.bridge.cases.dataset import CaseFolders, DatasetFolders
from nnunet_mn.bridge.cases.description import has_channels, read_description
from nnunet_mn.bridge.files import read_object
from nnunet_mn.config import Layer, MNConfig, environment_layer, resolve
from nnunet_mn.errors import MNError

# The planner that writes plans, by their name. Stock's default planner needs none.
PLANNERS = {
    "nnUNetPlans": "",
    "nnUNetMNPlans": " -pl MNPlanner -fpe MNFingerprintExtractor",
    "nnUNetResEncUNetMMNPlans": " -pl MNPlannerResEncM -fpe MNFingerprintExtractor",
    "nnUNetResEncUNetLMNPlans": " -pl MNPlannerResEncL -fpe MNFingerprintExtractor",
    "nnUNetResEncUNetXLMNPlans": " -pl MNPlannerResEncXL -fpe MNFingerprintExtractor",
}


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
    planner = PLANNERS.get(plans, f" -pl PLANNER -overwrite_plans_name {plans}")
    hint = f"run 'nnUNetv2_plan_and_preprocess -d {folders.number} -c {configuration}{planner}'"
    found = read_object(
        folders.preprocessed / f"{plans}.json", "configurations", remedy=hint + _other_plans(folders, plans)
    )
    planned = planned_configuration(found, configuration)
    description = read_description(folders.preprocessed, "file_ending", "labels", remedy=hint)
    if not has_channels(description):
        raise MNError(f"{folders.preprocessed / 'dataset.json'} lacks channel_names; {hint}")
    return PlannedDataset(folders, PlansManager(found), configuration, planned, description)


def _other_plans(folders: DatasetFolders, plans: str) -> str:
    """Advice to take other plans of the dataset, if there are any."""
    others = sorted({file.stem for file in folders.preprocessed.glob("*Plans*.json") if _are_plans(file)} - {plans})
    return f", or name plans that are there with -p: {', '.join(others)}" if others else ""


def _are_plans(file: Path) -> bool:
    """Other files beside plans have such names, too."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "configurations" in content


def planned_configuration(plans: dict[str, Any], configuration: str) -> ConfigurationManager:
    """A configuration of the plans with whole, positive sizes.

    Raises:
        MNError: naming the wrong entry of the plans.
    """
    known = plans.get("configurations")
    if not isinstance(known, dict) or configuration not in known:
        names = ", ".join(known) if isinstance(known, dict) else "none"
        raise MNError(f"the plans have no configuration '{configuration}'; they have: {names}")
    try:
        planned = PlansManager(plans).get_configuration(configuration)
    except Exception as error:  # `inherits_from` may be anything
        raise MNError(f"configuration '{configuration}' of the plans cannot be read ({error}); plan again") from error
    _check_sizes(planned.configuration, f"configuration '{configuration}' of the plans")
    return planned


def _check_sizes(found: dict[str, Any], where: str) -> None:
    if not isinstance(found.get("mn", {}), dict):
        raise MNError(f"'mn' in {where} is {found['mn']!r}, but must be a dictionary of settings; correct it")
    batch, patch = found.get("batch_size"), found.get("patch_size")
    if type(batch) is not int or batch < 1:
        raise MNError(f"batch_size in {where} is {batch!r}, but must be a whole number of samples; correct it")
    if not isinstance(patch, (list, tuple)) or not all(type(n) is int and n > 0 for n in patch):
        raise MNError(f"patch_size in {where} is {patch!r}, but must be a list of numbers of voxels; correct it")
    strides = found.get("architecture", {}).get("arch_kwargs", {}).get("strides")
    if not isinstance(strides, (list, tuple)):
        return  # a network of another kind
    divisor = np.prod([np.broadcast_to(stride, len(patch)) for stride in strides], axis=0)
    if np.any(np.mod(patch, divisor)):
        raise MNError(
            f"patch_size in {where} is {list(patch)}, but its network halves the axes so often that they must be "
            f"multiples of {divisor.tolist()}; correct it"
        )
