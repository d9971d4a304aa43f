"""The CPUs of this process, and torch's use of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from packaging.version import Version

from nnunet_mn.config import Precision
from nnunet_mn.errors import MNError


def cpu_count() -> int:
    """CPUs for this process. A job on a cluster often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare_torch() -> None:
    """Make trainings on the CPU fast: no more threads than CPUs of the job, and no denormal numbers.

    nnU-Net counts the machine's CPUs instead. Gradients of confident predictions are denormal: a step with them takes
    up to three times as long. They are flushed to zero. Threads inherit this from the first caller.
    """
    torch.set_num_threads(min(torch.get_num_threads(), cpu_count()))
    torch.set_flush_denormal(True)


def check_device(device: torch.device) -> None:
    """Raise an MNError if this machine does not have the device of nnU-Net's `-device`."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device.type, True):
        where = "`nvidia-smi` lists one and torch is built for its driver"
        raise MNError(
            f"-device is '{device.type}' (nnU-Net's default is cuda), but torch finds no such GPU: use -device cpu, or "
            f"run where {'there is an Apple GPU' if device.type == 'mps' else where}"
        )


def check_is_card(device: torch.device, wanted_by: str) -> None:
    """Raise an MNError if nnU-Net's `-device` is not a CUDA card."""
    if device.type != "cuda":
        raise MNError(f"{wanted_by} times a CUDA card, but -device is '{device.type}': run it with -device cuda")


def fused(device: torch.device) -> bool | None:
    """The option `fused` of torch's optimizers: one kernel in place of hundreds on CUDA. Elsewhere torch decides."""
    return True if device.type == "cuda" else None


def choose_device(name: str | None) -> torch.device:
    """The device of this name. Without a name it is a GPU if there is one, else the CPU.

    Raises:
        MNError: when the name is none of cuda, cpu and mps, or this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cuda", "cpu", "mps"):
        raise MNError(f"-device is '{name}', but must be cuda, cpu or mps")
    check_device(torch.device(name))
    return torch.device(name)


@contextmanager
def without_search() -> Iterator[None]:
    """Let cuDNN choose its convolutions by rules, in forward and backward passes inside of this context.

    nnU-Net lets cuDNN try all of them for each new size of a batch, which pays where each batch has the same size. The
    2D network sees slices along three axes of any number of unlabeled samples. On an H200 each further unlabeled sample
    then cost 40 to 50 seconds (benchmarks/results/gpu.md).
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def compile_anew() -> None:
    """Let this process take no compiled training step from torch's cache on disk, where the cache mixes up precisions.

    From 2.7 to 2.12 torch finds a step by whether autocast is on, not by its type (`AOTAutogradCacheDetails`). M&N in
    bf16 would run a step that stock nnU-Net had compiled in fp16 for the same plans. It would then lack nnU-Net's
    scaling of the loss, and small gradients would be 0. The code of single graphs is still taken from disk.
    """
    if (2, 7) <= Version(torch.__version__).release < (2, 13):
        from torch._functorch import config

        config.enable_autograd_cache = False


FIRST_WITH_BF16 = (8, 0)  # compute capability: NVIDIA Ampere


def autocast_type(wanted: Precision, device: torch.device) -> torch.dtype | None:
    """The type for autocast on a device, or None for fp32 throughout.

    Args:
        wanted: `auto` is bf16 on CUDA cards with bf16, fp16 on older cards and fp32 elsewhere. Autocast is slow on the
            CPU and not reliable on MPS.
        device: of the networks.

    Raises:
        MNError: when the device lacks the wanted type.
    """
    if wanted == "auto":
        return None if device.type != "cuda" else torch.bfloat16 if _has_bf16(device) else torch.float16
    if wanted == "fp32":
        return None
    if wanted == "fp16" and device.type != "cuda":
        raise MNError(f"precision is 'fp16', which needs a CUDA card, but the device is '{device}': use auto or fp32")
    if wanted == "bf16" and (device.type == "mps" or (device.type == "cuda" and not _has_bf16(device))):
        raise MNError(f"precision is 'bf16', but the device '{device}' cannot compute in bf16: use auto or fp32")
    return torch.bfloat16 if wanted == "bf16" else torch.float16


def _has_bf16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= FIRST_WITH_BF16
