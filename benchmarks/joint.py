"""Times a window of the joint model against the 3D network alone, on one CPU thread.

    python benchmarks/joint.py

Both are timed in turn and compared within a round. The last column is the median of the ratios.
"""

import statistics
import time

import torch
from memory import architecture

from nnunet_mn.config import MNConfig
from nnunet_mn.device import prepare_torch
from nnunet_mn.networks import build_network_2d
from nnunet_mn.networks.joint import Joint

ROUNDS = 5
CLASSES = 3
# channels of the finest stage, stages, and the window in voxels
SIZES = ((12, 4, (16, 40, 40)), (32, 5, (64, 64, 64)))


def seconds(network: torch.nn.Module, window: torch.Tensor) -> float:
    """The time of one pass."""
    start = time.perf_counter()
    with torch.no_grad():
        network(window)
    return time.perf_counter() - start


def main() -> None:
    """Print a line for each size and number of axes."""
    prepare_torch()
    torch.set_num_threads(1)
    spec = build_network_2d(MNConfig(), in_channels=1, num_classes=CLASSES).spec.to_json()
    for features, stages, size in SIZES:
        for axes in ((0,), (0, 1, 2)):
            plan = architecture(features, stages)
            joint = Joint(1, CLASSES, network_3d=plan, network_2d=spec, axes=axes, regions=False).eval()
            window = torch.randn(1, 1, *size)
            ratios = [seconds(joint, window) / seconds(joint.network_3d, window) for _ in range(ROUNDS + 1)][1:]
            named = f"{features} channels, {stages} stages, window {'x'.join(map(str, size))}, {len(axes)} axes"
            print(f"{named:60} {statistics.median(ratios):6.1f}", flush=True)


if __name__ == "__main__":
    main()
