"""The demo's raw nnU-Net dataset of phantoms: few labeled, many unlabeled, and a test set with labels elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from nnunet_mn.sandbox.phantoms import LABELS, Phantom, make_phantom
from nnunet_mn.sandbox.scanners import EVEN_COIL, SURFACE_COIL
from nnunet_mn.sandbox.volumes import SPACING

DATASET_ID = 901
DATASET_NAME = f"Dataset{DATASET_ID}_MNDemo"
N_LABELED = 4
_ROLES = ("labeled", "unlabeled", "test")


def labeled_names() -> list[str]:
    """Names of the labeled cases, without ending."""
    return [f"labeled_{i:02d}" for i in range(N_LABELED)]


def write_dataset(dataset: Path, test_labels: Path, *, seed: int, n_unlabeled: int, n_test: int) -> None:
    """Write the raw dataset, and the labels of the test cases apart from it. Unlabeled images have none.

    Args:
        dataset: folder to be made, `nnUNet_raw/DatasetXXX_Name`.
        test_labels: folder to be made for the test cases' labels; no training looks there.
        seed: same seed, same voxels. A case does not depend on the number of others.
        n_unlabeled, n_test: number of cases in `imagesUn` and `imagesTs`.
    """
    folders = {
        "labeled": (dataset / "imagesTr", dataset / "labelsTr", N_LABELED),
        "unlabeled": (dataset / "imagesUn", None, n_unlabeled),
        "test": (dataset / "imagesTs", test_labels, n_test),
    }
    for role, (images, labels, count) in folders.items():
        images.mkdir(parents=True)
        if labels is not None:
            labels.mkdir(parents=True)
        for index in range(count):
            scanner = EVEN_COIL if role == "labeled" else SURFACE_COIL
            _write_case(f"{role}_{index:02d}", make_phantom(_generator(seed, role, index), scanner), images, labels)
    (dataset / "dataset.json").write_text(json.dumps(_dataset_json(), indent=2))


def read_volume(path: Path) -> NDArray[Any]:
    """Voxels of a NIfTI file as (z, y, x)."""
    voxels: NDArray[Any] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    return voxels


def _generator(seed: int, role: str, index: int) -> np.random.Generator:
    """An independent stream for each case."""
    return np.random.default_rng([seed, _ROLES.index(role), index])


def _write_case(name: str, phantom: Phantom, images: Path, labels: Path | None) -> None:
    """Write one case's image, and its label if there is a folder for it."""
    _write_volume(phantom.image, images / f"{name}_0000.nii.gz")
    if labels is not None:
        _write_volume(phantom.label, labels / f"{name}.nii.gz")


def _write_volume(voxels: NDArray[Any], path: Path) -> None:
    """Write (z, y, x) voxels with their spacing as NIfTI."""
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(SPACING[::-1])  # SimpleITK counts x, y, z
    SimpleITK.WriteImage(image, str(path))


def _dataset_json() -> dict[str, object]:
    """The content of dataset.json; only labeled cases count as training cases."""
    return {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": N_LABELED, "file_ending": ".nii.gz"}
