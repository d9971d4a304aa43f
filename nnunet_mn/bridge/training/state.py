"""The key `mn` of a checkpoint: M&N's own state, and whether a training can resume from it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from nnunet_mn.bridge.training import checkpoint
from nnunet_mn.bridge.training.assembly import network_2d
from nnunet_mn.bridge.training.locations import ForegroundLocations
from nnunet_mn.bridge.versions import package_versions
from nnunet_mn.config import MNConfig
from nnunet_mn.cotraining import CoTrainer
from nnunet_mn.errors import MNError
from nnunet_mn.networks.weights import frozen_hash, learned_state, load_learned_state, pretrained_hash
from nnunet_mn.schedule import Schedule, UnlabeledCounts

# A training cannot resume with another value. They shape the tensors of a checkpoint, or are many settings at once.
STATE_FIELDS = ("backbone", "adaptation", "preset", "optimizer_3d", "lora_rank")

# What held before these settings existed: an earlier checkpoint lacks them.
EARLIER = {"batch": "replace", "guidance": "number", "unlabeled_weight": 1.0, "student_masks": "online"}


def cotraining_state(cotrainer: CoTrainer, *, with_optimizer: bool) -> dict[str, Any]:
    """The 2D side of the training as tensors, numbers and strings."""
    network, student = network_2d(cotrainer), cotrainer.students[1]
    return {
        "network_2d": {name: value.cpu() for name, value in learned_state(network).items()},
        "frozen_hash": frozen_hash(network),
        "optimizer_2d": student.optimizer.state_dict() if with_optimizer else None,
        "scaler_2d": student.scaler.state_dict() if with_optimizer else None,
        "slices": cotrainer.sampler.generator.get_state(),
        "teacher": cotrainer.teacher.state_dict(),
        "skipped": [cotrainer.student_3d.skipped, student.skipped],
    }


def restore_cotraining(cotrainer: CoTrainer, stored: Mapping[str, Any]) -> None:
    """Undo `cotraining_state`. A final checkpoint holds no optimizer: the new one stays.

    Raises:
        MNError: if the stored weights belong to another 2D network.
    """
    network = network_2d(cotrainer)
    if stored["frozen_hash"] != frozen_hash(network):
        raise MNError(
            "the frozen weights of the 2D network differ from the checkpoint's: put the same weights in place, or "
            "start a new training without --c"
        )
    load_learned_state(network, stored["network_2d"])
    if stored["optimizer_2d"] is not None:
        optimizer = cotrainer.students[1].optimizer
        keep_own_options(stored["optimizer_2d"], optimizer)
        optimizer.load_state_dict(stored["optimizer_2d"])
        if stored["scaler_2d"] and cotrainer.students[1].scaler.is_enabled():  # the precision may have changed
            cotrainer.students[1].scaler.load_state_dict(stored["scaler_2d"])
    cotrainer.sampler.generator.set_state(stored["slices"])
    if stored.get("teacher"):
        cotrainer.teacher.load_state_dict(stored["teacher"])
    for student, skipped in zip(cotrainer.students, stored["skipped"], strict=True):
        student.skipped = skipped


def keep_own_options(stored: Mapping[str, Any] | None, optimizer: torch.optim.Optimizer) -> None:
    """Put an optimizer's own options into a stored state, before the optimizer loads it.

    A peak rate may have been changed on purpose. An unfused optimizer's state may go on with a fused one.
    """
    for kept, own in zip((stored or {}).get("param_groups", ()), optimizer.param_groups, strict=False):
        kept |= {option: own[option] for option in ("peak_lr", "fused") if option in own}


def other_optimizer(stored: Mapping[str, Any] | None, optimizer: torch.optim.Optimizer) -> list[str]:
    """A sentence if a stored state of the 3D network's optimizer is of the other kind. Torch cannot go on with it."""
    groups = zip((stored or {}).get("param_groups", ()), optimizer.param_groups, strict=False)
    kinds = [["adamw" if "betas" in group else "sgd" for group in pair] for pair in groups]
    return [_changed("optimizer_3d", now, then) for then, now in kinds[:1] if now != then]


def backbone_hash(cotrainer: CoTrainer) -> str | None:
    """A hash of the 2D network's pretrained weights, before any training; None if the second student has none."""
    backbone = getattr(network_2d(cotrainer), "backbone", None)
    if not isinstance(backbone, nn.Module):
        return None
    return pretrained_hash(backbone)


class TrainerState(Protocol):
    """The trainer, as seen from a checkpoint."""

    mn_config: MNConfig
    schedule: Schedule
    unlabeled_counts: UnlabeledCounts
    foreground: ForegroundLocations
    plans_manager: Any
    num_epochs: int
    n_cases: dict[str, int]
    trained_on: set[str]
    iteration: int
    train_outputs: list[dict[str, float]]
    random_state: dict[str, Any] | None


def mn_state(training: TrainerState) -> dict[str, Any]:
    """The key `mn`, but for the students and their teacher."""
    return {
        "trainer": type(training).__name__,
        "config": training.mn_config.to_dict(),
        "batch_size": training.unlabeled_counts.batch_size,
        "cases": training.n_cases,
        "trained_on": sorted(training.trained_on),
        "dataset": training.plans_manager.dataset_name,
        "schedule": {"total": training.schedule.total, "supervised": training.schedule.supervised},
        "epochs": training.num_epochs,
        "iteration": training.iteration,
        "train_outputs": training.train_outputs,
        "foreground": training.foreground.position,
        "random": training.random_state or checkpoint.random_state(),
        "versions": package_versions(),
    }


def changed_state_fields(now: MNConfig, then: Mapping[str, Any], names: Sequence[str] = STATE_FIELDS) -> list[str]:
    """A sentence for each changed setting of those that shape the state."""
    mine = now.to_dict()
    return [_changed(name, mine[name], then[name]) for name in names if name in then and mine[name] != then[name]]


def _changed(name: str, now: Any, then: Any) -> str:
    return f"{name} is {now!r} but the checkpoint was trained with {then!r}"


def changed_settings(mn: Mapping[str, Any], now: MNConfig) -> list[str]:
    """A line for each setting with another value in the checkpoint."""
    then, settings = {**EARLIER, **mn["config"]}, now.to_dict()
    if now.batch == "replace":
        del settings["unlabeled_weight"]  # the samples have no weight of their own
    return [
        f"{name} changes from {then[name]!r} to {value!r}"
        for name, value in settings.items()
        if name in then and then[name] != value
    ]


def refuse_to_continue(
    mn: Mapping[str, Any], now: MNConfig, *, batch_size: int, fields: Sequence[str] = STATE_FIELDS
) -> None:
    """Raise an MNError if the settings or the planned batch size no longer fit a checkpoint's state.

    The backbone's name matters only in checkpoints without a hash of its weights. See `refuse_other_weights`.
    """
    by_name = fields if mn.get("pretrained_hash") is None else [f for f in fields if f != "backbone"]
    wrong = changed_state_fields(now, mn["config"], by_name)
    if mn["batch_size"] != batch_size:
        wrong.append(f"the batch size is {batch_size} but the checkpoint was trained with {mn['batch_size']}")
    refuse(wrong)


def refuse_other_weights(mn: Mapping[str, Any], now: MNConfig, pretrained: str | None, reason: str = "") -> None:
    """Raise an MNError if a backbone of another name does not have the checkpoint's pretrained weights.

    Args:
        pretrained: the hash of its weights; None: there are none.
        reason: why there are none, for the message.
    """
    if mn.get("pretrained_hash") != pretrained:
        other = changed_state_fields(now, mn["config"], ["backbone"])
        refuse([f"{sentence} ({reason})" if reason else sentence for sentence in other])


def refuse(wrong: Sequence[str]) -> None:
    """Raise an MNError with these sentences, if there are any: a training cannot go on."""
    if wrong:
        told = f"the checkpoint cannot be continued: {'; '.join(wrong)}"
        raise MNError(f"{told}; put that back, or start a new training without --c")
