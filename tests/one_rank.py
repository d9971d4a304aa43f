"""One of two processes that co-train together on the CPU; run by test_ranks.py as `one_rank.py RANK FOLDER`."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nnunet_mn.bridge.training.ddp import LoaderFailureError, RankedLoader
from nnunet_mn.cotraining import CoTrainer, Student
from nnunet_mn.errors import MNError
from nnunet_mn.losses import DeepSupervisionLoss, SoftTargetLoss
from nnunet_mn.ranks import ALONE, Ranks
from nnunet_mn.slices import SliceSampler, SliceWise
from nnunet_mn.targets import LabelSpace
from nnunet_mn.teaching import OtherNetwork

JOINT_BATCH = 4


class Case(NamedTuple):
    """What is compared: the first rank's samples of the whole batch, the labeled ones, and the form of the loss."""

    first_part: int
    n_labeled: int
    batch_dice: bool = False
    labels: str = "classes"

    def spaces(self) -> LabelSpace:
        ignored = 3 if self.labels == "ignore" else None
        return LabelSpace(num_channels=3, regions=self.labels == "regions", ignore_label=ignored)


CASES = tuple(
    Case(first_part, n_labeled, batch_dice, labels)
    for first_part in (2, 3)
    for n_labeled in (1, 2, 4)
    for batch_dice, labels in ((False, "classes"), (True, "classes"), (True, "ignore"), (False, "regions"))
)


class Volumes(nn.Module):
    """A 3D network with outputs at two scales and statistics of single samples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU())
        self.head, self.coarse = nn.Conv3d(4, 3, 1), nn.Conv3d(4, 3, 1)

    def forward(self, volume: Tensor) -> list[Tensor]:
        features = self.layers(volume)
        return [self.head(features), self.coarse(nn.functional.avg_pool3d(features, 2))]


class Slices(nn.Module):
    """A 2D network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 3, 1))

    def forward(self, slices: Tensor) -> Tensor:
        return self.layers(slices)

    def input_pixels(self, height: int, width: int) -> int:
        return height * width


def cotrainer(case: Case, ranks: Ranks, *, seed: int) -> CoTrainer:
    """Two students whose first step leaves its gradients unclipped."""
    torch.manual_seed(seed)
    loss = SoftTargetLoss(regions=case.labels == "regions", batch_dice=case.batch_dice, ranks=ranks)
    networks = {"3D": Volumes(), "2D": SliceWise(Slices(), slices_per_forward=3)}  # its chunks are computed twice
    for network in networks.values():
        ranks.take_from_first([*network.parameters(), *network.buffers()])
    students = {
        name: Student(
            name=name,
            network=network,
            optimizer=torch.optim.SGD(network.parameters(), 0.1),
            loss=DeepSupervisionLoss(loss=loss, weights=(0.7, 0.3) if name == "3D" else (1.0,)),
            clip_norm=float("inf"),
            ranks=ranks,
        )
        for name, network in networks.items()
    }
    sampler = SliceSampler(step=2, generator=torch.Generator().manual_seed(ranks.number_of_first(seed)))
    labels = case.spaces()
    teacher = OtherNetwork(network_3d=networks["3D"], network_2d=networks["2D"], labels=labels, sampler=sampler)
    return CoTrainer(
        student_3d=students["3D"], student_2d=students["2D"], teacher=teacher, labels=labels, sampler=sampler
    )


def joint_batch(case: Case) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(7)
    volumes = torch.randn(JOINT_BATCH, 1, 4, 8, 8, generator=generator)
    shapes = [(JOINT_BATCH, 3 if case.labels == "regions" else 1, *(n // s for n in (4, 8, 8))) for s in (1, 2)]
    highest = {"regions": 2, "classes": 3, "ignore": 4}[case.labels]
    return volumes, [torch.randint(0, highest, shape, generator=generator) for shape in shapes]


def step(trainer: CoTrainer, case: Case, part: slice) -> dict[str, Any]:
    """Losses and gradients of one step on a part of the whole batch."""
    volumes, targets = joint_batch(case)
    start, stop, _ = part.indices(JOINT_BATCH)
    n_labeled = min(max(case.n_labeled - start, 0), stop - start)
    losses = trainer.step(volumes[part], [target[part] for target in targets], n_labeled)
    networks = {"3d": trainer.student_3d.network, "2d": trainer.student_2d.network}
    return {
        name: {
            "loss": losses[name],
            "gradients": [p.grad.clone() for p in network.parameters()],
            "weights": [p.detach().clone() for p in network.parameters()],
        }
        for name, network in networks.items()
    }


def alone(case: Case) -> dict[str, Any]:
    """The step of one process on the whole batch."""
    return step(cotrainer(case, ALONE, seed=0), case, slice(None))


def _with_a_bad_voxel_on_the_second_rank(rank: int, ranks: Ranks) -> dict[str, Any]:
    trainer = cotrainer(CASES[0], ranks, seed=0)
    networks = (trainer.student_3d.network, trainer.student_2d.network)
    before = [p.detach().clone() for network in networks for p in network.parameters()]
    volumes, targets = joint_batch(CASES[0])
    volumes[-1, 0, 0, 0, 0] = float("nan")
    part = slice(0, 2) if rank == 0 else slice(2, 4)
    trainer.step(volumes[part], [target[part] for target in targets], 1 if rank == 0 else 0)
    after = [p.detach() for network in networks for p in network.parameters()]
    return {
        "unchanged": all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
        "skipped": [trainer.student_3d.skipped, trainer.student_2d.skipped],
    }


class _Loader:
    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __next__(self) -> str:
        if self.error is not None:
            raise self.error
        return "a batch"


def _loader_that_fails_on_the_second_rank(error: Exception, rank: int, ranks: Ranks) -> list[str | None]:
    try:
        next(RankedLoader(_Loader(error if rank == 1 else None), ranks))
    except LoaderFailureError as failure:
        return [str(failure), failure.sentence]
    return []


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    ranks = Ranks(dist.group.WORLD)
    results: dict[str, Any] = {"steps": []}
    for case in CASES:
        part = slice(0, case.first_part) if rank == 0 else slice(case.first_part, None)
        results["steps"].append(step(cotrainer(case, ranks, seed=rank), case, part))
    results["bad"] = _with_a_bad_voxel_on_the_second_rank(rank, ranks)
    results["flags"] = [ranks.any(False), ranks.any(rank == 1), ranks.any(True)]
    results["told"] = _loader_that_fails_on_the_second_rank(MNError("ask for more"), rank, ranks)
    results["untold"] = _loader_that_fails_on_the_second_rank(OSError("no disk"), rank, ranks)
    results["count"] = ranks.total_number(2**24 + 1)
    torch.save(results, folder / f"rank_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
