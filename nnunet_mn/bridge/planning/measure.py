"""Memory and arithmetic of a training step. They are measured on one sample or without any data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one pass of a network costs for one sample.

    Args:
        saved: bytes kept for the backward pass, without the weights.
        forward: floating-point operations (a multiplication and an addition count as two).
        backward: the same for the backward pass.
    """

    saved: int
    forward: int
    backward: int


def measure_cost(step: Callable[[], Tensor], weights: nn.Module) -> Cost:
    """Run a forward pass, its loss and its backward pass, and count.

    Tensors with the same storage count once. On the meta device nothing is computed and no memory is taken.

    Args:
        step: a forward pass, returns a scalar.
        weights: parameters and buffers of this module are not counted.
    """
    own = {t.untyped_storage()._cdata for t in (*weights.parameters(), *weights.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        FlopCounterMode(display=False) as forward,
    ):
        loss = step()
    saved = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    kept.clear()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    weights.zero_grad(set_to_none=True)
    return Cost(saved=saved, forward=forward.get_total_flops(), backward=backward.get_total_flops())


def weight_bytes(network: nn.Module, *, optimizer_states: int) -> int:
    """Bytes of weights, gradients and optimizer states in fp32.

    Args:
        network: frozen weights have neither gradient nor state.
        optimizer_states: per trained weight: 1 for SGD with momentum, 2 for AdamW.
    """
    total = sum(parameter.numel() for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return 4 * (total + trained * (1 + optimizer_states))
