"""The CPUs that this process may use, and how torch uses them."""

import os

import torch


def cpu_count() -> int:
    """CPUs that this process may use, which a cluster's job often has fewer of than the machine."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare_torch() -> None:
    """Make trainings on the CPU fast: no more threads than CPUs, which nnU-Net asks of the machine, not of the job.

    Gradients of confident predictions are denormal numbers, with which a step takes up to three times as long: they
    are flushed to zero. Threads inherit this from the one that calls first.
    """
    torch.set_num_threads(min(torch.get_num_threads(), cpu_count()))
    torch.set_flush_denormal(True)
