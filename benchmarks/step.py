"""Time a co-training step against its parts alone and nnU-Net's own step, and a mixed batch against a stock one.

    python benchmarks/step.py [--device cuda] [--backbone efficientnet-lite0]

All times of a round are taken one after the other and compared within the round: a drift of the machine's speed then
changes both sides. The last line has medians over the rounds.

- `step_ratio`: a step of half unlabeled samples against the sum of its parts.
- `over_stock`: the same step against nnU-Net's on as many labeled samples.
- `on_top_over_stock`: the mean step of a training with unlabeled samples on top of the batch, against nnU-Net's.
- `loader_ratio`: the loader against nnU-Net's.
"""

import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import torch
import typer
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunet_mn.bridge.training import assembly, loader
from nnunet_mn.config import Layer, environment_layer, resolve
from nnunet_mn.cotraining import CoTrainer
from nnunet_mn.ranks import ALONE
from nnunet_mn.schedule import HalfUnlabeled, Schedule, UnlabeledCounts
from nnunet_mn.slices import every_nth_slice
from nnunet_mn.targets import LabelSpace, combine, combine_scales
from nnunet_mn.teaching import pseudo_mask

CLASSES = 3
SCALES = (1, 2, 4)
LABELS = LabelSpace(num_channels=CLASSES)


def build_cotrainer(backbone: str, device: torch.device) -> CoTrainer:
    """A co-trainer with a plain U-Net of 16 to 128 features in place of a planned one."""
    layers = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}, "conv_bias": True}
    layers |= {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True}
    network = PlainConvUNet(1, 4, (16, 32, 64, 128), nn.Conv3d, 3, (1, 2, 2, 2), 2, CLASSES, 2, **layers).to(device)
    parts = assembly.StockParts(
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), 1e-3),
        scaler=torch.amp.GradScaler("cuda") if device.type == "cuda" else None,
        deep_supervision_weights=(4 / 7, 2 / 7, 1 / 7),
        batch_dice=False,
        labels=LABELS,
        device=device,
        ranks=ALONE,
    )
    config = resolve(Layer("the command line", {"backbone": backbone, "seed": 0}), environment_layer())
    return assembly.build_cotraining(config, parts, in_channels=1, spacing=(1.0, 1.0, 1.0))


def step_and_parts(
    trainer: CoTrainer,
    volumes: torch.Tensor,
    targets: list[torch.Tensor],
    n_labeled: int,
    unlabeled_weight: float | None = None,
) -> dict[str, Callable[[], object]]:
    """The step and its parts, each as a function without arguments. The parts take the batch as a whole."""
    net_3d, net_2d = trainer.student_3d.network, trainer.student_2d.network
    unlabeled = volumes[n_labeled:]
    guess = torch.full((len(unlabeled), CLASSES, *volumes.shape[2:]), 1 / CLASSES, device=volumes.device)

    def teach(network: nn.Module) -> None:
        with trainer.autocast():
            pseudo_mask(network, unlabeled, LABELS)

    def learn_3d() -> None:
        with trainer.autocast():
            outputs = net_3d(volumes)
        trainer.student_3d.learn(outputs, combine_scales(targets, guess, LABELS))
        trainer.student_3d.update()

    def learn_2d() -> None:
        slices, mask, pseudo = (every_nth_slice(v, trainer.sampler.step, 0) for v in (volumes, targets[0], guess))
        with trainer.autocast():
            outputs = net_2d(slices)
        trainer.student_2d.learn(outputs, [combine(mask, pseudo, LABELS)])
        trainer.student_2d.update()

    return {
        "step": lambda: trainer.step(volumes, targets, n_labeled, unlabeled_weight=unlabeled_weight),
        "3D teacher forward": lambda: teach(net_3d),
        "2D teacher forward": lambda: teach(net_2d),
        "3D forward, backward, update": learn_3d,
        "2D forward, backward, update": learn_2d,
    }


def steps_on_top(
    trainer: CoTrainer, volumes: torch.Tensor, targets: list[torch.Tensor], batch_size: int
) -> dict[int, Callable[[], object]]:
    """A step with each number of unlabeled samples that a training has on top of the batch."""

    def step(number: int) -> object:
        last = batch_size + number
        return trainer.step(
            volumes[:last], [t[:last] for t in targets], batch_size, unlabeled_weight=number / batch_size
        )

    return {number: partial(step, number) for number in sorted(numbers_on_top(batch_size))}


def numbers_on_top(batch_size: int) -> Counter[int]:
    """The numbers of unlabeled samples on top of a batch, and in how many of 1,000 steps each comes."""
    config = resolve(environment_layer(), Layer("this script", {"batch": "add"}))
    counts = UnlabeledCounts.from_config(config, Schedule.of(config, total=1000), batch_size=batch_size)
    return Counter(counts.of(iteration) for iteration in range(1000))


def stock_step(
    network: nn.Module, volumes: torch.Tensor, targets: list[torch.Tensor], weights: tuple[float, ...]
) -> Callable[[], object]:
    """nnU-Net's own step on a labeled batch, as a function. Its trainer's method asks for five attributes alone."""
    device = volumes.device
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False}
    loss = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
    trainer = SimpleNamespace(
        network=network,
        device=device,
        optimizer=torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5),
        loss=DeepSupervisionWrapper(loss, weights),
        grad_scaler=torch.amp.GradScaler("cuda") if device.type == "cuda" else None,
    )
    return lambda: nnUNetTrainer.train_step(trainer, {"data": volumes, "target": targets})


def seconds(run: Callable[[], object], device: torch.device, *, calls: int = 1) -> float:
    """Mean time of some calls."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def loaders(folder: Path, patch: tuple[int, int, int], batch_size: int) -> tuple[nnUNetDataLoader, loader.MixedLoader]:
    """A stock loader and ours at half unlabeled, over preprocessed cases written to a folder, as stock augments."""
    rng, names = np.random.default_rng(0), {"labeled": [], "unlabeled": []}
    for kind in names:
        (folder / kind).mkdir()
        for i in range(8):
            shape = [n + int(rng.integers(8)) for n in patch]
            image = rng.normal(size=(1, *shape)).astype(np.float32)
            seg = (rng.random((1, *shape)) > 0.9).astype(np.int16) * (kind == "labeled")
            locations = {c: np.argwhere(seg == c)[:1000] if c == 1 else [] for c in (1, 2)}
            names[kind].append(f"{kind}_{i}")
            chunks = {"chunks": image.shape, "blocks": image.shape, "chunks_seg": seg.shape, "blocks_seg": seg.shape}
            nnUNetDatasetBlosc2.save_case(
                image, seg, {"class_locations": locations}, str(folder / kind / names[kind][-1]), **chunks
            )
    labeled, unlabeled = (nnUNetDatasetBlosc2(str(folder / kind)) for kind in names)
    common = {
        "patch_size": [int(n * 1.3) for n in patch],
        "final_patch_size": patch,
        "label_manager": LabelManager({"background": 0, "a": 1, "b": 2}, None),
        "oversample_foreground_percent": 0.33,
        "transforms": nnUNetTrainer.get_training_transforms(
            patch, (-0.5, 0.5), [[1 / s] * 3 for s in SCALES], (0, 1, 2), False, use_mask_for_norm=[False]
        ),
    }
    mixed = loader.MixedLoader(
        loader.MixedCases(labeled, unlabeled),
        counts=UnlabeledCounts(HalfUnlabeled(total=1, supervised=0), batch_size=batch_size, batch="replace"),
        part=range(batch_size),
        first=0,
        workers=0,
        foreground_share=common["oversample_foreground_percent"],
        **common,
    )
    return nnUNetDataLoader(labeled, batch_size, **common), mixed


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    backbone: Annotated[str, typer.Option(help="the 2D network")] = "efficientnet-lite0",
    patch: Annotated[tuple[int, int, int], typer.Option(help="voxels along each axis")] = (40, 56, 40),
    batch: Annotated[int, typer.Option(help="samples in a batch, half of them unlabeled")] = 4,
    rounds: Annotated[int, typer.Option(help="rounds that count, after one that does not")] = 7,
) -> None:
    """Print times and ratios; options of the method are taken from nnUNet_mn_<field>."""
    torch.manual_seed(0)
    where = torch.device(device)
    trainer = build_cotrainer(backbone, where)
    volumes = torch.randn(2 * batch, 1, *patch, device=where)
    targets = [torch.randint(0, CLASSES, (2 * batch, 1, *(n // s for n in patch)), device=where) for s in SCALES]
    planned = (volumes[:batch], [target[:batch] for target in targets])
    timed = step_and_parts(trainer, *planned, n_labeled=batch // 2)
    parts = [name for name in timed if name != "step"]
    on_top = {f"step, {number} on top": run for number, run in steps_on_top(trainer, volumes, targets, batch).items()}
    stock_name = "nnU-Net's step, all labeled"
    timed |= on_top | {stock_name: stock_step(deepcopy(trainer.student_3d.network), *planned, (4 / 7, 2 / 7, 1 / 7))}
    times: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        times.append({name: seconds(run, where) for name, run in timed.items()})
    times = times[1:]
    for name in timed:
        print(f"{name:30} {1000 * statistics.median(t[name] for t in times):9.1f} ms")
    ratio = statistics.median(t["step"] / sum(t[name] for name in parts) for t in times)
    over_stock = statistics.median(t["step"] / t[stock_name] for t in times)
    in_1000 = [number for _, number in sorted(numbers_on_top(batch).items())]
    on_top_over_stock = statistics.median(
        sum(n * t[name] for n, name in zip(in_1000, on_top, strict=True)) / 1000 / t[stock_name] for t in times
    )

    with tempfile.TemporaryDirectory() as folder:
        stock, mixed = loaders(Path(folder), patch, batch)
        pairs = [
            [seconds(lambda it=it: next(it), torch.device("cpu"), calls=10) for it in (mixed, stock)]
            for _ in range(rounds + 1)
        ][1:]
    for i, name in enumerate(("mixed batch", "stock batch")):
        print(f"{name:30} {1000 * statistics.median(pair[i] for pair in pairs):9.1f} ms")
    print(f"{'peak memory, process':30} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:9.2f} GiB")
    if where.type == "cuda":
        print(f"{'peak memory, GPU':30} {torch.cuda.max_memory_allocated() / 2**30:9.2f} GiB")
    loader_ratio = statistics.median(a / b for a, b in pairs)
    print(
        f"step_ratio {ratio:.3f} over_stock {over_stock:.3f} on_top_over_stock {on_top_over_stock:.3f} "
        f"loader_ratio {loader_ratio:.3f}"
    )


if __name__ == "__main__":
    typer.run(main)
