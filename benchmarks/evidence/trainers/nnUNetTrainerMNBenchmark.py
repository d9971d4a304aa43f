"""Trainers that only the benchmark needs: M&N with one thing changed, and the mean teacher.

nnU-Net finds them through `nnUNet_extTrainer`; like all trainers there, they live in one file.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_mn.bridge.training import assembly
from nnunet_mn.cotraining import CoTrainer
from nnunet_mn.losses import SoftTargetLoss
from nnunet_mn.mixing import draw_pastes, paste
from nnunet_mn.networks.weights import check_fit, hash_of
from nnunet_mn.schedule import Schedule
from nnunet_mn.targets import LabelSpace, combine_scales
from nnunet_mn.trainers.nnUNetTrainerMN import nnUNetTrainerMN, nnUNetTrainerMNLabeledOnly

Kind = TypeVar("Kind")


def as_kind(kind: type[Kind], value: Any) -> Kind:
    """A dataclass instance as one of a subclass, with the same fields."""
    return kind(**{f.name: getattr(value, f.name) for f in fields(value) if f.init})


class nnUNetTrainerMNRandom2D(nnUNetTrainerMN):
    """The same 2D network without what it learned from natural images."""

    def _build_cotrainer(self) -> CoTrainer:
        built = super()._build_cotrainer()
        network = assembly.network_2d(built)
        for module in network.backbone.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        network.batch_statistics = "adapt"  # those of other weights say nothing
        network.train()
        return built


@dataclass(frozen=True, kw_only=True)
class HardMasks(LabelSpace):
    """Each network votes for its likeliest class; where they disagree, the mean of both is half and half."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return self.encode(logits.argmax(1, keepdim=True)).values


@dataclass(frozen=True, kw_only=True)
class MeanOfLogits(LabelSpace):
    """The surer network has more say in the mean of both."""

    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        smallest = 1e-6  # keeps logits of certain voxels finite
        return ((first.clamp_min(smallest).log() + second.clamp_min(smallest).log()) / 2).softmax(1)


class nnUNetTrainerMNLabelSpace(nnUNetTrainerMN):
    """Base of those that treat pseudo-masks otherwise, of classes rather than regions."""

    label_space: ClassVar[type[LabelSpace]] = LabelSpace

    def _build_cotrainer(self) -> CoTrainer:
        built = super()._build_cotrainer()
        built.labels = as_kind(self.label_space, built.labels)
        return built


class nnUNetTrainerMNHardMasks(nnUNetTrainerMNLabelSpace):
    """Hard pseudo-masks."""

    label_space = HardMasks


class nnUNetTrainerMNMeanOfLogits(nnUNetTrainerMNLabelSpace):
    """Both networks' mean pseudo-mask is that of their logits."""

    label_space = MeanOfLogits


@dataclass(frozen=True, kw_only=True)
class SquaredDiceOfPseudoMasks(SoftTargetLoss):
    """Squared denominators where the target is soft, that is, a pseudo-mask."""

    def _size(self, prediction: Tensor, values: Tensor) -> Tensor:
        soft = ((values > 0) & (values < 1)).flatten(1).any(1).reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(soft, prediction.square() + values.square(), prediction + values)


class nnUNetTrainerMNSquaredDice(nnUNetTrainerMN):
    """A Dice with squared denominators for pseudo-masks."""

    def _build_cotrainer(self) -> CoTrainer:
        built = super()._build_cotrainer()
        for student in (built.student_3d, built.student_2d):
            student.loss = replace(student.loss, loss=as_kind(SquaredDiceOfPseudoMasks, student.loss.loss))
        return built


class nnUNetTrainerMNSquaredDiceMeanOfLogits(nnUNetTrainerMNSquaredDice, nnUNetTrainerMNMeanOfLogits):
    """Both: earlier defaults."""


class GrowsToHalf(Schedule):
    """The share of unlabeled samples grows with the decaying rate, but labeled ones keep half of each batch."""

    def unlabeled_fraction(self, iteration: float) -> float:
        return min(super().unlabeled_fraction(iteration), 0.5)


class nnUNetTrainerMNGrowsToHalf(nnUNetTrainerMN):
    """At most half of each batch is unlabeled."""

    def on_train_start(self) -> None:
        self.schedule = as_kind(GrowsToHalf, self.schedule)
        super().on_train_start()


class Second3D(nn.Module):
    """A 3D network from scratch where M&N has its 2D one; only its finest output is used."""

    description = "second 3D network instead of a 2D one"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, volume: Tensor) -> list[Tensor]:
        return [self.inner(volume)[0]]

    @property
    def network(self) -> "Second3D":
        return self  # as `SliceWise` names what it wraps

    def learned_state(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def load_learned_state(self, state: dict[str, Tensor]) -> None:
        check_fit(state, self.learned_state(), source="the checkpoint's second 3D network")
        self.load_state_dict(state)

    def frozen_hash(self) -> str:
        return hash_of([])


class nnUNetTrainerMNTwo3D(nnUNetTrainerMN):
    """Cross pseudo supervision: two 3D networks of different random weights teach each other."""

    def _build_cotrainer(self) -> CoTrainer:
        built = super()._build_cotrainer()
        twin = copy.deepcopy(self.network)
        twin.apply(self._initialize_anew)
        built.student_2d.network = Second3D(twin)
        optimizer = torch.optim.AdamW(twin.parameters(), self.optimizer.param_groups[0]["peak_lr"])
        optimizer.param_groups[0]["peak_lr"] = optimizer.param_groups[0]["lr"]
        built.student_2d.optimizer = optimizer
        built.slice_axes, built.slice_step = (0,), 1  # it sees volumes
        return built

    @staticmethod
    def _initialize_anew(module: nn.Module) -> None:
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):  # as dynamic_network_architectures does
            nn.init.kaiming_normal_(module.weight, a=1e-2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class nnUNetTrainerCopyPaste(nnUNetTrainerMNLabeledOnly):
    """Labeled samples alone, each with a box of another: copy-paste's own share of M&N's gain."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        volumes = batch["data"]
        pastes = draw_pastes(len(volumes), len(volumes), volumes.shape[2:], torch.default_generator)
        sources = [one.source for one in pastes]
        shown = paste(torch.ones_like(volumes[:, :1]), torch.zeros_like(volumes[:, :1]), pastes)  # 1 in the boxes
        mixed = [
            torch.where(functional.interpolate(shown, target.shape[2:]) > 0, target[sources], target)
            for target in batch["target"]
        ]
        step: dict[str, Any] = super().train_step({**batch, "data": paste(volumes, volumes, pastes), "target": mixed})
        return step


RAMP_UP = 0.4  # of the training, until consistency has its full weight (Tarvainen and Valpola, 2017)
CONSISTENCY_WEIGHT = 1.0
DECAY = 0.99  # of the moving average
NOISE = 0.1  # standard deviation, in those of the image: student and teacher see different noise


class MeanTeacher(CoTrainer):
    """A 3D student whose teacher is its own moving average (Tarvainen and Valpola 2017; UA-MT's setting for 3D).

    The teacher stands where M&N has its 2D network, and so in checkpoints.
    """

    def start(self, *, total: int, done: int) -> None:
        """Make the teacher for a training of `total` steps, or go on with it after some of them."""
        self.total, self.done = total, done
        self._teacher = self.student_2d.network.requires_grad_(False)
        if done == 0:
            self._teacher.inner.load_state_dict(self.student_3d.network.state_dict())

    def step(self, volumes: Tensor, targets: Sequence[Tensor], n_labeled: int) -> dict[Literal["3d", "2d"], float]:
        network = self.student_3d.network
        outputs = network(volumes + NOISE * torch.randn_like(volumes))
        supervised = self.student_3d.loss(
            [output[:n_labeled] for output in outputs],
            combine_scales([t[:n_labeled] for t in targets], volumes.new_empty(0), self.labels),
        )
        with torch.no_grad():
            taught = self.labels.probabilities(self._teacher(volumes + NOISE * torch.randn_like(volumes))[0])
        consistency = (self.labels.probabilities(outputs[0]) - taught).square().mean()
        ramp = math.exp(-5 * (1 - min(1.0, self.done / (RAMP_UP * self.total))) ** 2)
        loss = supervised + CONSISTENCY_WEIGHT * ramp * consistency
        self.student_3d.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), self.student_3d.clip_norm)
        self.student_3d.optimizer.step()
        self.done += 1
        self._follow(min(1 - 1 / (self.done + 1), DECAY))
        return {"3d": float(loss.detach()), "2d": float(consistency.detach())}

    def _follow(self, decay: float) -> None:
        for slow, fast in zip(self._teacher.parameters(), self.student_3d.network.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - decay)


class nnUNetTrainerMeanTeacher(nnUNetTrainerMNTwo3D):
    """The field's standard baseline: half of each batch is unlabeled from the start.

    The student is what is evaluated, as everywhere in the comparison.
    """

    def on_train_start(self) -> None:
        self.schedule = replace(self.schedule, supervised=0, unlabeled_share=0.5)
        super().on_train_start()
        teacher = as_kind(MeanTeacher, self.cotrainer)
        teacher.start(total=self.schedule.total, done=self._position())
        self.cotrainer = teacher
