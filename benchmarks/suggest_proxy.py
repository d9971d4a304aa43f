"""A cheap look at suggestions: a linear segmenter in place of nnU-Net, trained on four cases in a second.

    python benchmarks/suggest_proxy.py DATASET_FOLDER --work FOLDER

DATASET_FOLDER is as for suggest.py. The segmenter is a ridge regression on features of the frozen 2D network, at every
voxel. Its Dice is measured on 30 other cases of the pool. Validation cases are not touched. It prints

- the Dice of 200 random sets of four, by quarters;
- Spearman's correlation of their Dice with how well they cover the pool: the mean distance to the nearest chosen case;
- where the Dice of the suggested four lies among the random sets, for the whole pool and for random halves of it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from suggest import LABELS, SPACING, pool_and_val, pool_features
from torch import Tensor
from torch.nn import functional

from nnunet_mn.bridge.cases.raw_images import RawImages
from nnunet_mn.config import MNConfig
from nnunet_mn.networks.adapter import to_pixels
from nnunet_mn.networks.build import load_backbone
from nnunet_mn.sandbox.dataset import read_volume
from nnunet_mn.suggesting import suggest

RANDOM_SETS, HALVES, JUDGED = 200, 16, 30
RIDGE = 1e-3  # of the mean variance of a feature
MAPS = 3  # of the backbone, the finest ones
Floats = NDArray[np.floating]


class Segmenters:
    """Linear segmenters trained on sets of cases. Every case is reduced to its sums of products once.

    Args:
        voxels: (V, F) features and (V,) labels of each case.
        judged: rows of the cases to segment.
    """

    def __init__(self, voxels: Sequence[tuple[Floats, NDArray[np.integer]]], judged: Sequence[int]) -> None:
        classes = range(1 + max(int(labels.max()) for _, labels in voxels))
        self.products = np.array([[x[y == k].T @ x[y == k] for k in classes] for x, y in voxels])  # (N, K, F, F)
        self.sums = np.array([[x[y == k].sum(axis=0) for k in classes] for x, y in voxels])  # (N, K, F)
        self.counts = np.array([[(y == k).sum() for k in classes] for _, y in voxels])  # (N, K)
        self.judged = {row: (voxels[row][0][::8], voxels[row][1][::8]) for row in judged}

    def dice(self, chosen: Sequence[int]) -> float:
        """The mean Dice over the classes and the judged cases that are not chosen."""
        counts = self.counts[list(chosen)].sum(axis=0)
        weights = 1 / np.sqrt(np.maximum(counts, 1))  # small classes count more, but less than large ones
        products = np.tensordot(weights, self.products[list(chosen)].sum(axis=0), axes=1)
        targets = (weights[:, None] * self.sums[list(chosen)].sum(axis=0)).T
        ridge = RIDGE * np.trace(products) / len(products) * np.eye(len(products))
        found = np.linalg.solve(products + ridge, targets)
        return float(np.mean([_dice(x @ found, y) for row, (x, y) in self.judged.items() if row not in chosen]))


def _dice(scores: Floats, labels: NDArray[np.integer]) -> float:
    predicted = scores.argmax(axis=1)
    pairs = [(predicted == k, labels == k) for k in range(1, scores.shape[1])]
    return float(np.mean([2 * (mine & true).sum() / max(1, mine.sum() + true.sum()) for mine, true in pairs]))


@torch.no_grad()
def voxels_of(raw: RawImages, case: str, backbone: torch.nn.Module, spacing: float) -> tuple[Floats, Floats]:
    """Features (V, F) and labels (V,) of a case at the spacing of the trainings."""
    image = torch.from_numpy(read_volume(raw.of_training_case(case)[0]).astype(np.float32))  # type: ignore[index]
    labels = torch.from_numpy(read_volume(raw.label_of(case)).astype(np.float32))
    size = [max(4, round(n * (1.25 if spacing > 2 else 1.0) / spacing)) for n in image.shape]
    image = functional.interpolate(((image - image.mean()) / image.std())[None, None], size=size, mode="trilinear")
    labels = functional.interpolate(labels[None, None], size=size, mode="nearest")
    slices = to_pixels(image[0, 0])[:, None].expand(-1, 3, -1, -1)
    big = functional.interpolate(slices, scale_factor=4, mode="bilinear")
    maps = [functional.interpolate(m, size=size[1:], mode="bilinear") for m in backbone(big)[:MAPS]]
    features = torch.cat([*maps, *_places(image)], dim=1).movedim(1, -1).flatten(0, 2)
    return features.numpy(), labels.flatten().long().numpy()


def _places(image: Tensor) -> list[Tensor]:
    """Position, its products, and smoothed intensities: (D, n, H, W) each."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in image.shape[2:]], indexing="ij")
    products = [a * b for i, a in enumerate(axes) for b in axes[i:]]
    smooth = [functional.avg_pool3d(image, k, 1, k // 2)[0, 0] for k in (1, 3, 7, 11)]
    return [torch.stack([*axes, *products, *smooth, torch.ones_like(axes[0])], dim=1)]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for features")
    arguments = parser.parse_args()
    dataset: Path = arguments.dataset
    pool, _ = pool_and_val(dataset)
    features = pool_features(dataset, pool, arguments.work / dataset.name)
    raw = RawImages(dataset, json.loads((dataset / "dataset.json").read_bytes()))
    backbone = load_backbone(MNConfig()).eval()
    voxels = [voxels_of(raw, case, backbone, SPACING[dataset.name][0]) for case in pool]
    everything = np.concatenate([x[::29] for x, _ in voxels])
    mean, spread = everything.mean(axis=0), everything.std(axis=0)
    scale = np.where(spread > 0, spread, 1)
    voxels = [((x - np.where(spread > 0, mean, 0)) / scale, y) for x, y in voxels]
    generator = np.random.default_rng(0)
    segmenters = Segmenters(voxels, generator.choice(len(pool), JUDGED, replace=False).tolist())
    sets = [generator.choice(len(pool), LABELS, replace=False) for _ in range(RANDOM_SETS)]
    dice = np.array([segmenters.dice(chosen) for chosen in sets])
    print(f"{dataset.name}: {len(pool)} cases; random sets: {np.quantile(dice, [0, 0.25, 0.5, 0.75, 1]).round(3)}")
    points = np.stack([features[case] for case in pool])
    points = (points - points.mean(axis=0)) / np.where(points.std(axis=0) > 0, points.std(axis=0), 1)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    coverage = [-distances[:, chosen].min(axis=1).mean() for chosen in sets]
    print(f"correlation of Dice and coverage: {spearmanr(coverage, dice).statistic:.2f}")

    def share_below(cases: Sequence[str]) -> float:
        """The share of random sets below the suggested four of these cases."""
        names = [one.case for one in suggest({case: features[case] for case in cases}, LABELS)]
        return float((dice < segmenters.dice([pool.index(name) for name in names])).mean())

    print(f"random sets below the suggested one: {share_below(pool):.0%} of them")
    halves = [share_below(generator.choice(pool, len(pool) // 2, replace=False).tolist()) for _ in range(HALVES)]
    print(f"the same from {HALVES} random halves of the pool: {', '.join(f'{share:.0%}' for share in halves)}")
    print(f"mean of these: {np.mean(halves):.0%} (random choice: 50%)", end="; ")
    print(f"in the lowest quarter: {np.mean(np.array(halves) < 0.25):.0%} (random choice: 25%)", flush=True)


if __name__ == "__main__":
    main()
