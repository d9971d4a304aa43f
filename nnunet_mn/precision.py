"""Which number format the forward passes use; losses and soft targets are always fp32."""

import torch

from nnunet_mn.config import Precision
from nnunet_mn.errors import MNError

FIRST_WITH_BF16 = (8, 0)  # compute capability: NVIDIA Ampere


def autocast_type(wanted: Precision, device: torch.device) -> torch.dtype | None:
    """The type that autocast uses on a device, or None for fp32 throughout.

    Args:
        wanted: `auto` is bf16 where a CUDA card computes with it, fp16 on older cards and fp32 elsewhere: autocast is
            slow on the CPU and not reliable on MPS.
        device: where the networks are.

    Raises:
        MNError: when the device cannot do what is wanted.
    """
    if wanted == "auto":
        return None if device.type != "cuda" else torch.bfloat16 if _has_bf16(device) else torch.float16
    if wanted == "fp32":
        return None
    if wanted == "fp16" and device.type != "cuda":
        raise MNError(f"precision is 'fp16', which needs a CUDA card, but the device is '{device}': use auto or fp32")
    if wanted == "bf16" and (device.type == "mps" or (device.type == "cuda" and not _has_bf16(device))):
        raise MNError(f"precision is 'bf16', with which the device '{device}' cannot compute: use auto or fp32")
    return torch.bfloat16 if wanted == "bf16" else torch.float16


def _has_bf16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= FIRST_WITH_BF16
