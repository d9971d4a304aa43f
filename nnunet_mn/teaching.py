"""Teachers: their masks take the place of labels in unlabeled samples.

A teacher sees the unlabeled volumes, and the 3D student's logits for them if the student is one of its networks. It
returns soft masks for each student.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_mn.device import without_search
from nnunet_mn.slices import SliceSampler, along_axis, evaluating
from nnunet_mn.targets import LabelSpace

_SAME_IN_EVAL: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()  # by network, by its mode


class PseudoMasks(NamedTuple):
    """Soft masks of the unlabeled samples, `(n_u, K, D, H, W)`, one for each student to learn from."""

    for_3d: Tensor
    for_2d: Tensor


@dataclass(kw_only=True, eq=False)
class Teacher(ABC):
    """Turns unlabeled volumes into soft masks. A subclass must define `__call__`; the other methods have defaults.

    Args:
        network_3d: volume `(B, C, D, H, W)` -> list of logits, finest first.
        network_2d: the same, slice by slice along the first axis (`slices.SliceWise`).
        labels: how labels become channels.
        sampler: draws the axis of the 2D network's slices.
    """

    network_3d: nn.Module
    network_2d: nn.Module
    labels: LabelSpace
    sampler: SliceSampler

    @abstractmethod
    def __call__(self, unlabeled: Tensor, logits_3d: Tensor | None) -> PseudoMasks:
        """Make the soft masks that the students learn from.

        Args:
            unlabeled: volumes `(n_u, C, D, H, W)`; n_u may be 0.
            logits_3d: the 3D student's logits of the volumes, `(n_u, K, D, H, W)`, without a gradient. None: the
                teacher's 3D network is not the student.

        Returns:
            One soft mask `(n_u, K, D, H, W)` for each student, in fp32 and without a gradient.
        """

    def follow(self) -> None:
        """Called at the end of each step, after both updates."""
        return

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed training needs besides the students: nothing, unless the teacher has weights of its own."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state_dict`."""
        return

    def masks_of_3d(self, unlabeled: Tensor, logits_3d: Tensor | None) -> Tensor:
        """The 3D network's probabilities. The student's own logits serve if evaluation mode would give the same."""
        if logits_3d is not None and same_in_eval(self.network_3d):
            return self.labels.probabilities(logits_3d)
        return pseudo_mask(self.network_3d, unlabeled, self.labels)

    def masks_of_2d(self, unlabeled: Tensor) -> Tensor:
        """The 2D network's probabilities along a random axis."""
        return self.masks_along(unlabeled, self.sampler.draw_axis())

    def masks_along(self, unlabeled: Tensor, axis: int) -> Tensor:
        """The 2D network's probabilities along one axis."""
        with without_search():
            return along_axis(pseudo_mask(self.network_2d, along_axis(unlabeled, axis), self.labels), axis)


class OtherNetwork(Teacher):
    """Each network learns from the other's masks, as in the paper (arXiv 2509.15167, section 2.2)."""

    def __call__(self, unlabeled: Tensor, logits_3d: Tensor | None) -> PseudoMasks:
        of_2d = self.masks_of_2d(unlabeled)
        return PseudoMasks(for_3d=of_2d, for_2d=self.masks_of_3d(unlabeled, logits_3d))


class MeanOfBoth(Teacher):
    """Both networks learn from the mean of their masks. Different errors partly cancel."""

    def __call__(self, unlabeled: Tensor, logits_3d: Tensor | None) -> PseudoMasks:
        of_2d = self.masks_of_2d(unlabeled)
        masks = self.mean(of_2d, self.masks_of_3d(unlabeled, logits_3d))
        return PseudoMasks(masks, masks)

    def mean(self, of_2d: Tensor, of_3d: Tensor) -> Tensor:
        """The mean of both networks' probabilities `(n_u, K, D, H, W)`.

        It is not the mean of their logits: there the surer network has more say. The 3D network is overconfident, and
        would learn its own errors.
        """
        return (of_2d + of_3d) / 2


@dataclass(kw_only=True, eq=False)
class MovingAverage(MeanOfBoth):
    """The teacher is a slow copy of both students (Tarvainen and Valpola, NeurIPS 2017).

    Args:
        decay: share of the old weights to keep at each step. It is smaller in the first steps.
    """

    decay: float = 0.99
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.students = (self.network_3d, self.network_2d)
        self.network_3d, self.network_2d = (deepcopy(network).requires_grad_(False) for network in self.students)

    def follow(self) -> None:
        """Move the slow weights towards the students'."""
        self.steps += 1
        step = max(1 / (self.steps + 1), 1 - self.decay)
        for slow, fast in zip((self.network_3d, self.network_2d), self.students, strict=True):
            state = fast.state_dict()
            for name, value in slow.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(state[name], step)
                else:
                    value.copy_(state[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The slow weights and the number of steps."""
        return {**self._networks().state_dict(), "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state_dict`."""
        self._networks().load_state_dict({name: value for name, value in state.items() if name != "steps"})
        self.steps = int(state["steps"])

    def _networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"3d": self.network_3d, "2d": self.network_2d})


@dataclass(kw_only=True, eq=False)
class FrozenPair(MeanOfBoth):
    """Two trained networks, now fixed: the 3D one, and the 2D one along a random one of its axes.

    Over many steps a student learns from all axes. Asking all axes in each step was no better, and a step then took
    twice as long.

    Args:
        weight_2d: of the 2D network in the mean, between 0 and 1.
    """

    weight_2d: float = 0.5

    def mean(self, of_2d: Tensor, of_3d: Tensor) -> Tensor:
        """The weighted mean of both networks' probabilities `(n_u, K, D, H, W)`."""
        return self.weight_2d * of_2d + (1 - self.weight_2d) * of_3d


def pseudo_mask(network: nn.Module, volumes: Tensor, labels: LabelSpace) -> Tensor:
    """A network's probabilities `(n_u, K, D, H, W)` in evaluation mode and without a gradient.

    Of a list of outputs the first one, the finest, counts.
    """
    if len(volumes) == 0:
        return volumes.new_empty(0, labels.num_channels, *volumes.shape[2:])
    same = same_in_eval(network)  # then no walk over hundreds of layers
    # not inference mode: its tensors cannot be saved for a student's backward pass
    with nullcontext() if same else evaluating(network), torch.no_grad():
        outputs = network(volumes)
        probabilities = labels.probabilities(outputs if isinstance(outputs, Tensor) else outputs[0])
    torch.clear_autocast_cache()  # weights cast here have no graph: no training pass may take them
    return probabilities


def same_in_eval(network: nn.Module) -> bool:
    """Whether evaluation mode would give the same output: no dropout, no batch statistics. The answer is kept."""
    known = _SAME_IN_EVAL.setdefault(network, {})
    if network.training not in known:
        known[network.training] = next(_layers_that_differ(network), None) is None
    return known[network.training]


def _layers_that_differ(network: nn.Module) -> Iterator[nn.Module]:
    for layer in network.modules():
        if layer.training and (_takes_statistics_of_the_batch(layer) or _random_rate(layer) > 0):
            yield layer


def _takes_statistics_of_the_batch(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) or (isinstance(layer, _InstanceNorm) and layer.track_running_stats)


def _random_rate(layer: nn.Module) -> float:
    if isinstance(layer, _DropoutNd):
        return layer.p
    # Other layers use torch's dropout function instead of its module, with a rate of their own. torchvision's is `p`.
    values = (vars(type(layer)) | vars(layer)).items()
    is_depth = "StochasticDepth" in type(layer).__name__
    rates = (value for name, value in values if "drop" in name or (is_depth and name == "p"))
    return max((rate for rate in rates if isinstance(rate, float)), default=0.0)
