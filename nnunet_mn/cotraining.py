"""The co-training step: two networks see one batch and learn from labels and from a teacher's masks."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from nnunet_mn.device import without_search
from nnunet_mn.errors import MNError
from nnunet_mn.losses import DeepSupervisionLoss
from nnunet_mn.ranks import ALONE, Ranks
from nnunet_mn.slices import SliceSampler
from nnunet_mn.targets import LabelSpace, SoftTarget, combine, combine_scales
from nnunet_mn.teaching import PseudoMasks, Teacher

MOST_SKIPPED_IN_A_ROW = 20  # a scaler that starts at 2^16 needs 16 to come down to 1


@dataclass(kw_only=True)
class Student:
    """A network with its loss and its optimizer.

    Args:
        name: for logs and messages.
        network: volume `(B, C, D, H, W)` -> logits, or a list of them, finest first.
        optimizer: updates the trained weights.
        loss: compares all outputs with their targets.
        scaler: scales the loss if autocast uses fp16.
        clip_norm: largest norm of the gradients (12 is nnU-Net's).
        ranks: the processes that share a batch. Give the loss the same ranks.
    """

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: DeepSupervisionLoss
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    clip_norm: float = 12.0
    ranks: Ranks = ALONE
    skipped: int = field(default=0, init=False)
    skipped_in_a_row: int = field(default=0, init=False)
    _losses: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def begin(self) -> None:
        """Forget the losses since the last update: an error may have ended the last step in the middle."""
        self._losses.clear()

    def learning_rate(self) -> float:
        """The highest rate of all groups now."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def learn(self, outputs: Sequence[Tensor], targets: Sequence[SoftTarget], *, weight: float = 1.0) -> None:
        """Add the gradient of a weighted loss to those since the last update.

        Args:
            outputs: logits `(B, K, D, H, W)`, the finest first; coarser ones are for deep supervision.
            targets: one for each output, of its resolution.
            weight: of the loss.
        """
        if not self._losses:
            self.optimizer.zero_grad(set_to_none=True)
        loss = weight * self.loss(outputs, targets)
        self.scaler.scale(loss).backward()
        self._losses.append(loss.detach())

    def update(self) -> float:
        """Take one optimizer step. If the loss or gradient is not finite, count it and leave the weights alone.

        All ranks see the same loss and gradient, so they skip the same steps. A scaler finds its scale by gradients
        that are not finite. Such steps count only towards those in a row.

        Returns:
            The loss of the whole batch, summed over all `learn` since the last update.

        Raises:
            MNError: after `MOST_SKIPPED_IN_A_ROW` such steps.
        """
        self.ranks.sum_gradients(self.network.parameters())
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        value, size = torch.stack([torch.stack(self._losses).sum(), norm]).tolist()  # the wait for the device
        finite = math.isfinite(value) and math.isfinite(size)
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()  # lowers its scale if the gradient was not finite
        self._losses.clear()
        self._count(value, finite=finite)
        return float(value)

    def _count(self, value: float, *, finite: bool) -> None:
        """Count skipped steps. A scaler looks for its scale by overflows: those of the gradient are no fault."""
        self.skipped += not finite and not (self.scaler.is_enabled() and math.isfinite(value))
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise MNError(
                f"the loss or gradient of the {self.name} network was not finite {self.skipped_in_a_row} times in a "
                f"row (last loss {value}): look for NaN or extreme intensities in the images, or lower its learning "
                f"rate"
            )


class Pass(NamedTuple):
    """Samples `first` to `last` of a batch that go through a network together, `n_labeled` labeled ones first."""

    first: int
    last: int
    n_labeled: int
    weight: float = 1.0


def split_passes(n: int, n_labeled: int, unlabeled_weight: float | None) -> list[Pass]:
    """The passes of a batch of `n` samples. Without a weight for unlabeled samples there is one pass of all samples."""
    if unlabeled_weight is None:
        return [Pass(0, n, n_labeled)]
    passes = (Pass(0, n_labeled, n_labeled), Pass(n_labeled, n, 0, unlabeled_weight))
    return [one for one in passes if one.first < one.last]


def _as_list(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """The outputs of a network, finest first. Without deep supervision it may return a tensor."""
    return [outputs] if isinstance(outputs, Tensor) else outputs


@dataclass(kw_only=True)
class CoTrainer:
    """Students, taught by labels and by a teacher's masks (arXiv 2509.15167, section 2.2).

    Args:
        student_3d: the 3D network.
        student_2d: the 2D network, wrapped to take volumes (`slices.SliceWise`). None: only the 3D network learns.
        teacher: makes the masks of unlabeled samples.
        labels: how labels become channels.
        sampler: draws the slices for the 2D network.
        autocast: the precision of all forward passes; losses and soft masks are fp32.
    """

    student_3d: Student
    student_2d: Student | None = None
    teacher: Teacher
    labels: LabelSpace
    sampler: SliceSampler = field(default_factory=SliceSampler)
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    def step(
        self, volumes: Tensor, targets: Sequence[Tensor], n_labeled: int, *, unlabeled_weight: float | None = None
    ) -> dict[Literal["3d", "2d"], float]:
        """Update all students on one batch. The teacher sees their weights from before the step.

        The paper's code alternates whole epochs on separate batches. Here both networks share each batch. This halves
        the loading.

        Args:
            volumes: `(B, C, D, H, W)`, labeled samples first.
            targets: the loader's masks, one for each output of the 3D network, finest first.
            n_labeled: number of labeled samples, 0 to B.
            unlabeled_weight: weight of the unlabeled samples' loss; the labeled samples' loss has weight 1. Unlabeled
                samples then go through the networks in a second pass. None: one pass and one loss over all samples, as
                in the paper.

        Returns:
            The loss of each student.

        Raises:
            MNError: when `n_labeled` or a mask does not fit, or after `MOST_SKIPPED_IN_A_ROW` steps without an update.
        """
        if not 0 <= n_labeled <= len(volumes):
            raise MNError(
                f"n_labeled is {n_labeled}, but the batch has {len(volumes)} samples: give a number from 0 to "
                f"{len(volumes)}"
            )
        for student in self.students:
            student.begin()
        passes = split_passes(len(volumes), n_labeled, unlabeled_weight)
        masks = [self._train_3d(volumes, targets, one) for one in passes]
        if self.student_2d is not None:
            with without_search():
                self._train_2d(self.student_2d, volumes, targets[0], list(zip(passes, masks, strict=True)))
        # An update waits for the device. Both come last: the host starts the 2D network's many kernels while the card
        # is busy with the 3D network's.
        losses: dict[Literal["3d", "2d"], float] = {"3d": self.student_3d.update()}
        if self.student_2d is not None:
            losses["2d"] = self.student_2d.update()
        self.teacher.follow()
        return losses

    @property
    def students(self) -> tuple[Student, ...]:
        """The 3D student, and the 2D one if there is one."""
        return (self.student_3d,) if self.student_2d is None else (self.student_3d, self.student_2d)

    def _train_3d(self, volumes: Tensor, targets: Sequence[Tensor], one: Pass) -> PseudoMasks:
        """Let the 3D network learn from one pass, and return the teacher's masks of its unlabeled samples.

        The network's activations are gone when this returns.
        """
        with self.autocast():
            outputs = _as_list(self.student_3d.network(volumes[one.first : one.last]))
            is_student = self.teacher.network_3d is self.student_3d.network
            masks = self.teacher(
                volumes[one.first + one.n_labeled : one.last],
                outputs[0][one.n_labeled :].detach() if is_student else None,
            )
        targets = [target[one.first : one.last] for target in targets]
        self.student_3d.learn(outputs, combine_scales(targets, masks.for_3d, self.labels), weight=one.weight)
        return masks

    def _train_2d(
        self, student: Student, volumes: Tensor, targets: Tensor, taught: Sequence[tuple[Pass, PseudoMasks]]
    ) -> None:
        """Let the 2D network learn from all passes, in one view of the volumes."""
        view = self.sampler.draw_view()
        for one, masks in taught:
            with self.autocast():
                outputs = _as_list(student.network(view(volumes[one.first : one.last])))
            target = combine(view(targets[one.first : one.last]), view(masks.for_2d), self.labels)
            student.learn(outputs, [target], weight=one.weight)
