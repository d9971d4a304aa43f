"""Several processes train on one batch together, each on its part of the samples.

Each rank computes the loss of the whole batch from sums over all ranks, but differentiates its own part alone. The sum
of all ranks' gradients is then the gradient of the joint loss. This holds for parts of any size, and also for terms
across samples (batch Dice). torch's DistributedDataParallel averages gradients instead, which is wrong for unequal
parts. It also needs every forward pass to go through its wrapper. M&N recomputes slices and runs two passes in a step:
these do not go through it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that share each batch.

    Args:
        group: their process group; None: this process is alone.
        device: where flags are exchanged; NCCL can exchange them only on the GPU.
    """

    group: dist.ProcessGroup | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def size(self) -> int:
        """The number of processes."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def own(self) -> int:
        """The number of this process, from 0."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def rounds(self, names: Sequence[str]) -> list[list[str]]:
        """This rank's share of some names, in rounds of one name for each rank. In the last round it may get none."""
        return [list(names[first + self.own : first + self.own + 1]) for first in range(0, len(names), self.size)]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in the order of the ranks. Every rank must call this. Values must be picklable."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks; only this rank's part has a gradient."""
        return value if self.group is None else cast(Tensor, _Total.apply(value, self.group))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        return self.total_number(int(flag)) > 0

    def wait(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    def total_number(self, value: float) -> float:
        """The sum of a number over all ranks. The host waits for it."""
        return value if self.group is None else float(self._sum(value))

    def total_count(self, values: Tensor) -> float | Tensor:
        """How many elements all ranks' tensors have. With several ranks it is a tensor, and the host does not wait."""
        return values.numel() if self.group is None else self._sum(values.numel()).to(values.dtype)

    def _sum(self, value: float) -> Tensor:
        """float64 is exact for counts of voxels. `torch.full` copies nothing from the host, which would wait."""
        return self.total(torch.full((), value, dtype=torch.float64, device=self.device))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all ranks."""
        if self.group is None:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for flat, parts in _flattened(gradients):
            dist.all_reduce(flat, group=self.group)
            for part, new in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
                part.copy_(new.view_as(part))

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first rank."""
        if self.group is None:
            return
        first = dist.get_global_rank(self.group, 0)
        for tensor in tensors:
            dense = tensor.detach().contiguous()
            dist.broadcast(dense, first, group=self.group)
            tensor.detach().copy_(dense)

    def number_of_first(self, value: int) -> int:
        """The first rank's number."""
        shared = torch.tensor([value], dtype=torch.int64, device=self.device)
        self.take_from_first([shared])
        return int(shared)


ALONE = Ranks()


def _flattened(tensors: Iterable[Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
    """A vector of all tensors of each type, and these tensors: one exchange instead of hundreds."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return [(torch.cat([tensor.reshape(-1) for tensor in group]), group) for group in groups.values()]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = value.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
