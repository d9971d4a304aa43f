"""Whether a network says in train mode what it would say in evaluation mode."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nnunet_mn.targets import LabelSpace

_RANDOM_RATES = ("drop_prob", "attention_dropout")  # of layers that drop by a function of torch, not by a module


def same_in_eval(network: nn.Module) -> bool:
    """Whether evaluation mode would give the output of the present mode: no dropout, no statistics of the batch."""
    return next(_layers_that_differ(network), None) is None


def _layers_that_differ(network: nn.Module) -> Iterator[nn.Module]:
    for layer in network.modules():
        if layer.training and (isinstance(layer, _BatchNorm) or _random_rate(layer) > 0):
            yield layer


def _random_rate(layer: nn.Module) -> float:
    if isinstance(layer, _DropoutNd):
        return layer.p
    rates = (getattr(layer, name, 0.0) for name in _RANDOM_RATES)
    return max((rate for rate in rates if isinstance(rate, float)), default=0.0)


def pseudo_mask(teacher: nn.Module, volumes: Tensor, labels: LabelSpace) -> Tensor:
    """The teacher's probabilities `(n_u, K, D, H, W)`, in eval mode and without gradient."""
    was_training = teacher.training
    teacher.eval()
    with torch.no_grad():  # not inference mode: its tensors cannot be saved for the student's backward pass
        probabilities = labels.probabilities(teacher(volumes)[0])
    teacher.train(was_training)
    return probabilities
