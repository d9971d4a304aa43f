"""The co-training step: two networks see the same batch, each learns from masks and from the other's pseudo-masks."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from nnunet_mn.errors import MNError
from nnunet_mn.losses import DeepSupervisionLoss
from nnunet_mn.mixing import Paste, draw_pastes, paste
from nnunet_mn.ranks import ALONE, Ranks
from nnunet_mn.slices import along_axis, every_nth_slice
from nnunet_mn.targets import LabelSpace, SoftTarget, combine, combine_scales
from nnunet_mn.teaching import pseudo_mask, same_in_eval

MOST_SKIPPED_IN_A_ROW = 20


@dataclass(kw_only=True)
class Student:
    """A network and how it is updated.

    Args:
        name: for logs and messages.
        network: volume `(B, C, D, H, W)` -> list of logits, finest first.
        optimizer: of its trained weights.
        loss: of all outputs.
        scaler: of fp16 gradients, where autocast uses fp16.
        clip_norm: most the gradients' norm may be (12 is nnU-Net's).
        ranks: the processes that share a batch; the loss must know them too.
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
        """Take one optimizer step; a loss or gradient that is not finite is counted and leaves the weights alone.

        All ranks see the same loss and gradient, so that they skip alike.

        Returns:
            The loss of the joint batch.

        Raises:
            MNError: after 20 such steps in a row.
        """
        loss = self.loss(outputs, targets)
        value = float(loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        if not torch.isfinite(loss.detach()):
            self._skip(value)
            return value
        self.scaler.scale(loss).backward()
        self.ranks.sum_gradients(self.network.parameters())
        self.scaler.unscale_(self.optimizer)
        finite = bool(torch.isfinite(nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)))
        if finite or self.scaler.is_enabled():  # the scaler skips by itself, and lowers its scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if not finite:
            self._skip(value)
            return value
        self.skipped_in_a_row = 0
        return value

    def _skip(self, value: float) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise MNError(
                f"the loss or gradient of the {self.name} network was not finite {self.skipped_in_a_row} times in a "
                f"row (last loss {value}): look for NaN or extreme intensities in the images, or lower the learning "
                f"rate (nnUNet_mn_lr_2d for the 2D network)"
            )


@dataclass(kw_only=True)
class CoTrainer:
    """Two students that teach each other (arXiv 2509.15167, section 2.2).

    Args:
        student_3d, student_2d: the networks; the 2D one wrapped so that it takes volumes (`slices.SliceWise`).
        labels: how labels become channels.
        teacher: whose pseudo-masks a student learns from: the `other` network's, as in the paper, or the mean of
            `both`, which errs less than either where the two err differently.
        slice_axes: the 2D network sees volumes along these spatial axes, 0 to 2: in each step it teaches along a
            random one and learns along a random one.
        slice_step: the 2D network learns from every n-th slice, from a random one on.
        copy_paste: a box of a labeled sample covers a part of each unlabeled one that a student sees (`mixing`); drawn
            from torch's default generator, since ranks hold different samples.
        generator: draws axes and that first slice.
        autocast: the precision of all forward passes; losses and pseudo-masks are fp32.
    """

    student_3d: Student
    student_2d: Student
    labels: LabelSpace
    teacher: Literal["both", "other"] = "other"
    slice_axes: tuple[int, ...] = (0,)
    slice_step: int = 1
    copy_paste: bool = False
    generator: torch.Generator = field(default_factory=torch.Generator)
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    def step(self, volumes: Tensor, targets: Sequence[Tensor], n_labeled: int) -> dict[Literal["3d", "2d"], float]:
        """Update both networks on one batch, each from the other's state before the step.

        The reference alternates whole epochs on separate batches; one batch for both halves the loading.

        Args:
            volumes: `(B, C, D, H, W)`, labeled samples first.
            targets: the loader's masks for every output of the 3D network, finest first.
            n_labeled: how many samples are labeled, 0 to B.

        Returns:
            Both losses.
        """
        net_3d, net_2d = self.student_3d.network, self.student_2d.network
        labeled, unlabeled = volumes[:n_labeled], volumes[n_labeled:]  # (n_l, C, D, H, W), (n_u, C, D, H, W)
        pastes = self._draw_pastes(volumes, n_labeled)
        with self.autocast():
            axis = self._draw_axis()
            from_2d = along_axis(self._teach(net_2d, along_axis(unlabeled, axis)), axis)
            # A 3D network without dropout and batch norm says the same as student and as teacher: one pass serves both
            one_pass = same_in_eval(net_3d) and not pastes
            from_3d = None if one_pass else self._teach(net_3d, unlabeled)
            volumes = torch.cat([labeled, paste(labeled, unlabeled, pastes)]) if pastes else volumes
            outputs = net_3d(volumes)
        if from_3d is None:
            from_3d = self.labels.probabilities(outputs[0][n_labeled:].detach())
        if self.teacher == "both":
            from_2d = from_3d = self.labels.mean(from_2d, from_3d)
        counts = None  # all voxels of unlabeled samples do
        if pastes:
            known = self.labels.encode(targets[0][:n_labeled])
            from_2d, from_3d = (paste(known.values, masks, pastes) for masks in (from_2d, from_3d))
            if known.mask is not None:
                counts = paste(known.mask, torch.ones_like(from_3d[:, :1]), pastes)
        loss_3d = self.student_3d.update(outputs, combine_scales(targets, from_2d, self.labels, counts=counts))
        del outputs, from_2d  # only one network's activations are held at a time

        axis, first = self._draw_axis(), self._draw(self.slice_step)

        def seen(values: Tensor) -> Tensor:
            return every_nth_slice(along_axis(values, axis), self.slice_step, first)

        volumes, mask, from_3d = (seen(values) for values in (volumes, targets[0], from_3d))
        counts = None if counts is None else seen(counts)
        with self.autocast():
            outputs = net_2d(volumes)
        loss_2d = self.student_2d.update(outputs, [combine(mask, from_3d, self.labels, counts=counts)])
        return {"3d": loss_3d, "2d": loss_2d}

    def _draw_pastes(self, volumes: Tensor, n_labeled: int) -> list[Paste]:
        if not self.copy_paste:
            return []
        return draw_pastes(n_labeled, len(volumes) - n_labeled, volumes.shape[2:], torch.default_generator)

    def _draw(self, choices: int) -> int:
        return int(torch.randint(choices, (), generator=self.generator))

    def _draw_axis(self) -> int:
        return self.slice_axes[self._draw(len(self.slice_axes))]

    def _teach(self, teacher: nn.Module, unlabeled: Tensor) -> Tensor:
        if len(unlabeled) == 0:
            return unlabeled.new_empty(0, self.labels.num_channels, *unlabeled.shape[2:])
        return pseudo_mask(teacher, unlabeled, self.labels)
