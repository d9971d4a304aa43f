"""nnU-Net's checkpoint plus one key, `mn`. A kill during the writing leaves the old or the new file whole."""

import io
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_mn.bridge.files import replace_whole
from nnunet_mn.bridge.model_folders import CHECKPOINTS, FINAL, STOCK_TRAINER
from nnunet_mn.errors import MNError
from nnunet_mn.networks.weights import check_fit

VALIDATION, REPORT = "validation", "report"  # folders beside the checkpoints
OF_THE_END = (FINAL, VALIDATION, REPORT)  # what a finished training leaves
FOREGROUND = "foreground_epoch_*.npz"
_KEPT = "before_restart_"


def save(
    write_stock: Callable[[io.BytesIO], None],
    path: Path,
    *,
    mn: Mapping[str, Any],
    is_of_plans: bool = True,
    before: Callable[[], object] | None = None,
) -> None:
    """Write a stock checkpoint with the key `mn`. Stock nnU-Net alone can predict from it.

    Args:
        write_stock: nnU-Net's own saving.
        path: the file. A temporary one beside it is flushed to disk and then takes its place.
        mn: M&N's own state (`state.mn_state`).
        is_of_plans: the network is the plans' own. Then `trainer_name` is the built-in trainer's (nnU-Net's guide to
            sharing models, option 1). Else it stays the name of the trainer, which predictions need.
        before: called when the temporary file is whole, before it takes its place.

    Raises:
        MNError: if the file cannot be written; the previous one stays.
    """
    stock = io.BytesIO()
    write_stock(stock)
    stock.seek(0)
    checkpoint = torch.load(stock, map_location="cpu", weights_only=False)  # of this process, not from a file
    checkpoint |= {**({"trainer_name": STOCK_TRAINER} if is_of_plans else {}), "mn": dict(mn)}
    try:
        replace_whole(path, lambda stream: torch.save(checkpoint, stream), before=before)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError
        told = f"the checkpoint {path} could not be written ({_reason(error)})"
        if not any(path.with_name(name).exists() for name in CHECKPOINTS):
            raise MNError(f"{told}, and there is no earlier one: free some space and start again") from error
        raise MNError(f"{told}: the previous one is whole; free some space and continue with --c") from error


def _reason(error: Exception) -> str:
    """torch's zip writer names its own source file, not the disk."""
    return str(error) if isinstance(error, OSError) else f"the disk may be full; {error}"


def keep_earlier(folder: Path, names: Sequence[str] = (*CHECKPOINTS, VALIDATION, REPORT, FOREGROUND)) -> Path | None:
    """Move what an earlier training has left into a folder of its own.

    Args:
        folder: of the fold.
        names: of what to move, or patterns, in this order. With `--c` stock goes on from the first checkpoint that it
            finds.

    Returns:
        That folder, `before_restart_<n>`; None if there was no checkpoint.
    """
    left = [path for name in names for path in sorted(folder.glob(name))]
    if not any(path.suffix == ".pth" for path in left):
        return None
    kept = next(path for n in itertools.count(1) if not (path := folder / f"{_KEPT}{n}").exists())
    kept.mkdir()
    for path in left:
        path.rename(kept / path.name)
    return kept


def kept_folders(folder: Path) -> list[Path]:
    """The folders that `keep_earlier` has made, by name."""
    return sorted(folder.glob(f"{_KEPT}*"))


@contextmanager
def left_alone(file: Path) -> Iterator[None]:
    """Keep a file of an earlier training: stock removes `latest` at its end, though it wrote no checkpoint itself."""
    aside = file.with_name(f"{file.name}.aside")
    if not file.exists():
        yield
        return
    file.rename(aside)
    try:
        yield
    finally:
        aside.rename(file)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed writings. The caller must own the folder."""
    for pattern in ("*checkpoint_*.tmp", "*foreground_*.tmp", "training.lock.*.tmp", "masks_of_*/.*.tmp"):
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)


def check_network(weights: Mapping[str, Tensor], network: nn.Module, path: Path) -> None:
    """Raise an MNError unless a checkpoint's weights fit a network. The error names the first different tensors."""
    remedy = "it was trained with other plans or classes: put them back, or move the checkpoint away"
    check_fit(weights, network.state_dict(), source=f"the checkpoint {path}", remedy=remedy)


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
    """Put the generators back into the states of `random_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():  # else the cards' states mean nothing here
        torch.cuda.set_rng_state_all(state["cuda"])
