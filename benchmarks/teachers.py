"""The quality of the pseudo-masks in a benchmark's trainings: the Dice of each teacher, on cases unseen by it.

Usage: python benchmarks/teachers.py WORK/runs/NAME > benchmarks/results/teachers.txt

WORK is the folder of `accuracy.py run --work`, NAME one of its lengths and settings. Every finished training there of
`nnUNetTrainerMN` is loaded. Both networks predict the `tune` half of the fold's validation cases as they were
preprocessed, whole, without mirroring. A second table has the Dice of both during the training, from nnU-Net's log: it
looks at one batch an epoch.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_mn.bridge.reading import read
from nnunet_mn.config import REMOVED, Layer, resolve
from nnunet_mn.device import prepare_torch
from nnunet_mn.networks import build_network_2d
from nnunet_mn.networks.weights import load_learned_state
from nnunet_mn.slices import SliceWise, along_axis

CONFIGURATION, PLANS = "3d_fullres", "nnUNetBenchmarkPlans.json"
AXES = (0, 1, 2)
COLUMNS = ("3D", "2D along 0", "along 1", "along 2", "2D mean", "3D and 2D", "3D and 2D mean")


class Preprocessed:
    """The benchmark's cases, plans and halves."""

    def __init__(self, folder: Path) -> None:
        plans = json.loads((folder / PLANS).read_bytes())
        self.configuration: ConfigurationManager = PlansManager(plans).get_configuration(CONFIGURATION)
        self.n_labels = len(json.loads((folder / "dataset.json").read_bytes())["labels"])
        cases = folder / self.configuration.data_identifier
        self.dataset = infer_dataset_class(str(cases))(str(cases))
        self.splits = json.loads((folder / "splits_final.json").read_bytes())

    def tune_half(self, fold: int) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Volumes (1, C, D, H, W) and masks (D, H, W)."""
        names = sorted(self.splits[fold]["val"])
        for name in names[: len(names) // 2]:
            image, mask, *_ = self.dataset.load_case(name)
            yield torch.from_numpy(np.asarray(image[:]))[None].float(), np.asarray(mask[:])[0]

    def network_3d(self, weights: dict[str, Any], channels: int) -> nn.Module:
        """The trained 3D network, with one map of logits as its output."""
        planned = self.configuration
        network = get_network_from_plans(
            planned.network_arch_class_name,
            planned.network_arch_init_kwargs,
            planned.network_arch_init_kwargs_req_import,
            channels,
            self.n_labels,
            deep_supervision=False,
        )
        network.load_state_dict(weights)
        return network.eval()


def dice(probabilities: Tensor, truth: np.ndarray, n_labels: int) -> float:
    """Mean over the classes in the truth."""
    found = probabilities.argmax(1)[0].numpy()
    masks = [(found == label, truth == label) for label in range(1, n_labels) if label in truth]
    return float(np.mean([2 * np.sum(one & other) / (np.sum(one) + np.sum(other)) for one, other in masks]))


def teachers(network_3d: nn.Module, network_2d: nn.Module, volume: Tensor, divisor: np.ndarray) -> list[Tensor]:
    """Probabilities (1, K, D, H, W) for each column."""
    padded, inside = pad_nd_image(
        volume, mode="constant", return_slicer=True, shape_must_be_divisible_by=[1, 1, *divisor]
    )
    of_3d = network_3d(padded)[(slice(None), slice(None), *inside[2:])].softmax(1)
    along = [along_axis(network_2d(along_axis(volume, axis))[0].softmax(1), axis) for axis in AXES]
    of_2d = torch.stack(along).mean(0)
    return [of_3d, *along, of_2d, (of_3d + along[0]) / 2, (of_3d + of_2d) / 2]


def judge(checkpoint: dict[str, Any], preprocessed: Preprocessed, fold: int) -> list[float]:
    """Mean Dice for each column."""
    stored = {name: value for name, value in checkpoint["mn"]["config"].items() if name not in REMOVED}
    config = resolve(Layer("the checkpoint", stored))
    rows = []
    for volume, truth in preprocessed.tune_half(fold):
        if not rows:
            network_3d = preprocessed.network_3d(checkpoint["network_weights"], volume.shape[1])
            network_2d = build_network_2d(config, in_channels=volume.shape[1], num_classes=preprocessed.n_labels)
            load_learned_state(network_2d, checkpoint["mn"]["network_2d"])
            slice_wise = SliceWise(network_2d).eval()
            divisor = np.prod(preprocessed.configuration.pool_op_kernel_sizes, axis=0)
        with torch.no_grad():
            masks = teachers(network_3d, slice_wise, volume, divisor)
        rows.append([dice(mask, truth, preprocessed.n_labels) for mask in masks])
    return [float(value) for value in np.mean(rows, axis=0)]


def main() -> None:
    """Print a row for each training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, metavar="WORK/runs/NAME")
    runs: Path = parser.parse_args().runs.resolve()
    files = sorted(runs.glob("*/Dataset*/nnUNetTrainerMN__*/fold_*/checkpoint_final.pth"))
    if not files:
        parser.error(f"{runs} holds no finished training of nnUNetTrainerMN")
    prepare_torch()
    (folder,) = (runs.parents[1] / "nnUNet_preprocessed").glob("Dataset*")
    preprocessed = Preprocessed(folder)
    logs: dict[str, list[list[float]]] = {"3D": [], "2D along 0": []}
    print(f"{'Dice':34s}" + "".join(f"{name:>15s}" for name in COLUMNS))
    for file in files:
        checkpoint = read(file)
        values = judge(checkpoint, preprocessed, int(file.parent.name.removeprefix("fold_")))
        print(f"{file.parents[3].name:34s}" + "".join(f"{value:15.3f}" for value in values), flush=True)
        for name, key in zip(logs, ("mean_fg_dice", "mean_fg_dice_2d"), strict=True):
            logs[name].append(checkpoint["logging"][key])
    print("\nDice while they were trained, mean of the trainings above, epoch by epoch")
    for name, rows in logs.items():
        print(f"{name:11s}" + " ".join(f"{value:.2f}" for value in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
