"""One of two processes of a training on the CPU; run by test_training_ranks.py with the name of a dataset's folder.

nnU-Net's own start of several ranks works on CUDA alone. Here the ranks meet after nnU-Net's constructor, which then
takes each for a training of its own, so that all that M&N does for ranks runs as it is, and no CUDA code of nnU-Net's.
Usage: one_training_rank.py RANK MEETING DATASET STOP_AFTER [--c]
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

from nnunet_mn.bridge.training import ddp

SAMPLES = (1, 2)  # of the batch of 3, for each rank


def signal_once(trainer: Any, after: int) -> None:
    """Have this rank asked to stop in the middle of a step."""
    original = trainer.train_step

    def step(batch: dict[str, Any]) -> Any:
        if trainer.iteration == after - 1 and trainer.current_epoch == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batch)

    trainer.train_step = step


def main(rank: int, meeting: str, dataset: str, stop_after: int, go_on: bool) -> None:
    torch.set_num_threads(1)
    trainer = get_trainer_from_args(
        dataset, "3d_fullres", 0, "nnUNetTrainerMN", continue_training=go_on, device=torch.device("cpu")
    )
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    trainer.ranks, trainer.local_rank = ddp.find_ranks(trainer.device), rank
    trainer.stopping.ranks = trainer.ranks
    trainer.initialize()
    trainer.ranks.take_from_first(trainer.network.parameters())  # nnU-Net's DDP does
    maybe_load_checkpoint(trainer, go_on, False)
    trainer.batch_size = SAMPLES[rank]
    if rank == 1 and stop_after:
        signal_once(trainer, stop_after)
    drawn: list[int] = []
    original = trainer.train_step
    trainer.train_step = lambda batch: (drawn.append(batch["n_labeled"]), original(batch))[1]
    try:
        trainer.run_training()
    finally:
        weights = {**trainer.network.state_dict(), **trainer.cotrainer.student_2d.network.state_dict()}
        lists = {key: values for key, values in trainer._log_lists().items() if "timestamps" not in key}
        said = {"weights": weights, "labeled": drawn, "log": lists, "seed": torch.initial_seed()}
        torch.save(said, f"{meeting}.rank_{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), go_on="--c" in sys.argv)
    Path(f"{sys.argv[2]}.done_{sys.argv[1]}").touch()
