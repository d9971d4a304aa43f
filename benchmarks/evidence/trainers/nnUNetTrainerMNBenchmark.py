"""Trainers for the benchmark alone: M&N with one thing changed, and a mean teacher.

nnU-Net finds them through `nnUNet_extTrainer`; like all trainers there, they live in one file.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_mn.bridge.training import assembly
from nnunet_mn.cotraining import CoTrainer
from nnunet_mn.losses import DeepSupervisionLoss, SoftTargetLoss
from nnunet_mn.schedule import ON_LABELS_ALONE, HalfUnlabeled, Schedule
from nnunet_mn.slices import SliceSampler
from nnunet_mn.targets import LabelSpace, SoftTarget
from nnunet_mn.teaching import MeanOfBoth, MovingAverage, PseudoMasks, Teacher
from nnunet_mn.trainers.nnUNetTrainerMN import (
    nnUNetTrainerMN,
    nnUNetTrainerMNJoint,
    nnUNetTrainerMNLabeledOnly,
    nnUNetTrainerMNStudent,
)

# nnU-Net looks for these here, too.
__all__ = ["nnUNetTrainerMNJoint", "nnUNetTrainerMNLabeledOnly", "nnUNetTrainerMNStudent"]


class nnUNetTrainerMNRandom2D(nnUNetTrainerMN):
    """The same 2D network with random weights in place of pretrained ones."""

    def build_cotrainer(self) -> CoTrainer:
        built = super().build_cotrainer()
        network = assembly.network_2d(built)
        network.batch_statistics = "adapt"  # those of other weights say nothing
        for module in network.backbone.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        network.train()
        return built


# ---- teachers --------------------------------------------------------------------------------------------------------


class HardMasks(MeanOfBoth):
    """Each network votes for its likeliest class. If they disagree, the mean of both is half and half."""

    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        votes = (self.labels.encode(masks.argmax(1, keepdim=True)).values for masks in (first, second))
        return super().mean(*votes)


class MeanOfLogits(MeanOfBoth):
    """The surer network has more say in the mean of both."""

    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        smallest = 1e-6  # keeps logits of certain voxels finite
        return ((first.clamp_min(smallest).log() + second.clamp_min(smallest).log()) / 2).softmax(1)


class nnUNetTrainerMNTeacher(nnUNetTrainerMN):
    """Base of those with another teacher, of classes rather than regions."""

    teacher: ClassVar[type[Teacher]] = MeanOfBoth

    def build_cotrainer(self) -> CoTrainer:
        built = super().build_cotrainer()
        built.teacher = self.teacher(
            network_3d=built.student_3d.network,
            network_2d=built.student_2d.network,
            labels=built.labels,
            sampler=built.sampler,
        )
        return built


class nnUNetTrainerMNHardMasks(nnUNetTrainerMNTeacher):
    """Hard pseudo-masks."""

    teacher = HardMasks


class nnUNetTrainerMNMeanOfLogits(nnUNetTrainerMNTeacher):
    """Both networks' mean pseudo-mask is the mean of their logits, made into probabilities."""

    teacher = MeanOfLogits


# ---- losses and schedules --------------------------------------------------------------------------------------------


def is_soft(values: Tensor) -> Tensor:
    """Whether each sample of `(B, K, ...)` has a soft target, a pseudo-mask: `(B,)`."""
    return ((values > 0) & (values < 1)).flatten(1).any(1)


@dataclass(frozen=True, kw_only=True)
class SquaredDiceOfPseudoMasks(SoftTargetLoss):
    """Squared denominators for soft targets."""

    def sizes(self, prediction: Tensor, values: Tensor) -> Tensor:
        soft = is_soft(values).reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(soft, prediction.square() + values.square(), prediction + values)


class nnUNetTrainerMNSquaredDice(nnUNetTrainerMN):
    """A Dice with squared denominators for pseudo-masks."""

    def build_cotrainer(self) -> CoTrainer:
        built = super().build_cotrainer()
        loss = SquaredDiceOfPseudoMasks(batch_dice=self.configuration_manager.batch_dice)
        for student in (built.student_3d, built.student_2d):
            student.loss = replace(student.loss, loss=loss)
        return built


class GrowsToHalf(Schedule):
    """The share of unlabeled samples grows with the decaying rate, but labeled ones keep half of each batch."""

    def unlabeled_fraction(self, iteration: float) -> float:
        return min(super().unlabeled_fraction(iteration), 0.5)


class WithoutUnlabeled(Schedule):
    """No batch has unlabeled samples."""

    def unlabeled_fraction(self, iteration: float) -> float:
        return 0.0


class EndsOnLabels(Schedule):
    """The last tenth of the training has no unlabeled samples, as a student's."""

    def unlabeled_fraction(self, iteration: float) -> float:
        return 0.0 if iteration >= (1 - ON_LABELS_ALONE) * self.total else super().unlabeled_fraction(iteration)


class nnUNetTrainerMNGrowsToHalf(nnUNetTrainerMN):
    """At most half of each batch is unlabeled."""

    schedule_class: ClassVar[type[Schedule]] = GrowsToHalf

    def build_schedule(self) -> Schedule:
        return self.schedule_class.of(self.mn_config, total=super().build_schedule().total)


class nnUNetTrainerMNHalfUnlabeled(nnUNetTrainerMNGrowsToHalf):
    """Half of each batch is unlabeled."""

    schedule_class = HalfUnlabeled


class nnUNetTrainerMNEndsOnLabels(nnUNetTrainerMNGrowsToHalf):
    """The last tenth of the training is on labeled samples alone."""

    schedule_class = EndsOnLabels


class nnUNetTrainerMNWithoutUnlabeled(nnUNetTrainerMNGrowsToHalf):
    """Both networks learn from labeled samples alone."""

    schedule_class = WithoutUnlabeled


class nnUNetTrainerMNSquaredDiceHalf(nnUNetTrainerMNHalfUnlabeled, nnUNetTrainerMNSquaredDice):
    """An earlier default: the squared Dice and half of each batch."""


class nnUNetTrainerMNSquaredDiceMeanOfLogits(nnUNetTrainerMNSquaredDice, nnUNetTrainerMNMeanOfLogits):
    """Earlier defaults: the squared Dice and the mean of logits."""


class nnUNetTrainerMNSquaredDiceMeanOfLogitsHalf(nnUNetTrainerMNHalfUnlabeled, nnUNetTrainerMNSquaredDiceMeanOfLogits):
    """Earlier defaults: the squared Dice, the mean of logits and half of each batch."""


# ---- other students --------------------------------------------------------------------------------------------------


class FinestOutput(nn.Module):
    """A 3D network with its finest output alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, volume: Tensor) -> list[Tensor]:
        return [self.network(volume)[0]]


class nnUNetTrainerMNTwo3D(nnUNetTrainerMN):
    """Cross pseudo supervision: two 3D networks of different random weights teach each other."""

    def build_cotrainer(self) -> CoTrainer:
        built = super().build_cotrainer()
        twin = FinestOutput(copy.deepcopy(assembly.unwrapped(self.network)).apply(self._initialize_anew))
        optimizer = torch.optim.AdamW(twin.parameters(), self.optimizer.param_groups[0]["peak_lr"])
        optimizer.param_groups[0]["peak_lr"] = optimizer.param_groups[0]["lr"]
        built.student_2d.network, built.student_2d.optimizer = twin, optimizer
        built.sampler = SliceSampler(generator=built.sampler.generator)  # it sees volumes
        built.teacher.network_2d, built.teacher.sampler = twin, built.sampler
        return built

    @staticmethod
    def _initialize_anew(module: nn.Module) -> None:
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):  # as dynamic_network_architectures does
            nn.init.kaiming_normal_(module.weight, a=1e-2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ---- mean teacher ----------------------------------------------------------------------------------------------------

RAMP_UP = 0.4  # of the training, until consistency has its full weight (Tarvainen and Valpola, 2017)
NOISE = 0.1  # standard deviation, in those of the image: student and teacher see different noise


class NoisyMovingAverage(MovingAverage):
    """The 3D student's slow copy alone teaches, on volumes with noise."""

    def __call__(self, unlabeled: Tensor, logits_3d: Tensor | None) -> PseudoMasks:
        masks = self.masks_of_3d(unlabeled + NOISE * torch.randn_like(unlabeled), logits_3d)
        return PseudoMasks(masks, masks)


@dataclass(frozen=True, kw_only=True)
class Consistency(DeepSupervisionLoss):
    """The supervised loss of labeled samples plus squared differences to the teacher on unlabeled ones.

    Args:
        labels: how labels become channels.
        teacher: knows how many steps are done.
        total: steps of the training.
    """

    labels: LabelSpace
    teacher: MovingAverage
    total: int

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[SoftTarget]) -> Tensor:
        taught = is_soft(targets[0].values)
        known = [SoftTarget(t.values[~taught], None if t.mask is None else t.mask[~taught]) for t in targets]
        supervised = super().__call__([output[~taught] for output in outputs], known)
        if not taught.any():
            return supervised
        said = self.labels.probabilities(outputs[0][taught])
        ramp = math.exp(-5 * (1 - min(1.0, self.teacher.steps / (RAMP_UP * self.total))) ** 2)
        return supervised + ramp * (said - targets[0].values[taught]).square().mean()


class nnUNetTrainerMeanTeacher(nnUNetTrainerMNTeacher):
    """The field's standard baseline: half of each batch is unlabeled from the start (UA-MT's setting for 3D).

    The 3D student is evaluated, as everywhere in the comparison. The 2D network learns beside it and teaches nobody.
    """

    teacher = NoisyMovingAverage

    def build_schedule(self) -> Schedule:
        return HalfUnlabeled(total=super().build_schedule().total, supervised=0)

    def build_cotrainer(self) -> CoTrainer:
        built = super().build_cotrainer()
        student = built.student_3d
        student.loss = Consistency(
            loss=student.loss.loss,
            weights=student.loss.weights,
            labels=built.labels,
            teacher=built.teacher,
            total=self.schedule.total,
        )
        return built
