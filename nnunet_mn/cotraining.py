"""The co-training step: two networks see one batch and learn from labels and from a teacher's masks."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from nnunet_mn.errors import MNError
from nnunet_mn.losses import DeepSupervisionLoss
from nnunet_mn.ranks import ALONE, Ranks
from nnunet_mn.slices import SliceSampler
from nnunet_mn.targets import LabelSpace, SoftTarget, combine, combine_scales
from nnunet_mn.teaching import Teacher

MOST_SKIPPED_IN_A_ROW = 20


@dataclass(kw_only=True)
class Student:
    """A network with its loss and its optimizer.

    Args:
        name: for logs and messages.
        network: volume `(B, C, D, H, W)` -> list of logits, finest first.
        optimizer: of its trained weights.
        loss: of all outputs.
        scaler: of gradients, if autocast uses fp16.
        clip_norm: largest norm of the gradients (12 is nnU-Net's).
        ranks: the processes of one batch; the loss needs them too.
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

    def learning_rate(self) -> float:
        """The highest rate of all groups now."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def update(self, outputs: Sequence[Tensor], targets: Sequence[SoftTarget]) -> float:
        """Take one optimizer step. If the loss or gradient is not finite, count it and leave the weights alone.

        All ranks see the same loss and gradient: they skip alike. A scaler finds its scale by gradients that are not
        finite: those steps count only towards the 20 in a row.

        Returns:
            The loss of the joint batch.

        Raises:
            MNError: after 20 such steps in a row.
        """
        loss = self.loss(outputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.ranks.sum_gradients(self.network.parameters())
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        value, size = torch.stack([loss.detach(), norm]).tolist()  # the one wait for the device
        finite = math.isfinite(value) and math.isfinite(size)
        if finite or self.scaler.is_enabled():  # the scaler skips by itself, and lowers its scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self._count(value, finite=finite)
        return float(value)

    def _count(self, value: float, *, finite: bool) -> None:
        """Count skipped steps. A scaler looks for its scale by overflows: those of the gradient are no fault."""
        self.skipped += not finite and not (self.scaler.is_enabled() and math.isfinite(value))
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise MNError(
                f"the loss or gradient of the {self.name} network was not finite {self.skipped_in_a_row} times in a "
                f"row (last loss {value}): look for NaN or extreme intensities in the images, or lower the learning "
                f"rate (nnUNet_mn_lr_2d for the 2D network)"
            )


@dataclass(kw_only=True)
class CoTrainer:
    """Two students, taught by labels and by a teacher's masks (arXiv 2509.15167, section 2.2).

    Args:
        student_3d, student_2d: the networks. The 2D one is wrapped and takes volumes (`slices.SliceWise`).
        teacher: makes the masks of unlabeled samples.
        labels: how labels become channels.
        sampler: draws the slices for the 2D network.
        autocast: the precision of all forward passes; losses and soft masks are fp32.
    """

    student_3d: Student
    student_2d: Student
    teacher: Teacher
    labels: LabelSpace
    sampler: SliceSampler = field(default_factory=SliceSampler)
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    def step(self, volumes: Tensor, targets: Sequence[Tensor], n_labeled: int) -> dict[Literal["3d", "2d"], float]:
        """Update both networks on one batch. The teacher sees their weights from before the step.

        The reference alternates whole epochs on separate batches. One batch for both halves the loading.

        Args:
            volumes: `(B, C, D, H, W)`, labeled samples first.
            targets: the loader's masks, one for each output of the 3D network, finest first.
            n_labeled: number of labeled samples, 0 to B.

        Returns:
            Both losses.
        """
        with self.autocast():
            outputs_3d = self.student_3d.network(volumes)
            masks = self.teacher(volumes[n_labeled:], outputs_3d[0][n_labeled:].detach())
        loss_3d = self.student_3d.update(outputs_3d, combine_scales(targets, masks.for_3d, self.labels))
        del outputs_3d  # only one network's activations are held at a time

        view = self.sampler.draw_view()
        with self.autocast():
            outputs_2d = self.student_2d.network(view(volumes))
        target_2d = combine(view(targets[0]), view(masks.for_2d), self.labels)
        loss_2d = self.student_2d.update(outputs_2d, [target_2d])
        self.teacher.follow()
        return {"3d": loss_3d, "2d": loss_2d}
