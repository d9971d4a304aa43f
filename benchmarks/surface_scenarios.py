"""The scenarios of benchmarks/surface.py: each combines several of nnU-Net's features in one dataset."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surface_data import CLASSES, OWN_NETWORK, TRAINER, Dataset, expect, refused


def regions_and_ignore(root: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "back": 2, "ignore": 3}
    images: dict[str, Any] = {"ending": ".nrrd", "channels": ("CT", "MR"), "plans": "nnUNetMNPlans"}
    data = Dataset(root, 911, labels=labels, regions_order=[1, 2], **images).write()
    data.plan("-pl", "MNPlanner", "-fpe", "MNFingerprintExtractor")
    planned = json.loads((data.preprocessed / "nnUNetMNPlans.json").read_text())["configurations"]["3d_fullres"]
    expect(planned["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"], "other normalization")
    data.train()
    data.predict()


def regions_alone(root: Path) -> None:
    data = Dataset(root, 912, regions_order=[1, 2], labels={"background": 0, "whole": [1, 2], "back": 2}).write()
    data.plan()
    data.train()
    data.predict()


def ignore_alone(root: Path) -> None:
    data = Dataset(root, 913, labels={**CLASSES, "ignore": 3}).write()
    data.plan()
    data.train()
    data.predict()


def many_classes(root: Path) -> None:
    data = Dataset(
        root,
        914,
        channels=("CT", "T1", "T2", "noNorm"),
        n_classes=9,
        shape=(12, 64, 64),
        spacing=(6.0, 1.0, 1.0),
        labels={"background": 0, **{f"part_{i}": i for i in range(1, 10)}},
        plans="nnUNetResEncUNetMMNPlans",
    ).write()
    data.plan("-pl", "MNPlannerResEncM", small=True)
    data.train()
    expect("do_dummy_2d_data_aug: True" in _log(data), "no dummy 2D augmentation")
    data.predict()


def _log(data: Dataset) -> str:
    return "".join(file.read_text() for file in data.model().rglob("training_log*.txt"))


def tiff_and_small_volumes(root: Path) -> None:
    data = Dataset(root, 915, ending=".tif", n_labeled=3, n_val=0, spacing=(2.0, 1.0, 1.0), shape=(10, 18, 16)).write()
    data.plan()
    file = data.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 32, 32]  # larger than every volume
    file.write_text(json.dumps(plans))
    data.train()
    data.predict()


def low_resolution_and_ensemble(root: Path) -> None:
    cases = [f"case_{i}" for i in range(6)]
    splits = [{"train": cases[:4], "val": [cases[4]]}, {"train": cases[:4], "val": [cases[5]]}]
    data = Dataset(root, 916, shape=(64, 64, 64), splits=splits).write()
    data.plan("-gpu_memory_target", "0.1", configurations=("3d_fullres", "3d_lowres"))
    for configuration in ("3d_fullres", "3d_lowres"):
        for fold in (0, 1):
            data.train(fold, "--npz", configuration=configuration)
    which = ("-p", data.plans, "-tr", TRAINER, "-c", "3d_fullres", "3d_lowres", "-f", "0", "1")
    data.run("nnUNetv2_find_best_configuration", str(data.number), *which, "-np", "1")
    both = [data.predict(0, "--save_probabilities", configuration=c, out=c) for c in ("3d_fullres", "3d_lowres")]
    data.run("nnUNetv2_ensemble", "-i", *map(str, both), "-o", str(root / "ensemble"), "-np", "1")
    expect((root / "ensemble" / "test_0.nii.gz").exists(), "no ensemble")
    refused(lambda: data.train(configuration="2d"), "use 3d_fullres or 3d_lowres")
    refused(lambda: data.train(configuration="3d_cascade_fullres"), "use 3d_fullres or 3d_lowres")


def own_architecture(root: Path) -> None:
    data = Dataset(root, 917).write()
    (root / "own_network.py").write_text(OWN_NETWORK)
    data.plan()
    file = data.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "own_network.OwnNetwork",
        # nnU-Net takes the scales of its targets from `strides`, all but the last of them
        "arch_kwargs": {"features": 4, "strides": [[1, 1, 1], [2, 2, 2]]},
        "_kw_requires_import": [],
    }
    file.write_text(json.dumps(plans))
    data.train()
    data.predict()


def pretrained_export_install(root: Path) -> None:
    data = Dataset(root, 918, dataset_key=True).write()
    data.plan()
    stock = "nnUNetTrainerMNLabeledOnly"  # stock's trainer with fewer updates
    data.train(trainer=stock)
    weights = data.model(trainer=stock) / "fold_0" / "checkpoint_final.pth"
    data.train(0, "-pretrained_weights", str(weights))
    archive = root / "stock.zip"
    which = ("-d", str(data.number), "-c", "3d_fullres", "-tr", TRAINER, "-p", data.plans, "-f", "0")
    data.run("nnUNetv2_export_model_to_zip", *which, "-o", str(archive))
    data.run("nnunet-mn", "export", str(data.model()), "-o", str(root / "ours.zip"))
    for name in ("stock", "ours"):
        results = root / f"installed_{name}"
        results.mkdir()
        data.run("nnUNetv2_install_pretrained_model_from_zip", str(root / f"{name}.zip"), nnUNet_results=str(results))
        expect(len(list(results.rglob("checkpoint_final.pth"))) == 1, f"{name}.zip holds no model")


def one_two_and_four_labeled(root: Path) -> None:
    for count in (1, 2, 4):
        data = Dataset(root / str(count), 920 + count, n_labeled=count, n_val=0).write()
        data.plan()
        data.train()
        data.predict()


def folds(root: Path) -> None:
    cases = [f"case_{i}" for i in range(6)]
    splits = [{"train": cases[:2], "val": [cases[4]], "unlabeled": [cases[2], cases[3]]}]
    data = Dataset(root, 919, splits=splits).write()
    data.plan()
    for fold in ("all", 1):  # fold 1 is not in the file: nnU-Net draws a random split
        data.train(fold)
        expect("are left out of training and validation" in _log(data), "unlabeled cases were trained on")
    data.predict("all")


ROWS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "regions_and_ignore": (
        regions_and_ignore,
        (
            "regions and an ignore label at once", "two channels", "CT and MR normalization", "`.nrrd`",
            "`-pl MNPlanner`, `-fpe MNFingerprintExtractor`",
        ),
    ),
    "regions_alone": (regions_alone, ("regions (`regions_class_order`, sigmoid)", "NIfTI")),
    "ignore_alone": (ignore_alone, ("ignore label",)),
    "many_classes": (
        many_classes,
        (
            "nine classes", "four channels", "anisotropic spacing (dummy 2D augmentation)",
            "residual encoders (`-pl MNPlannerResEncM`)",
        ),
    ),
    "tiff_and_small_volumes": (
        tiff_and_small_volumes,
        (
            "TIFF stacks with a file of spacing", "volumes smaller than the patch along every axis",
            "three labeled cases, no split file",
        ),
    ),
    "low_resolution_and_ensemble": (
        low_resolution_and_ensemble,
        (
            "`3d_lowres`", "`--npz`", "`nnUNetv2_find_best_configuration` over two folds and configurations",
            "`nnUNetv2_ensemble`", "`2d` and `3d_cascade_fullres` are refused with one sentence",
        ),
    ),
    "own_architecture": (own_architecture, ("an architecture of the user's own, named in the plans",)),
    "pretrained_export_install": (
        pretrained_export_install,
        (
            "`-pretrained_weights` of a stock training",
            "`nnUNetv2_export_model_to_zip`, `nnunet-mn export`, installing both",
            "the key `dataset` in dataset.json",
        ),
    ),
    "one_two_and_four_labeled": (one_two_and_four_labeled, ("1, 2 and 4 labeled cases, no split file",)),
    "folds": (folds, ("fold `all`", "a fold that the split file lacks")),
}  # fmt: skip
