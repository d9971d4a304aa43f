"""The demands of a training on plans and preprocessed folders. Each mistake in them has its sentence."""

from collections.abc import Iterable
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_mn.bridge.words import name_some
from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError


def check_co_trainable(planned: ConfigurationManager, configuration: str, config: MNConfig) -> None:
    """Raise an MNError if M&N cannot train a configuration of the plans with these settings."""
    if len(planned.patch_size) != 3 or planned.previous_stage_name is not None:
        raise MNError(
            f"M&N co-trains a 2D and a 3D network, which configuration '{configuration}' does not allow: use "
            f"3d_fullres or 3d_lowres"
        )
    if planned.batch_size == 1:
        _check_batch_of_one(configuration, config)


def _check_batch_of_one(configuration: str, config: MNConfig) -> None:
    """Raise an MNError if no unlabeled sample would ever come. On top of a single labeled one there is room for one."""
    if config.batch == "replace":
        raise MNError(
            f"configuration '{configuration}' plans a batch of 1, but M&N needs room for a labeled and an unlabeled "
            f"sample where unlabeled ones replace labeled ones: set its batch_size to 2 or more in the plans, or "
            f"nnUNet_mn_batch=add (for a student nnUNet_mn_student_masks=online)"
        )
    if config.rounding == "floor" and config.guidance == "number":
        raise MNError(
            f"configuration '{configuration}' plans a batch of 1; with nnUNet_mn_rounding=floor no unlabeled "
            f"sample would ever be drawn: set nnUNet_mn_rounding=auto, or its batch_size to 2 or more in the plans"
        )


def check_split_is_preprocessed(named: Iterable[str], preprocessed: Iterable[str], folder: Path) -> None:
    """Raise an MNError if cases of a split were not preprocessed."""
    missing = sorted(set(named) - set(preprocessed))
    if missing:
        raise MNError(
            f"the split names {name_some(missing)}, of which {folder} holds no preprocessed case: correct "
            f"splits_final.json, or run nnUNetv2_preprocess for this dataset"
        )
