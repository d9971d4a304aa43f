"""The demands of a training on plans and preprocessed folders. Each mistake in them has its sentence."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_mn.bridge.cases.images import name_some
from nnunet_mn.errors import MNError

SMALLEST_BATCH = 2  # a labeled and an unlabeled sample


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


def check_co_trainable(planned: ConfigurationManager, configuration: str) -> None:
    """Raise an MNError if M&N cannot train a configuration of the plans."""
    if len(planned.patch_size) != 3 or planned.previous_stage_name is not None:
        raise MNError(
            f"M&N co-trains a 2D and a 3D network, which configuration '{configuration}' does not allow: use "
            f"3d_fullres or 3d_lowres"
        )
    if planned.batch_size < SMALLEST_BATCH:
        raise MNError(
            f"configuration '{configuration}' plans a batch of {planned.batch_size}, but M&N needs room for a labeled "
            f"and an unlabeled sample: set its batch_size to 2 or more in the plans"
        )


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


def dataset_class_of(folder: Path) -> Any:
    """nnU-Net's class for the preprocessed cases of a folder.

    Raises:
        MNError: when there is no such folder, or when something else lies in it.
    """
    try:
        return infer_dataset_class(str(folder))
    except (AssertionError, KeyError, IndexError, OSError) as error:
        raise MNError(
            f"{folder} does not hold preprocessed cases and nothing else ({error}): run nnUNetv2_preprocess for this "
            f"dataset and configuration, or remove other files from there"
        ) from error


def check_preprocessed(named: Iterable[str], preprocessed: Iterable[str], folder: Path) -> None:
    """Raise an MNError if cases of a split were not preprocessed."""
    missing = sorted(set(named) - set(preprocessed))
    if missing:
        raise MNError(
            f"the split names {name_some(missing)}, of which {folder} holds no preprocessed case: correct "
            f"splits_final.json, or run nnUNetv2_preprocess for this dataset"
        )
