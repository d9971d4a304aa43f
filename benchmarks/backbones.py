"""Train the 2D network alone on a few labeled volumes, in several ways, and compare the Dice on validation volumes.

    python benchmarks/backbones.py DATASET_FOLDER [--seeds 3] [--updates 300] [--only pretrained-full ...]

DATASET_FOLDER is a raw nnU-Net dataset with few labeled cases in the first fold of its splits_final.json. All runs of a
seed see the same batches. Writes benchmarks/results/backbones.md.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import SimpleITK
import torch
import typer
from torch import Tensor, nn

from nnunet_mn.config import MNConfig
from nnunet_mn.device import prepare_torch
from nnunet_mn.losses import SoftTargetLoss
from nnunet_mn.networks import Network2D, build_network_2d
from nnunet_mn.networks.adaptation import BatchStatistics
from nnunet_mn.targets import LabelSpace

BLOCK = 8  # slices are padded to a multiple: those of different volumes must fit one batch
SHIFT = 4  # voxels of a batch's random shift, at most


@dataclass(frozen=True)
class Variant:
    """One way to train: fields of MNConfig, and other changes."""

    fields: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = True
    raw_intensities: bool = False
    batch_statistics: BatchStatistics = "frozen"
    freeze_statistics_after: float | None = None  # share of the updates
    full_rate: bool = False  # the encoder learns as fast as the head; else at the tenth that suits pretrained weights


VARIANTS = {
    "pretrained-full": Variant({"adaptation": "full"}),
    "random-full": Variant({"adaptation": "full"}, pretrained=False, batch_statistics="adapt"),
    "random-full-rate": Variant({"adaptation": "full"}, pretrained=False, batch_statistics="adapt", full_rate=True),
    "pretrained-lora": Variant({"adaptation": "lora"}),
    "pretrained-frozen": Variant({"adaptation": "frozen"}),
    "intensities-as-they-are": Variant({"adaptation": "full"}, raw_intensities=True),
    "statistics-adapt": Variant({"adaptation": "full"}, batch_statistics="adapt"),
    "statistics-adapt-then-freeze": Variant(
        {"adaptation": "full"}, batch_statistics="adapt", freeze_statistics_after=0.125
    ),
}


class RawAdapter(nn.Module):
    """Intensities as they are, repeated to three channels by the adapter's own learned mix."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, slices: Tensor) -> Tensor:
        return self.mix(slices)


def load_volumes(folder: Path, cases: list[str], size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """Z-scored images (D, 1, H, W) and labels (D, 1, H, W) of the cases, padded with zeros."""
    ending = json.loads((folder / "dataset.json").read_text())["file_ending"]
    volumes = []
    for case in cases:
        image = _read(folder / "imagesTr" / f"{case}_0000{ending}", np.float32)
        labels = _read(folder / "labelsTr" / f"{case}{ending}", np.int64)
        missing = [(0, 0), *((0, n - s) for n, s in zip(size, labels.shape[1:], strict=True))]
        image, labels = np.pad((image - image.mean()) / image.std(), missing), np.pad(labels, missing)
        volumes.append((torch.from_numpy(image)[:, None], torch.from_numpy(labels)[:, None]))
    return volumes


def _read(path: Path, kind: Any) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(kind)


def common_size(folder: Path, cases: list[str]) -> tuple[int, int]:
    """A slice size, in voxels, large enough for the slices of all cases."""
    ending = json.loads((folder / "dataset.json").read_text())["file_ending"]
    reader, sizes = SimpleITK.ImageFileReader(), []
    for case in cases:
        reader.SetFileName(str(folder / "labelsTr" / f"{case}{ending}"))
        reader.ReadImageInformation()
        sizes.append(reader.GetSize()[1::-1])
    height, width = (-(-max(side) // BLOCK) * BLOCK for side in zip(*sizes, strict=True))
    return height, width


def batches(volumes: list[tuple[Tensor, Tensor]], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random slices with random contrast, noise and shift."""
    images, labels = (torch.cat(parts) for parts in zip(*volumes, strict=True))
    rng = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(images), (size,), generator=rng)
        shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=rng).tolist()
        contrast = 0.75 + 0.5 * torch.rand(size, 1, 1, 1, generator=rng)
        brightness = 0.2 * torch.randn(size, 1, 1, 1, generator=rng)
        noise = 0.1 * torch.randn(images[chosen].shape, generator=rng)
        moved = images[chosen].roll(shift, dims=(-2, -1)) * contrast + brightness + noise
        yield moved, labels[chosen].roll(shift, dims=(-2, -1))


def build(variant: Variant, backbone: str, num_classes: int, seed: int) -> Network2D:
    torch.manual_seed(seed)
    config = MNConfig(backbone=backbone, **variant.fields)
    network = build_network_2d(
        config, in_channels=1, num_classes=num_classes, batch_statistics=variant.batch_statistics
    )
    if not variant.pretrained:
        for module in network.backbone.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    if variant.raw_intensities:
        network.adapter = RawAdapter(network.adapter.mix)
    return network


def train(
    network: Network2D, variant: Variant, data: Iterator[tuple[Tensor, Tensor]], *, updates: int, labels: LabelSpace
) -> None:
    """AdamW with nnU-Net's poly schedule, the loss of M&N on labeled samples."""
    groups = network.parameter_groups(lr=MNConfig().lr_2d, weight_decay=0.01)
    optimizer = torch.optim.AdamW(
        [{**group, "lr": MNConfig().lr_2d} for group in groups] if variant.full_rate else groups
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: (1 - update / updates) ** 0.9)
    loss = SoftTargetLoss(batch_dice=True)  # many slices lack a class
    network.train()
    for update in range(updates):
        if variant.freeze_statistics_after is not None and update >= variant.freeze_statistics_after * updates:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        slices, target = next(data)
        optimizer.zero_grad()
        loss(network(slices), labels.encode(target)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        schedule.step()


def evaluate(network: Network2D, volumes: list[tuple[Tensor, Tensor]], num_classes: int) -> float:
    """Mean Dice over classes and volumes."""
    network.eval()
    scores = []
    with torch.no_grad():
        for image, labels in volumes:
            predicted = network(image).argmax(1, keepdim=True)
            for label in range(1, num_classes):
                ours, truth = predicted == label, labels == label
                scores.append(2 * (ours & truth).sum().item() / max(1, (ours.sum() + truth.sum()).item()))
    return statistics.mean(scores)


def main(
    dataset: Path,
    seeds: int = 3,
    updates: int = 300,
    batch: int = 20,
    val_cases: int = 20,
    backbone: str = "efficientnet-lite0",
    only: Annotated[list[str] | None, typer.Option()] = None,
) -> None:
    prepare_torch()
    fold = json.loads((dataset / "splits_final.json").read_text())[0]
    classes = len(json.loads((dataset / "dataset.json").read_text())["labels"])
    labels = LabelSpace(num_channels=classes)
    size = common_size(dataset, fold["train"] + fold["val"][:val_cases])
    labeled = load_volumes(dataset, fold["train"], size)
    val = load_volumes(dataset, fold["val"][:val_cases], size)
    lines = [
        f"2D network `{backbone}` alone, {len(labeled)} labeled volumes, {updates} updates of {batch} slices "
        f"{size[0]}x{size[1]}, mean Dice on {len(val)} validation volumes, {seeds} seeds.\n",
        "| variant | mean Dice | each seed | trained | s per update |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in only or VARIANTS:
        dice, trained, seconds = [], 0, 0.0
        for seed in range(seeds):
            network = build(VARIANTS[name], backbone, classes, seed)
            trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
            start = time.perf_counter()
            train(network, VARIANTS[name], batches(labeled, batch, seed), updates=updates, labels=labels)
            seconds += time.perf_counter() - start
            dice.append(evaluate(network, val, classes))
        each = ", ".join(f"{score:.3f}" for score in dice)
        lines.append(
            f"| {name} | {statistics.mean(dice):.3f} | {each} | {trained / 1e6:.2f} M | "
            f"{seconds / seeds / updates:.2f} |"
        )
        print(lines[-1], flush=True)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "backbones.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
