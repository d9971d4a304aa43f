"""The effect of foreground crops of unlabeled cases, with foreground in less than 1 % of the volume.

Usage: python benchmarks/foreground.py FOLDER [--iterations N] [--seeds N]

Volumes of noise hold one small organ among darker spheres. Stock's commands train M&N with and without
`foreground_crops`, everything else alike. After each refresh the script counts the crops of unlabeled cases with the
organ in them. It counts by the generator's truth; no training sees that. Then both models predict test cases, and
their Dice is compared over all seeds.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_mn.bridge.registration import trainers_path
from nnunet_mn.bridge.stock_commands import run_stock
from nnunet_mn.bridge.training.foreground import refresh
from nnunet_mn.bridge.training.loader import MixedCases, MixedLoader
from nnunet_mn.bridge.training.locations import ForegroundLocations
from nnunet_mn.sandbox.small_plans import small_plans
from nnunet_mn.schedule import Schedule, UnlabeledCounts

SHAPE = (40, 80, 80)  # voxels
PATCH, FEATURES, BATCH, EPOCHS = (16, 32, 32), (8, 16, 32), 2, 5
COUNTS = {"labeled": 4, "val": 1, "unlabeled": 8, "test": 8}
DATASET, NAME, PLANS = 902, "Dataset902_Rare", "nnUNetRarePlans"
LABELS = {"background": 0, "organ": 1}
TRAINER, LABELED_ONLY = "nnUNetTrainerMN", "nnUNetTrainerMNLabeledOnly"
DRAWN = 400  # crops


def make_volume(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A volume (Z, Y, X) and its mask: a bright ellipsoid, and darker ones outside of the mask."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    image = np.full(SHAPE, 100.0)
    mask = np.zeros(SHAPE, np.uint8)
    for index in range(6):
        center = rng.uniform(8, np.array(SHAPE) - 8)
        radii = rng.uniform(4, 7, 3)
        inside = (((grid - center) / radii) ** 2).sum(-1) < 1
        if index < 5:
            image[inside] = rng.uniform(120, 150)
        else:
            image[inside], mask[inside] = 175, 1
    image += rng.normal(0, 20, SHAPE)
    return image.astype(np.float32), mask


def write_dataset(root: Path, seed: int) -> Path:
    """Write the raw dataset, and the masks of unlabeled and test cases apart from it; return the latter's folder."""
    raw, truth = root / "nnUNet_raw" / NAME, root / "truth"
    rng, shares = np.random.default_rng(seed), []
    for kind, (images, labels) in {
        "labeled": (raw / "imagesTr", raw / "labelsTr"),
        "val": (raw / "imagesTr", raw / "labelsTr"),
        "unlabeled": (raw / "imagesUn", truth / "unlabeled"),
        "test": (raw / "imagesTs", truth / "test"),
    }.items():
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for index in range(COUNTS[kind]):
            image, mask = make_volume(rng)
            shares.append(mask.mean())
            for array, path in (
                (image, images / f"{kind}_{index:02d}_0000.nii.gz"),
                (mask, labels / f"{kind}_{index:02d}.nii.gz"),
            ):
                SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
    content = {
        "channel_names": {"0": "MR"},
        "labels": LABELS,
        "numTraining": COUNTS["labeled"] + COUNTS["val"],
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    split = {
        part: [f"{kind}_{i:02d}" for i in range(COUNTS[kind])] for part, kind in (("train", "labeled"), ("val",) * 2)
    }
    (raw / "splits_final.json").write_text(json.dumps([split]))
    print(f"foreground is {100 * np.mean(shares):.2f} % of a volume, at most {100 * np.max(shares):.2f} %", flush=True)
    return truth


class Truth:
    """The unlabeled cases with their masks in place of their images: a crop then shows its foreground."""

    def __init__(self, dataset: Any, masks: Path) -> None:
        self.dataset, self.masks = dataset, masks
        self.identifiers, self.source_folder = dataset.identifiers, dataset.source_folder

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        image, segmentation, previous, properties = self.dataset.load_case(identifier)
        mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(self.masks / f"{identifier}.nii.gz")))[None]
        if mask.shape != image.shape:
            raise SystemExit(f"{identifier} was cropped or resampled: {image.shape} instead of {mask.shape}")
        return mask.astype(np.float32), segmentation, previous, properties


def share_with_foreground(cases: Truth, locations: ForegroundLocations | None) -> float:
    """The share of crops of unlabeled cases that show the organ."""
    loader = MixedLoader(
        MixedCases(cases, cases, locations),
        counts=UnlabeledCounts(Schedule(total=1, supervised=0), batch_size=2, batch="replace"),
        part=range(2),
        first=1,  # one of two samples is unlabeled from then on
        workers=0,
        foreground_share=1 - round(BATCH * (1 - 0.33)) / BATCH,  # of the training's batch
        patch_size=PATCH,
        final_patch_size=PATCH,
        label_manager=LabelManager(LABELS, None),
        oversample_foreground_percent=0.33,
    )
    np.random.seed(0)
    return float(np.mean([float(next(loader)["data"][1].max() > 0) for _ in range(DRAWN)]))


def dice(predicted: Path, truth: Path) -> list[float]:
    """Dice of every test case."""
    found = []
    for file in sorted(truth.glob("*.nii.gz")):
        one, other = (
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(f))) == 1 for f in (file, predicted / file.name)
        )
        found.append(2 * float((one & other).sum()) / float(one.sum() + other.sum()))
    return found


def run_seed(root: Path, seed: int, iterations: int, *, share_only: bool) -> dict[bool, float]:
    """Train and compare both ways on one generated dataset; the mean test Dice with and without foreground crops."""
    shutil.rmtree(root, ignore_errors=True)
    truth = write_dataset(root, seed)
    base = {
        **os.environ, "nnUNet_raw": str(root / "nnUNet_raw"), "nnUNet_preprocessed": str(root / "nnUNet_preprocessed"),
        "nnUNet_extTrainer": str(trainers_path()), "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1",
        "nnUNet_compile": "f", "OMP_WAIT_POLICY": "PASSIVE", "nnUNet_mn_backbone": "efficientnet-lite0",
        "nnUNet_mn_seed": str(seed), "nnUNet_mn_epochs": str(EPOCHS), "nnUNet_mn_supervised_fraction": "0.3",
        "nnUNet_mn_iterations_per_epoch": str(iterations // EPOCHS), "nnUNet_mn_val_iterations_per_epoch": "1",
        "nnUNet_mn_slice_step": "8",
    }  # fmt: skip
    for folder in ("nnUNet_preprocessed", "logs"):
        (root / folder).mkdir()
    preprocessed = root / "nnUNet_preprocessed" / NAME
    plan = ["nnUNetv2_plan_and_preprocess", "-d", str(DATASET), "-c", "3d_fullres", "-np", "1", "-npfp", "1"]
    run_stock(plan, environment={**base, "nnUNet_results": str(root)}, log=root / "logs" / "plan.txt")
    stock = json.loads((preprocessed / "nnUNetPlans.json").read_bytes())
    plans = small_plans(stock, name=PLANS, patch_size=PATCH, batch_size=BATCH, features=FEATURES)
    (preprocessed / f"{PLANS}.json").write_text(json.dumps(plans))
    if share_only:
        share_after_supervised_stage(root, truth, base)
        return {}
    found = {}
    for crops in (True, False):
        results = root / f"results_{crops}"
        environment = {**base, "nnUNet_results": str(results), "nnUNet_mn_foreground_crops": str(crops)}
        which = ["-tr", TRAINER, "-p", PLANS, "-device", "cpu"]
        train = ["nnUNetv2_train", str(DATASET), "3d_fullres", "0", *which]
        seconds = run_stock(train, environment=environment, log=root / "logs" / f"train_{crops}.txt")
        if crops:
            model = results / NAME / f"{TRAINER}__{PLANS}__3d_fullres" / "fold_0"
            folder = preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
            cases = Truth(infer_dataset_class(str(folder))(str(folder)), truth / "unlabeled")
            print(f"seed {seed}: crops of unlabeled cases that show the organ:", flush=True)
            print(f"  at random: {share_with_foreground(cases, None):.3f}", flush=True)
            for file in sorted(model.glob("foreground_*.npz")):
                epoch, iteration = (int(part) for part in file.stem.split("_")[2::2])
                position = epoch * (iterations // EPOCHS) + iteration
                locations = ForegroundLocations(model, [1], iterations_per_epoch=iterations // EPOCHS)
                locations.use(position)
                print(f"  after {position} of {iterations} updates: {share_with_foreground(cases, locations):.3f}")
        predicted = root / f"predicted_{crops}"
        folders = ["-i", str(root / "nnUNet_raw" / NAME / "imagesTs"), "-o", str(predicted)]
        fast = ["--disable_tta", "-npp", "1", "-nps", "1"]
        predict = ["nnUNetv2_predict", "-d", str(DATASET), "-c", "3d_fullres", "-f", "0", *which, *folders, *fast]
        run_stock(predict, environment=environment, log=root / "logs" / f"predict_{crops}.txt")
        of_cases = dice(predicted, truth / "test")
        print(
            f"seed {seed}, foreground_crops={crops}: test Dice {np.mean(of_cases):.3f} "
            f"(cases {np.min(of_cases):.3f} to {np.max(of_cases):.3f}), training {seconds:.0f} s",
            flush=True,
        )
        found[crops] = float(np.mean(of_cases))
    return found


def share_after_supervised_stage(root: Path, truth: Path, base: dict[str, str]) -> None:
    """Print the share of crops with the organ in them, after a training on the labeled cases alone."""
    environment, which = {**base, "nnUNet_results": str(root / "results")}, ["-tr", LABELED_ONLY, "-p", PLANS]
    train = ["nnUNetv2_train", str(DATASET), "3d_fullres", "0", *which, "-device", "cpu"]
    run_stock(train, environment=environment, log=root / "logs" / "train.txt")
    preprocess = ["nnunet-mn", "preprocess", "-d", str(DATASET), "-p", PLANS, "-np", "1"]
    run_stock(preprocess, environment=environment, log=root / "logs" / "preprocess.txt")
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    model = root / "results" / NAME / f"{LABELED_ONLY}__{PLANS}__3d_fullres"
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    folder = root / "nnUNet_preprocessed" / NAME / "nnUNetPlans_3d_fullres_unlabeled"
    dataset = infer_dataset_class(str(folder))(str(folder))
    locations = ForegroundLocations(root / "found", [1], iterations_per_epoch=1)
    predict = predictor.predict_sliding_window_return_logits
    print(refresh(locations, dataset, predict, position=1, regions=False, seed=0, stop=lambda: False))
    cases = Truth(dataset, truth / "unlabeled")
    hits = []
    for name in cases.identifiers:
        mask = cases.load_case(name)[0]
        hits += [float(mask[tuple(voxel)]) for voxel in locations.of(name).get(1, ())]
    print(f"located voxels that are the organ's: {np.mean(hits):.3f}")
    print(f"crops of unlabeled cases that show the organ, at random: {share_with_foreground(cases, None):.3f}")
    print(f"with foreground crops: {share_with_foreground(cases, locations):.3f}", flush=True)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--share-only", action="store_true", help="count crops after a labeled-only training, no Dice")
    arguments = parser.parse_args()
    found = [
        run_seed(arguments.folder / f"seed_{seed}", seed, arguments.iterations, share_only=arguments.share_only)
        for seed in range(arguments.seeds)
    ]
    if not arguments.share_only:
        means = [np.mean([of_seed[crops] for of_seed in found]) for crops in (True, False)]
        gains = ", ".join(f"{of_seed[True] - of_seed[False]:+.3f}" for of_seed in found)
        print(f"{len(found)} seeds: test Dice {means[0]:.3f} with and {means[1]:.3f} without; gains by seed {gains}")


if __name__ == "__main__":
    main()
