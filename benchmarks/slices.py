"""Peak memory and time of the 2D network by `slices_per_forward`, for LoRA, full and frozen encoders.

    python benchmarks/slices.py [--device cuda] [--backbone efficientnet-lite0]

Every row runs in a process of its own, since a process never gives back its peak. The ratios are to the first row.
"""

import resource
import time
from multiprocessing import get_context
from typing import Annotated

import torch
import typer

from nnunet_mn.config import Layer, resolve
from nnunet_mn.device import prepare_torch
from nnunet_mn.networks import build_network_2d
from nnunet_mn.slices import SliceWise

MEGABYTE = 2**20


def measure(
    backbone: str, adaptation: str, slices_per_forward: int, shape: tuple[int, ...], device: str
) -> tuple[float, float, float]:
    """Seconds of a student step and of a teacher pass, and the peak memory in MB added by both."""
    prepare_torch()
    torch.manual_seed(0)
    config = resolve(Layer("the command line", {"backbone": backbone, "adaptation": adaptation}))
    network = build_network_2d(config, in_channels=shape[1], num_classes=3).to(device)
    optimizer = torch.optim.AdamW(network.parameter_groups(lr=1e-3, weight_decay=0.01))
    slice_wise = SliceWise(network, slices_per_forward=slices_per_forward)
    volumes = torch.randn(shape, device=device)
    before = _peak(device)
    times: list[tuple[float, float]] = []
    for _ in range(3):
        start = time.perf_counter()
        slice_wise(volumes)[0].softmax(1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)
        middle = time.perf_counter()
        with torch.no_grad():
            slice_wise(volumes)
        _wait(device)
        times.append((middle - start, time.perf_counter() - middle))
    student, teacher = (min(column) for column in zip(*times, strict=True))
    return student, teacher, (_peak(device) - before) / MEGABYTE


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak(device: str) -> float:
    """Bytes, at most, so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def main(
    backbone: str = "efficientnet-lite0",
    device: str = "cpu",
    batch: int = 2,
    depth: int = 40,
    height: int = 56,
    width: int = 40,
    chunks: Annotated[list[int] | None, typer.Option(help="Values of slices_per_forward.")] = None,
) -> None:
    shape = (batch, 1, depth, height, width)
    print(f"{backbone}, volumes {shape}, {device}")
    print("| adaptation | slices_per_forward | student ms (ratio) | teacher ms (ratio) | peak MB (ratio) |")
    print("|---|---|---|---|---|")
    for adaptation in ("full", "lora", "frozen"):
        first: tuple[float, float, float] | None = None
        for chunk in chunks or (batch * depth, batch * depth // 4, batch * depth // 10):
            with get_context("spawn").Pool(1) as pool:
                row = pool.apply(measure, (backbone, adaptation, chunk, shape, device))
            first = first or row
            student, teacher, peak = (f"{a:.2f}" for a in (x / y for x, y in zip(row, first, strict=True)))
            print(
                f"| {adaptation} | {chunk} | {row[0] * 1e3:.0f} ({student}) | {row[1] * 1e3:.0f} ({teacher}) "
                f"| {row[2]:.0f} ({peak}) |",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
