"""Memory and arithmetic of a training step. They are measured on one sample or without any data."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_mn.memory import kept_for_backward

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one pass of a network for one sample.

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
    with FlopCounterMode(display=False) as forward:
        saved, loss = kept_for_backward(step, weights)
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
