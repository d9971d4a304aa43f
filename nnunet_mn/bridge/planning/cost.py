"""The cost of a planned M&N training: GPU memory of both networks in both phases of a step, and arithmetic.

A step has two phases (`CoTrainer.step`). The first trains the 3D network, the second the 2D network, each with
the teacher's pseudo-masks. Weights and optimizers of both stay on the card all the time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnunet_mn.bridge.planning.measure import Cost, measure_cost, slice_cost, teaching_bytes, weight_bytes
from nnunet_mn.bridge.training.assembly import loss_for
from nnunet_mn.config import MNConfig
from nnunet_mn.losses import DeepSupervisionLoss, SoftTargetLoss
from nnunet_mn.memory import GIB
from nnunet_mn.ranks import ALONE
from nnunet_mn.schedule import Schedule, UnlabeledCounts
from nnunet_mn.slices import SHARE_OF_FREE_MEMORY, along_axis
from nnunet_mn.targets import LabelSpace, SoftTarget

# A card's memory beside weights and saved tensors: the context and cuDNN's workspace, and gradients on their way. Both
# are fitted to the documented memory of nnU-Net's four presets (7.7, 9.1, 22.7 and 36.6 GB,
# documentation/resenc_presets.md), and reproduce it within 3 %.
CONTEXT_GIB = 1.74
SHARE_OF_TRANSIENTS = 0.137
BYTES_IN_AUTOCAST = 2  # of a number

CARD = "A100 40 GB"
# Fitted to the same document's 9, 12, 35 and 66 hours for 250,000 steps, within 10 %.
CARD_FLOPS = 55e12
STEPS_PER_EPOCH, EPOCHS = 250, 1000
POINTS = 1000  # of a training, for the mean number of unlabeled samples


@dataclass(frozen=True, kw_only=True)
class SliceCost:
    """The 2D network on one slice.

    Args:
        cost: of a training pass, for each further slice.
        fixed: bytes kept by a pass of any number of slices, such as weights in half precision.
        teaching: bytes at the peak of a pass without a gradient, for each further slice.
        teaching_fixed: the same for a pass of any number of slices.
        weights: bytes of weights, gradients and optimizer.
    """

    cost: Cost
    fixed: int
    teaching: int
    teaching_fixed: int
    weights: int


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """One planned configuration with both networks.

    Args:
        patch_size: voxels.
        batch_size: samples a step.
        views: slices, height and width of a patch along each axis of the 2D network, see `views`.
        largest: the one of them that takes the most, see `largest_view`.
        classes: channels K of the logits.
        sample: the 3D network on one sample, with its loss.
        weights_3d: bytes of the 3D network's weights, gradients and optimizer.
        slice: the 2D network on one slice of the largest view.
        loss_2d: bytes kept by the loss of the 2D network per sample.
        config: settings.
    """

    patch_size: tuple[int, ...]
    batch_size: int
    views: tuple[tuple[int, int, int], ...]
    largest: tuple[int, int, int]
    classes: int
    sample: Cost
    weights_3d: int
    slice: SliceCost
    loss_2d: int
    config: MNConfig

    @property
    def slices(self) -> tuple[int, int]:
        """The 2D network's training slices in a step, and the slices of all samples, both along the largest view."""
        count = self.largest[0]
        return self.batch_size * math.ceil(count / self.config.slice_step), self.batch_size * count

    @property
    def most_slices(self) -> int:
        """Slices of all samples along the axis with the most."""
        return self.batch_size * max(count for count, _, _ in self.views)

    @property
    def networks_gib(self) -> tuple[float, float]:
        """GiB of weights, gradients and optimizer: of the 3D and of the 2D network, at all times."""
        return self.weights_3d / GIB, self.slice.weights / GIB

    def phase_3d_gib(self, slices_per_forward: int) -> float:
        """GiB at the peak of the 3D network's training phase: while its gradient is made, or the 2D network teaches."""
        at_once = min(slices_per_forward, self._taught_slices())
        teaching = at_once * self.slice.teaching + self.slice.teaching_fixed
        return max(self._peak(self._kept_in_phase_3d()), self._while_teaching() + teaching / GIB)

    def phase_2d_gib(self, slices_per_forward: int) -> float:
        """GiB at the peak of the 2D network's training phase."""
        at_once = min(slices_per_forward, self.slices[0])
        return self._peak(at_once * self.slice.cost.saved + self._kept_in_phase_2d())

    @property
    def peak_gib(self) -> float:
        """GiB at the peak of a step, with the slices in flight of the settings."""
        slices = self.config.slices_per_forward or self.most_slices
        return max(self.phase_3d_gib(slices), self.phase_2d_gib(slices))

    def slices_that_fit(self, target_gib: float) -> int:
        """The most slices in flight below a target, whether they learn or teach; 0 if one slice is too much."""
        learning = (target_gib - self._peak(self._kept_in_phase_2d())) * GIB / (1 + SHARE_OF_TRANSIENTS)
        teaching = (target_gib - self._while_teaching()) * GIB - self.slice.teaching_fixed
        rooms = (
            (learning, self.slice.cost.saved, self.slices[0]),
            (teaching, self.slice.teaching, self._taught_slices()),
        )
        fitting = (max(0, int(room // max(1, each))) for room, each, most in rooms if room < each * most)
        return min(fitting, default=self.most_slices)

    def slices_on_card(self, card_gib: float) -> int:
        """The slices in flight of a training without this setting: half of a card's free memory is for them."""
        free = card_gib - max(self._peak(self._kept_in_phase_2d()), self._while_teaching())
        fitting = int(SHARE_OF_FREE_MEMORY * free * GIB / max(1, self.slice.cost.saved))
        return min(max(1, fitting), self.most_slices)

    def flops(self, slices_per_forward: int) -> float:
        """Floating-point operations of a step, on average over a training."""
        student, teacher = self.slices[0], self.slices[1] * self._mean_unlabeled()
        slice_ = self.slice.cost
        again = slice_.forward if slices_per_forward < student else 0  # chunks are computed twice
        of_2d = student * (slice_.forward + again + slice_.backward)
        of_3d = self.batch_size * (self.sample.forward + self.sample.backward)
        on_top = self._mean_unlabeled() if self.config.batch == "add" else 0
        return (1 + on_top) * (of_3d + of_2d) + teacher * slice_.forward

    def gpu_hours(self, slices_per_forward: int) -> float:
        """Hours for 1,000 epochs on the card named above, roughly: its arithmetic at the pace of nnU-Net's trainings.

        The 2D network has smaller kernels than the 3D one, and more of them. Its pace has not been measured.
        """
        return EPOCHS * STEPS_PER_EPOCH * self.flops(slices_per_forward) / CARD_FLOPS / 3600

    def _peak(self, tensors: float) -> float:
        return CONTEXT_GIB + sum(self.networks_gib) + tensors * (1 + SHARE_OF_TRANSIENTS) / GIB

    def _kept_in_phase_3d(self) -> int:
        return self.batch_size * self.sample.saved + 2 * self._pseudo_masks()

    def _while_teaching(self) -> float:
        """GiB beside the 2D network's pass that teaches: no gradient is on its way then."""
        return CONTEXT_GIB + sum(self.networks_gib) + self._kept_in_phase_3d() / GIB

    def _taught_slices(self) -> int:
        """Slices of as many unlabeled samples as a step may have."""
        return self._most_unlabeled() * self.largest[0]

    def _most_unlabeled(self) -> int:
        return self.batch_size - (self.config.batch == "replace")

    def _kept_in_phase_2d(self) -> int:
        return self._pseudo_masks() + self.batch_size * self.loss_2d + self.slice.fixed

    def _pseudo_masks(self) -> int:
        """Bytes of one network's probabilities for a batch with as many unlabeled samples as it may have."""
        return 4 * self._most_unlabeled() * self.classes * math.prod(self.patch_size)

    def _mean_unlabeled(self) -> float:
        """Unlabeled samples of a step as a share of the planned batch, on average over a training."""
        schedule = Schedule.of(self.config, total=POINTS)
        counts = UnlabeledCounts.from_config(self.config, schedule, batch_size=self.batch_size)
        return sum(counts.of(i) for i in range(POINTS)) / POINTS / self.batch_size


def network_3d_cost(
    architecture: dict[str, Any],
    patch_size: Sequence[int],
    *,
    channels: int,
    labels: LabelSpace,
    config: MNConfig,
    precision: torch.dtype = torch.bfloat16,
) -> tuple[Cost, int]:
    """Measure a planned 3D network on one sample. Nothing is computed.

    Args:
        architecture: of the plans.
        patch_size: voxels.
        channels: of an image.
        labels: of the dataset.
        config: chooses loss and optimizer.
        precision: of the network. Autocast takes half precision on every GPU; a CPU takes fp32.

    Returns:
        The cost of a sample, its loss in fp32, and the bytes of weights and optimizer.
    """
    with torch.device("meta"):
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            channels,
            labels.num_channels,
            allow_init=False,
            deep_supervision=True,
        )
        volume = torch.empty(1, channels, *patch_size, dtype=precision)
    states = 1 if config.optimizer_3d == "sgd" else 2
    weights = weight_bytes(network, optimizer_states=states)
    network.to(precision)
    loss = loss_for(config, labels, batch_dice=True, ranks=ALONE)
    return measure_cost(lambda: _loss(loss, network(volume)), network), weights


def views(patch_size: Sequence[int], axes: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Slices, height and width of a patch as the 2D network sees it along some axes."""
    shapes = (tuple(along_axis(torch.empty(1, 1, *patch_size, device="meta"), axis).shape[2:]) for axis in axes)
    return cast(tuple[tuple[int, int, int], ...], tuple(shapes))


def largest_view(
    views: Sequence[tuple[int, int, int]], input_pixels: Callable[[int, int], int]
) -> tuple[int, int, int]:
    """The view with the most pixels at the encoder's input, and of such ones that with the largest slices.

    Small slices are enlarged for the encoder. Views of the same patch then differ in memory and arithmetic.

    Args:
        input_pixels: of a slice of some height and width (`SliceNetwork.input_pixels`).
    """
    pixels = {view: input_pixels(*view[1:]) for view in views}
    return max(views, key=lambda view: (view[0] * pixels[view], pixels[view]))


def loss_bytes(view: tuple[int, int, int], *, labels: LabelSpace, config: MNConfig) -> int:
    """Bytes kept by the loss of the 2D network for one sample, logits included."""
    shape = (1, labels.num_channels, math.ceil(view[0] / config.slice_step), *view[1:])
    logits = torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
    loss = loss_for(config, labels, batch_dice=True, ranks=ALONE)
    return measure_cost(lambda: _loss(loss, [logits]), nn.Module()).saved + BYTES_IN_AUTOCAST * logits.numel()


def network_2d_cost(
    network: nn.Module, size: tuple[int, int], *, channels: int, precision: torch.dtype | None = torch.bfloat16
) -> SliceCost:
    """Measure a 2D network on one and on two slices. Nothing is computed.

    Args:
        network: slices (N, C, H, W) -> logits (N, K, H, W).
        size: voxels of the slice.
        channels: C.
        precision: of autocast on a CUDA card; None: fp32 on a CPU.
    """
    network.train()
    shape = (channels, *size)
    cost, fixed = slice_cost(network, shape, precision=precision)
    teaching, teaching_fixed = teaching_bytes(network, shape, precision=precision)
    return SliceCost(
        cost=cost,
        fixed=fixed,
        teaching=teaching,
        teaching_fixed=teaching_fixed,
        weights=weight_bytes(network, optimizer_states=2),
    )


def typical_2d_cost(size: tuple[int, int]) -> SliceCost:
    """SegFormer-B2's cost with LoRA, measured once. It stands in if the wanted network's weights are not here."""
    pixels = size[0] * size[1]
    cost = Cost(saved=2190 * pixels, forward=490_000 * pixels, backward=550_000 * pixels)
    return SliceCost(
        cost=cost,
        fixed=14 * 2**20,
        teaching=2060 * pixels,
        teaching_fixed=58 * 2**20,
        weights=round(0.13 * GIB),
    )


def _loss(loss: SoftTargetLoss, outputs: Sequence[Tensor]) -> Tensor:
    targets = [SoftTarget(torch.empty_like(output, dtype=torch.float32), None) for output in outputs]
    return DeepSupervisionLoss(loss=loss, weights=(1.0,) * len(outputs))(outputs, targets)
