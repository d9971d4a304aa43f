"""The planner's memory estimate against the peak of a real co-training step, in each of its two phases.

Usage: python benchmarks/memory.py [--device cuda] [--patch D H W] [--batch N]

On the CPU nothing runs in half precision. There it compares the tensors of the step alone, in fp32, by the allocations
in torch's profiler. On a GPU it compares the whole estimate with the memory reserved by torch.
"""

import argparse
import math
import time
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch.profiler import ProfilerActivity, profile

from nnunet_mn.bridge.planning.cost import (
    SHARE_OF_TRANSIENTS,
    PlanCost,
    largest_view,
    loss_bytes,
    network_2d_cost,
    network_3d_cost,
    views,
)
from nnunet_mn.bridge.training import assembly
from nnunet_mn.config import MNConfig
from nnunet_mn.cotraining import CoTrainer
from nnunet_mn.memory import GIB
from nnunet_mn.networks import build_network_2d
from nnunet_mn.networks.precision import hold_frozen_weights
from nnunet_mn.ranks import ALONE, Ranks
from nnunet_mn.slices import SliceSampler
from nnunet_mn.targets import LabelSpace

LABELS = LabelSpace(num_channels=3)
SPACING = (1.0, 1.0, 1.0)


def architecture(features: int, stages: int) -> dict[str, Any]:
    """nnU-Net's plain U-Net."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages, "features_per_stage": [min(320, features * 2**i) for i in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv3d", "kernel_sizes": [[3] * 3] * stages,
            "strides": [[1] * 3] + [[2] * 3] * (stages - 1), "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip


def build(
    config: MNConfig, planned: dict[str, Any], device: torch.device, *, ranks: Ranks = ALONE, compiled: bool = False
) -> CoTrainer:
    """Both networks as the trainer holds them."""
    described = (planned["network_class_name"], planned["arch_kwargs"], planned["_kw_requires_import"])
    network = get_network_from_plans(*described, 1, LABELS.num_channels, deep_supervision=True).to(device)
    stages = planned["arch_kwargs"]["n_stages"]
    parts = assembly.StockParts(
        network=torch.compile(network) if compiled else network,
        optimizer=torch.optim.AdamW(network.parameters(), 1e-3),
        scaler=torch.amp.GradScaler("cuda") if device.type == "cuda" else None,
        deep_supervision_weights=tuple(1 / 2**i for i in range(stages - 1)),
        batch_dice=True,
        labels=LABELS,
        device=device,
        ranks=ranks,
    )
    return assembly.build_cotraining(config, parts, in_channels=1, spacing=SPACING)


def batch_of(patch: tuple[int, ...], size: int, scales: int, device: torch.device) -> tuple[torch.Tensor, list[Any]]:
    """Noise and masks at every scale."""
    sizes = [tuple(n // 2**i for n in patch) for i in range(scales)]
    masks = [torch.randint(0, 3, (size, 1, *shape), device=device).to(torch.int16) for shape in sizes]
    return torch.randn(size, 1, *patch, device=device), masks


def measure_cpu(cotrainer: CoTrainer, volumes: torch.Tensor, masks: list[torch.Tensor]) -> tuple[float, float]:
    """Peak bytes of a step's tensors, before and after the 2D network begins to learn."""
    between: list[int] = []
    train_2d = cotrainer._train_2d

    def noting(*arguments: Any) -> None:
        between.append(time.time_ns())
        train_2d(*arguments)

    noted = patch.object(cotrainer, "_train_2d", noting)
    with noted, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        cotrainer.step(volumes, masks, 1)
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, peaks = 0, [0, 0]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        phase = int(event.start_ns() > between[0])
        peaks[phase] = max(peaks[phase], held)
    return peaks[0], peaks[1]


def measure_cuda(cotrainer: CoTrainer, volumes: torch.Tensor, masks: list[torch.Tensor]) -> float:
    """GiB of the card in use after a step."""
    cotrainer.step(volumes, masks, 1)
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patch", type=int, nargs=3, default=(32, 64, 64))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--slices", type=int, default=None)
    arguments = parser.parse_args()
    device, size = torch.device(arguments.device), tuple(arguments.patch)
    config = MNConfig(backbone=arguments.backbone, slices_per_forward=arguments.slices)
    planned = architecture(arguments.features, arguments.stages)
    on_cpu = device.type == "cpu"
    sample, weights = network_3d_cost(
        planned, size, channels=1, labels=LABELS, config=config, precision=torch.float32 if on_cpu else torch.bfloat16
    )
    seen = views(size, assembly.slice_axes(config, SPACING))
    network = build_network_2d(config, in_channels=1, num_classes=LABELS.num_channels)
    largest = largest_view(seen, network.input_pixels)
    if not on_cpu:
        hold_frozen_weights(network, torch.bfloat16)
    cost = PlanCost(
        patch_size=size,
        batch_size=arguments.batch,
        views=seen,
        largest=largest,
        classes=LABELS.num_channels,
        sample=sample,
        weights_3d=weights,
        slice=network_2d_cost(network, largest[1:], channels=1, precision=None if on_cpu else torch.bfloat16),
        loss_2d=loss_bytes(largest, labels=LABELS, config=config),
        config=config,
    )
    del network
    torch.manual_seed(0)
    slices = arguments.slices or cost.most_slices
    cotrainer = build(replace(config, slices_per_forward=slices), planned, device)
    cotrainer.sampler = SliceSampler(axes=(seen.index(largest),), step=config.slice_step)
    volumes, masks = batch_of(size, arguments.batch, arguments.stages - 1, device)
    cotrainer.step(volumes, masks, 1)  # gradients and optimizer states are there from now on
    print(f"{arguments.backbone}, patch {size}, batch {arguments.batch}, {slices} slices in flight, {device}")
    if not on_cpu:
        estimate = max(cost.phase_3d_gib(slices), cost.phase_2d_gib(slices))
        measured = measure_cuda(cotrainer, volumes, masks)
        print(f"estimate {estimate:.2f} GiB, measured {measured:.2f} GiB ({estimate / measured - 1:+.0%})")
        return
    probabilities = 4 * (arguments.batch - 1) * LABELS.num_channels * math.prod(size)
    at_once = min(slices, cost.slices[0])
    estimates = (
        arguments.batch * sample.saved + 2 * probabilities,
        at_once * cost.slice.cost.saved + cost.slice.fixed + probabilities + arguments.batch * cost.loss_2d,
    )
    for name, estimate, peak in zip(("3D", "2D"), estimates, measure_cpu(cotrainer, volumes, masks), strict=True):
        estimate *= 1 + SHARE_OF_TRANSIENTS
        print(
            f"phase that trains the {name} network: estimate {estimate / 2**20:.0f} MiB, measured {peak / 2**20:.0f} "
            f"MiB ({estimate / peak - 1:+.0%})"
        )


if __name__ == "__main__":
    main()
