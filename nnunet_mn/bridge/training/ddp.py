"""nnU-Net's training on several GPUs (`-num_gpus`): who is there, who draws what, and how all hear of a failure."""

from typing import Any

import torch
import torch.distributed as dist

from nnunet_mn.errors import MNError
from nnunet_mn.ranks import ALONE, Ranks

MANY_RANKS = 10_007  # more than there are; prime, so that seeds do not soon meet again


class LoaderFailureError(RuntimeError):
    """The loader of some rank failed; raised on all ranks, between two steps."""


def find_ranks(device: torch.device) -> Ranks:
    """The ranks that nnU-Net started, or this process alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.group.WORLD, device)


def own_seed(seed: int | None, rank: int, done: int = 0) -> int | None:
    """The seed of one rank's process: each must draw other samples, and a resumed training others than at its start.

    Args:
        seed: of the training.
        rank: of the process.
        done: iterations.
    """
    return None if seed is None else (seed + rank + MANY_RANKS * done) % 2**32


def refuse_ranks(batch_size: int) -> None:
    """Raise an MNError when there are more GPUs than samples in a batch.

    Args:
        batch_size: as planned, of all GPUs together.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    if batch_size < dist.get_world_size():
        raise MNError(
            f"-num_gpus {dist.get_world_size()} is more than the batch of {batch_size} samples that the plans divide "
            f"among the GPUs: use at most {batch_size}, or raise batch_size in the plans"
        )


def part_of_batch(ranks: Ranks, samples: int) -> range:
    """Which samples of the whole batch this rank draws.

    Args:
        ranks: all of them.
        samples: drawn here.
    """
    if ranks.group is None:
        return range(samples)
    sizes: list[int] = [0] * dist.get_world_size(ranks.group)
    dist.all_gather_object(sizes, samples, group=ranks.group)
    before = sum(sizes[: dist.get_rank(ranks.group)])
    return range(before, before + samples)


class RankedLoader:
    """A loader of one rank: all ranks get a batch, or all hear that one of them has none.

    Without it the other ranks would wait in the next exchange for one that is gone.
    """

    def __init__(self, loader: Any, ranks: Ranks) -> None:
        self.loader = loader
        self.ranks = ranks

    def __next__(self) -> Any:
        batch, failure = None, None
        try:
            batch = next(self.loader)
        except Exception as error:
            failure = error
        if self.ranks.any(failure is not None):
            raise LoaderFailureError(str(failure or "the data loader of another GPU's process failed")) from failure
        return batch


def together(loaders: tuple[Any, Any], ranks: Ranks) -> tuple[Any, Any]:
    """The training and the validation loader, each as a `RankedLoader` where there are several ranks."""
    if ranks.group is None:
        return loaders
    train, val = loaders
    return RankedLoader(train, ranks), RankedLoader(val, ranks)
