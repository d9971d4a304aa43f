"""What a network was trained with: what images and labels mean to it. Its weights do not show this."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mn.bridge.model_folders import STOCK_TRAINER, read_json
from nnunet_mn.errors import MNError

_OF_IMAGES = ("spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data")


def meaning(plans: Mapping[str, Any], configuration: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of plans and of dataset.json that say what images and labels mean, by name.

    Args:
        plans: the content of a plans.json.
        configuration: the name of one in it.
        description: the content of a dataset.json.
    """
    planned = PlansManager(dict(plans)).get_configuration(configuration).configuration
    return {
        **{name: planned.get(name) for name in _OF_IMAGES},
        "labels": str(description["labels"]),  # with regions their order counts
        "regions_class_order": description.get("regions_class_order"),
    }


def meaning_at_training(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """`meaning`, as a checkpoint keeps it."""
    then = checkpoint["init_args"]
    return meaning(then["plans"], then["configuration"], then["dataset_json"])


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The name of the first entry with another value; None if all agree."""
    return next((name for name, value in one.items() if value != other[name]), None)


def check_means_the_same(now: Mapping[str, Any], file: Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise an MNError if images or labels mean something else by now than in the training of a checkpoint.

    Args:
        now: the `meaning` of today's plans and dataset.json.
        file: the checkpoint, for the message.
        checkpoint: its content.
    """
    then = meaning_at_training(checkpoint)
    if name := first_difference(now, then):
        raise MNError(
            f"the {_source(name)} of now has {name} {now[name]}, but {file} was trained with {then[name]}: put the "
            f"earlier {_source(name)} back and preprocess with it, or start a new training without --c"
        )


def _source(name: str) -> str:
    return "plans.json" if name in _OF_IMAGES else "dataset.json"


def files_beside(file: Path, checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plans.json and the dataset.json of a model, which must be those of a fold's training.

    nnU-Net keeps one of each for all folds. The training of another fold replaces them.

    Args:
        file: a checkpoint, in its fold's folder.
        checkpoint: its content.

    Raises:
        MNError: when a file cannot be read, or is of another training, or the network is not the plans' own.
    """
    if (trainer := checkpoint["trainer_name"]) != STOCK_TRAINER:
        raise MNError(
            f"{file} was trained by {trainer}, which builds a network of its own: use nnU-Net's own commands with "
            f"-tr {trainer} in place of this one"
        )
    folder, configuration = file.parents[1], checkpoint["init_args"]["configuration"]
    plans, description = (
        read_json(folder / name, key) for name, key in (("plans.json", "configurations"), ("dataset.json", "labels"))
    )
    now, then = meaning(plans, configuration, description), meaning_at_training(checkpoint)
    if name := first_difference(now, then):
        raise MNError(
            f"{folder / _source(name)} says that {file} was trained with {name} {now[name]}, but it was trained with "
            f"{then[name]}. nnU-Net keeps one such file for all folds, and the training of another fold has replaced "
            f"it: put the earlier one back, or train this fold again"
        )
    return plans, description
