"""nnU-Net's checkpoint plus one key, `mn`, written so that a kill leaves the old or the new file whole."""

import io
import os
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_mn.bridge.training.assembly import network_2d
from nnunet_mn.config import MNConfig
from nnunet_mn.cotraining import CoTrainer
from nnunet_mn.errors import MNError
from nnunet_mn.networks.weights import check_fit

STOCK_TRAINER = "nnUNetTrainer"


def save(write_stock: Callable[[io.BytesIO], None], path: Path, *, mn: Mapping[str, Any]) -> None:
    """Write a stock checkpoint with the key `mn`, to be predicted from with stock nnU-Net alone.

    The network is the plans' own, so that `trainer_name` may name the built-in trainer (nnU-Net's guide to sharing
    models, option 1).

    Args:
        write_stock: nnU-Net's own saving.
        path: the file; a temporary one beside it is flushed to disk and then takes its place.
        mn: what a resumed training needs more than stock.

    Raises:
        MNError: when the file cannot be written; the previous one stays.
    """
    stock = io.BytesIO()
    write_stock(stock)
    stock.seek(0)
    checkpoint = torch.load(stock, map_location="cpu", weights_only=False)
    checkpoint |= {"trainer_name": STOCK_TRAINER, "mn": dict(mn)}
    _replace(checkpoint, path)


def _replace(checkpoint: Mapping[str, Any], path: Path) -> None:
    temporary = path.with_name(f"{path.name}.tmp")  # one name: what a kill leaves is overwritten by the next writing
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where its zip writer cannot write
        temporary.unlink(missing_ok=True)
        raise MNError(
            f"the checkpoint {path} could not be written ({error}): the previous one is whole; free some space and "
            f"continue with --c"
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writings left."""
    for pattern in ("checkpoint_*.pth.tmp", "foreground_*.tmp"):
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)


def load_mn(path: Path) -> dict[str, Any]:
    """The `mn` part of a checkpoint, on the CPU.

    Raises:
        MNError: when the file is damaged or was not written by an M&N training.
    """
    return load_mn_and_weights(path)[0]


def load_mn_and_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `mn` part of a checkpoint and the weights of the 3D network, on the CPU.

    Raises:
        MNError: when the file is damaged or was not written by an M&N training.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition(". ")[0] or type(error).__name__  # torch adds advice
        raise MNError(
            f"the checkpoint {path} cannot be read ({reason}): move it away, and --c goes on from another one in its "
            f"folder, or anew"
        ) from error
    if not isinstance(checkpoint, dict) or not {"trainer_name", "network_weights"} & checkpoint.keys():
        raise MNError(f"{path} is no checkpoint of nnU-Net: move it away")
    if "mn" not in checkpoint:
        raise MNError(
            f"{path} holds no M&N state, so that M&N cannot continue from it: start without --c, or use the trainer "
            f"that wrote it ({checkpoint.get('trainer_name', 'unknown')})"
        )
    return checkpoint["mn"], checkpoint.get("network_weights", {})  # what is missing is named when it is to fit


def check_network(weights: Mapping[str, Tensor], network: nn.Module, path: Path) -> None:
    """Raise an MNError, which names the first tensors that differ, unless a checkpoint's weights fit a network."""
    plain = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    remedy = "it was trained with other plans or classes: put them back, or move the checkpoint away"
    check_fit(plain, network.state_dict(), source=f"the checkpoint {path}", remedy=remedy)


def seed_all(seed: int | None) -> None:
    """Seed python's, numpy's and torch's generators; None leaves them as they are."""
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of python's, numpy's and torch's generators as tensors, numbers and strings."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Undo everything drawn since `random_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():  # another number of cards: their states mean nothing here
        torch.cuda.set_rng_state_all(state["cuda"])


def cotraining_state(cotrainer: CoTrainer, *, with_optimizer: bool) -> dict[str, Any]:
    """The 2D side of the training as tensors, numbers and strings."""
    network = network_2d(cotrainer)
    student = cotrainer.student_2d
    return {
        "network_2d": {name: value.cpu() for name, value in network.learned_state().items()},
        "frozen_hash": network.frozen_hash(),
        "optimizer_2d": student.optimizer.state_dict() if with_optimizer else None,
        "scaler_2d": student.scaler.state_dict() if with_optimizer else None,
        "slices": cotrainer.generator.get_state(),
        "skipped": [cotrainer.student_3d.skipped, student.skipped],
    }


def restore_cotraining(cotrainer: CoTrainer, stored: Mapping[str, Any]) -> None:
    """Undo `cotraining_state`; a final checkpoint's, which holds no optimizer, leaves the optimizer new.

    Raises:
        MNError: when the stored weights belong to another 2D network.
    """
    network = network_2d(cotrainer)
    if stored["frozen_hash"] != network.frozen_hash():
        raise MNError(
            f"the frozen weights of the 2D network ({network.description}) are not those that the checkpoint was "
            f"trained with: put the same weights in place, or start a new training without --c"
        )
    network.load_learned_state(stored["network_2d"])
    if stored["optimizer_2d"] is not None:
        optimizer = cotrainer.student_2d.optimizer
        peaks = [group["peak_lr"] for group in optimizer.param_groups]  # `lr_2d` may have been changed on purpose
        optimizer.load_state_dict(stored["optimizer_2d"])
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak_lr"] = peak
        if stored["scaler_2d"] and cotrainer.student_2d.scaler.is_enabled():  # the precision may have changed
            cotrainer.student_2d.scaler.load_state_dict(stored["scaler_2d"])
    cotrainer.generator.set_state(stored["slices"])
    cotrainer.student_3d.skipped, cotrainer.student_2d.skipped = stored["skipped"]


# Fields that decide which tensors a checkpoint holds: it cannot be continued with another value.
STATE_FIELDS = ("backbone", "adaptation", "preset", "optimizer_3d", "lora_rank")


def changed_state_fields(now: MNConfig, then: Mapping[str, Any]) -> list[str]:
    """Sentences about the fields in which `now` differs from a stored configuration so that it cannot continue it."""
    mine = now.to_dict()
    return [
        f"{name} is {mine[name]!r} but the checkpoint was trained with {then[name]!r}"
        for name in STATE_FIELDS
        if name in then and mine[name] != then[name]
    ]
