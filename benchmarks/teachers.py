"""The quality of the pseudo-masks in a benchmark's trainings: the Dice of each teacher, on cases unseen by it.

Usage: python benchmarks/teachers.py WORK/runs/NAME > benchmarks/results/teachers.txt

WORK is the folder of `accuracy.py run --work`, NAME one of its lengths and settings. Every finished training there of
`nnUNetTrainerMN` is loaded. Both networks predict the `tune` half of the fold's validation cases as they were
preprocessed, in windows of the training's patch and without mirroring: both depend on the size of what they see. A
second table has the Dice of both during the training, from nnU-Net's log: it looks at one batch an epoch.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_mn.bridge.training.joint_model import JointModel, joint_model, read_trained
from nnunet_mn.device import prepare_torch
from nnunet_mn.networks.joint import Joint
from nnunet_mn.slices import along_axis

CONFIGURATION = "3d_fullres"
AXES = (0, 1, 2)
COLUMNS = ("3D", "2D along 0", "along 1", "along 2", "2D mean", "3D and 2D", "3D and 2D mean")
SMALLEST = 1e-6  # keeps logits of certain voxels finite


class Teachers(nn.Module):
    """Volume `(B, C, D, H, W)` -> logits of every teacher, in the order of the columns, `(B, 7·K, D, H, W)`."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.joint = joint

    def forward(self, volume: Tensor) -> Tensor:
        of_3d = self.joint.network_3d(volume).softmax(1)
        along = [
            along_axis(self.joint.network_2d(along_axis(volume, axis))[0].softmax(1), axis) for axis in AXES
        ]  # (B, K, D, H, W) each
        of_2d = torch.stack(along).mean(0)
        masks = [of_3d, *along, of_2d, (of_3d + along[0]) / 2, (of_3d + of_2d) / 2]
        return torch.cat(masks, 1).clamp_min(SMALLEST).log()


def tune_half(preprocessed: Path, model: JointModel, fold: int) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Volumes `(C, D, H, W)` and masks `(D, H, W)`."""
    plans = PlansManager(model.plans.plans)
    cases = str(preprocessed / plans.get_configuration(CONFIGURATION).data_identifier)
    dataset = infer_dataset_class(cases)(cases)
    names = sorted(json.loads((preprocessed / "splits_final.json").read_bytes())[fold]["val"])
    for name in names[: len(names) // 2]:
        image, mask, *_ = dataset.load_case(name)
        yield torch.from_numpy(np.asarray(image[:])).float(), np.asarray(mask[:])[0]


def predictor_of(model: JointModel, n_labels: int) -> nnUNetPredictor:
    """nnU-Net's sliding window over all teachers at once."""
    plans = PlansManager(model.plans.plans)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        Teachers(model.network).eval(), plans, plans.get_configuration(CONFIGURATION), None, model.plans.description,
        "nnUNetTrainer", None,
    )  # fmt: skip
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=len(COLUMNS) * n_labels)  # all it is asked for
    return predictor


def dice(found: np.ndarray, truth: np.ndarray, n_labels: int) -> float:
    """Mean over the classes in the truth."""
    masks = [(found == label, truth == label) for label in range(1, n_labels) if label in truth]
    return float(np.mean([2 * np.sum(one & other) / (np.sum(one) + np.sum(other)) for one, other in masks]))


def judge(model: JointModel, preprocessed: Path, fold: int) -> list[float]:
    """Mean Dice for each column."""
    n_labels = len(model.plans.description["labels"])
    predictor = predictor_of(model, n_labels)
    rows = []
    for volume, truth in tune_half(preprocessed, model, fold):
        logits = predictor.predict_sliding_window_return_logits(volume)
        masks = logits.unflatten(0, (len(COLUMNS), n_labels)).argmax(1).numpy()
        rows.append([dice(mask, truth, n_labels) for mask in masks])
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
    (preprocessed,) = (runs.parents[1] / "nnUNet_preprocessed").glob("Dataset*")
    logs: dict[str, list[list[float]]] = {"3D": [], "2D along 0": []}
    print(f"{preprocessed.name:34s}" + "".join(f"{name:>15s}" for name in COLUMNS))
    for file in files:
        checkpoint = read_trained(file)
        model = joint_model(file, checkpoint, CONFIGURATION)
        values = judge(model, preprocessed, int(file.parent.name.removeprefix("fold_")))
        print(f"{file.parents[3].name:34s}" + "".join(f"{value:15.3f}" for value in values), flush=True)
        for name, key in zip(logs, ("mean_fg_dice", "mean_fg_dice_2d"), strict=True):
            logs[name].append(checkpoint["logging"][key])
    print("\nDice while they were trained, mean of the trainings above, epoch by epoch")
    for name, rows in logs.items():
        print(f"{name:11s}" + " ".join(f"{value:.2f}" for value in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
