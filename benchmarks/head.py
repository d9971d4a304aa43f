"""Time the 2D network with its head as it is, against the head that resizes all features before it classifies them.

    python benchmarks/head.py [--size 128 128]

Times are of the process, not of the clock: other processes may run. Ratios are medians over rounds.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from torch import Tensor, nn

from nnunet_mn.bridge.planning.measure import slice_cost
from nnunet_mn.config import MNConfig
from nnunet_mn.device import prepare_torch
from nnunet_mn.networks import build_network_2d
from nnunet_mn.networks.heads import FeatureHead, resize


def resize_first(head: FeatureHead, enlarged: Tensor, slices: Tensor) -> Tensor:
    """Classify after the resizing, in one convolution."""
    logits: Tensor = head.classify(torch.cat([resize(enlarged, slices.shape[-2:]), slices], dim=1))
    return logits


def student(network: nn.Module, slices: Tensor) -> None:
    """A training pass."""
    network(slices).float().log_softmax(1)[:, 1].mean().backward()
    network.zero_grad(set_to_none=True)


def teacher(network: nn.Module, slices: Tensor) -> None:
    """A pass without a gradient."""
    with torch.no_grad():
        network(slices)


def seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main(
    size: Annotated[tuple[int, int], typer.Option(help="voxels of a slice")] = (128, 128),
    slices: Annotated[int, typer.Option(help="slices in flight")] = 16,
    rounds: int = 7,
    backbone: str = "efficientnet-lite0",
) -> None:
    """Print ratios, and the memory of a slice under a card's autocast."""
    prepare_torch()
    torch.manual_seed(0)
    network = build_network_2d(MNConfig(backbone=backbone), in_channels=1, num_classes=3)
    images = torch.randn(slices, 1, *size)
    print(f"{backbone}, {slices} slices of {size[0]}x{size[1]}")
    for run in (student, teacher):
        ratios = []
        for _ in range(rounds + 1):
            now = seconds(lambda run=run: run(network, images))
            with patch.object(FeatureHead, "_classify", resize_first):
                ratios.append(now / seconds(lambda run=run: run(network, images)))
        print(f"{run.__name__}: {statistics.median(ratios[1:]):.2f} of the time")
    now = slice_cost(network, (1, *size), precision=torch.bfloat16)[0].saved
    with patch.object(FeatureHead, "_classify", resize_first):
        before = slice_cost(network, (1, *size), precision=torch.bfloat16)[0].saved
    print(f"memory of a slice in training: {now / before:.2f}")


if __name__ == "__main__":
    typer.run(main)
