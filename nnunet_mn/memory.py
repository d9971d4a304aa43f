"""Memory of a card, and memory that a pass through a network keeps for its gradient."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

GIB = 2**30  # bytes


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a CUDA card for new tensors of this process: torch's own reserve counts. None on another device."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def kept_for_backward(run: Callable[[], Tensor], weights: Iterable[Tensor]) -> tuple[int, Tensor]:
    """Run a forward pass and count the bytes of tensors that it keeps for its backward pass.

    Tensors with the same storage count once.

    Args:
        run: the pass.
        weights: these tensors are not counted.

    Returns:
        The bytes, and the output of the pass.
    """
    own = {tensor.untyped_storage()._cdata for tensor in weights}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = run()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own), output
