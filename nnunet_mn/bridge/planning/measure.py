"""Memory and arithmetic of a training step. They are measured on one sample or without any data."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nnunet_mn.memory import kept_for_backward


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
    with _flops() as forward:
        saved, loss = kept_for_backward(step, (*weights.parameters(), *weights.buffers()))
    with _flops() as backward:
        loss.backward()
    weights.zero_grad(set_to_none=True)
    return Cost(saved=saved, forward=forward.get_total_flops(), backward=backward.get_total_flops())


def _flops() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _of_conv_backward})


def _of_conv_backward(
    grad_shape: Sequence[int], maps_shape: Sequence[int], weight_shape: Sequence[int], *others: Any, out_shape: Any
) -> int:
    """The operations of a convolution's backward pass. torch's own formula takes a grouped one for a dense one."""
    transposed, output_mask = others[4], others[7]
    pixels = maps_shape if transposed else grad_shape  # each is multiplied with one row of the weights
    return 2 * prod(pixels) * prod(weight_shape[1:]) * int(sum(output_mask[:2]))


def slice_cost(network: nn.Module, shape: Sequence[int], *, precision: torch.dtype | None) -> tuple[Cost, int]:
    """Measure a 2D network by one and by two slices. Nothing is computed, and no GPU is needed.

    Args:
        network: slices (N, C, H, W) -> logits (N, K, H, W).
        shape: C, H and W of a slice.
        precision: of autocast on a CUDA card; None: fp32 on a CPU. Autocast keeps some layers in fp32, such as norms,
            and copies the weights.

    Returns:
        The cost of a slice, and the bytes kept by a pass of any number of slices, such as copies of the weights.
    """
    with FakeTensorMode():
        one, two = (_kept(network, (count, *shape), precision) for count in (1, 2))
    run, _ = _without_data(network, (1, *shape), "meta", torch.float32)  # a pretended card has no backward pass
    with _flops() as forward:
        logits = run()
    with _flops() as backward:
        logits.sum().backward()
    cost = Cost(saved=two - one, forward=forward.get_total_flops(), backward=backward.get_total_flops())
    return cost, max(0, 2 * one - two)


def teaching_bytes(network: nn.Module, shape: Sequence[int], *, precision: torch.dtype | None) -> tuple[int, int]:
    """Measure what a pass without a gradient holds at its peak. For the arguments see `slice_cost`.

    Returns:
        The bytes for each further slice, and those of a pass of any number of slices.
    """
    with FakeTensorMode():
        one, two = (_peak(network, (count, *shape), precision) for count in (1, 2))
    return two - one, max(0, 2 * one - two)


def _peak(network: nn.Module, shape: Sequence[int], precision: torch.dtype | None) -> int:
    device, dtype = ("cpu", torch.float32) if precision is None else ("cuda", None)
    run, _ = _without_data(network, shape, device, dtype)
    autocast = nullcontext() if precision is None else _cuda_autocast(precision)
    live = _LiveTensors()
    with autocast, torch.no_grad(), live:
        run()
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside of it, and still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return output


def _kept(network: nn.Module, shape: Sequence[int], precision: torch.dtype | None) -> int:
    """Bytes kept by a pass."""
    if precision is None:
        return kept_for_backward(*_without_data(network, shape, "cpu", torch.float32))[0]
    with _cuda_autocast(precision):
        return kept_for_backward(*_without_data(network, shape, "cuda", None))[0]


def _without_data(
    network: nn.Module, shape: Sequence[int], device: str, dtype: torch.dtype | None
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A pass of a network whose tensors have no content, and its weights. None: they have the network's types."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {
        name: torch.empty_strided(
            t.shape, t.stride(), dtype=dtype if dtype is not None and t.is_floating_point() else t.dtype, device=device
        ).requires_grad_(t.requires_grad)
        for name, t in tensors.items()
    }
    slices = torch.empty(*shape, device=device)
    return lambda: functional_call(network, empty, (slices,)), list(empty.values())


@contextmanager
def _cuda_autocast(precision: torch.dtype) -> Iterator[None]:
    """What torch.autocast does for CUDA. It refuses where no card is."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", precision)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def weight_bytes(network: nn.Module, *, optimizer_states: int) -> int:
    """Bytes of weights, gradients and optimizer states.

    Args:
        network: frozen weights have neither gradient nor state.
        optimizer_states: per trained weight: 1 for SGD with momentum, 2 for AdamW.
    """
    return sum(p.nbytes * (2 + optimizer_states if p.requires_grad else 1) for p in network.parameters())
