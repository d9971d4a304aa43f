"""nnU-Net's training on several GPUs (`-num_gpus`): ranks, their seeds, their samples, and their failures."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from nnunet_mn.errors import MNError
from nnunet_mn.ranks import ALONE, Ranks

MANY_RANKS = 10_007  # more than there are; a prime keeps the seeds of resumed trainings apart


class LoaderFailureError(RuntimeError):
    """The loader of some rank failed; raised on all ranks, between two steps.

    Args:
        text: what happened.
        sentence: for the user, from an MNError on any rank.
    """

    def __init__(self, text: str, sentence: str | None = None) -> None:
        super().__init__(text)
        self.sentence = sentence


def find_ranks(device: torch.device) -> Ranks:
    """nnU-Net's ranks, or this process alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.group.WORLD, device)


def own_seed(seed: int | None, rank: int, done: int = 0) -> int | None:
    """The seed of one rank after some iterations. Each rank, and each resumed training, must draw its own samples."""
    return None if seed is None else (seed + rank + MANY_RANKS * done) % 2**32


def refuse_ranks(batch_size: int) -> None:
    """Raise an MNError if there are more GPUs than samples in the planned batch. All GPUs share it."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    if batch_size < dist.get_world_size():
        raise MNError(
            f"-num_gpus {dist.get_world_size()} is more than the batch of {batch_size} samples that the plans divide "
            f"among the GPUs: use at most {batch_size}, or raise batch_size in the plans"
        )


def refuse_several_ranks(trainer: str) -> None:
    """Raise an MNError if there are several GPUs."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise MNError(f"{trainer} runs on one GPU, but -num_gpus is {dist.get_world_size()}: leave out -num_gpus")


def part_of_batch(ranks: Ranks, samples: int) -> range:
    """This rank's samples as a range of the whole batch. `samples` is their number."""
    before = sum(ranks.gather(samples)[: ranks.own])
    return range(before, before + samples)


def cases_of_all_ranks(cases: Iterable[str], ranks: Ranks) -> list[str]:
    """The names of a whole batch's cases, from the names of each rank's part. All ranks must ask."""
    return [case for part in ranks.gather([str(case) for case in cases]) for case in part]


class RankedLoader:
    """The loader of one rank. All ranks get a batch, or all raise a `LoaderFailureError`.

    Without it the other ranks would wait in the next exchange for the failed one.
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
            told = self.ranks.gather(str(failure) if isinstance(failure, MNError) else None)
            sentence = next((one for one in told if one is not None), None)
            text = str(failure or "the data loader of another GPU's process failed")
            raise LoaderFailureError(text, sentence) from failure
        return batch


def together(loaders: tuple[Any, Any], ranks: Ranks) -> tuple[Any, Any]:
    """The training and the validation loader, each as a `RankedLoader` if there are several ranks."""
    if ranks.group is None:
        return loaders
    train, val = loaders
    return RankedLoader(train, ranks), RankedLoader(val, ranks)
