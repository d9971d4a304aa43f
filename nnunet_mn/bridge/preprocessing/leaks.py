"""No unlabeled case may be a validation case under another name."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_mn.bridge.cases.images import name_some
from nnunet_mn.bridge.cases.manifest import Manifest, Voxels, complete_cases
from nnunet_mn.errors import MNError


def measure(file: Path) -> Voxels:
    """Identity of a preprocessed volume.

    Raises:
        RuntimeError: when the file is no whole volume.
    """
    volume = blosc2.open(urlpath=str(file), mode="r")
    return Voxels(tuple(volume.shape), probe(volume), hash_voxels(volume[:]))


def probe(volume: Any) -> str:
    """Hash of the middle slice of an array (C, Z, Y, X). It costs a fraction of reading the whole."""
    return hash_voxels(volume[:, volume.shape[1] // 2])


def hash_voxels(array: np.ndarray) -> str:
    """SHA-256 of an array's voxels."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def refuse_copies_of_val(
    folder: Path, val_folder: Path, val: Sequence[str], *, unlabeled: Collection[str] | None = None
) -> None:
    """Refuse unlabeled cases that are validation cases under another name.

    Args:
        folder: of the preprocessed unlabeled cases.
        val_folder: of the preprocessed labeled cases.
        val: names of the validation cases.
        unlabeled: names of the cases in use. None means all in the folder but those called like a validation case.

    Raises:
        MNError: naming the cases whose preprocessed voxels are equal, or one that cannot be read.
    """
    names = complete_cases(folder) - set(val) if unlabeled is None else unlabeled
    if not val or not names:
        return
    known = _by_look(folder, names)
    shapes = {shape for shape, _ in known}
    dataset = infer_dataset_class(str(val_folder))(str(val_folder), list(val))
    copies: list[str] = []
    for name in val:
        try:
            volume = dataset.load_case(name)[0]  # (C, Z, Y, X)
            shape = tuple(volume.shape)
            equal_look = known.get((shape, probe(volume)), {}) if shape in shapes else {}
            equal = equal_look.get(hash_voxels(volume[:]), []) if equal_look else []
        except (OSError, RuntimeError, ValueError) as error:
            raise MNError(
                f"the preprocessed case '{name}' in {val_folder} cannot be read ({error}); run nnUNetv2_preprocess "
                f"again"
            ) from error
        copies += [f"'{other}' (of '{name}')" for other in equal]
    if copies:
        raise MNError(f"unlabeled cases are copies of validation cases: {name_some(copies)}; remove them")


def _by_look(folder: Path, names: Collection[str]) -> dict[tuple[tuple[int, ...], str], dict[str, list[str]]]:
    """Names of unlabeled cases, first by shape and middle slice, which are cheap, then by the hash of all voxels."""
    manifest = Manifest.read(folder)
    known: dict[tuple[tuple[int, ...], str], dict[str, list[str]]] = {}
    for name in names:
        record = manifest.get(name)
        recorded = record.voxels if record is not None else None
        try:
            voxels = recorded or measure(folder / f"{name}.b2nd")
        except (OSError, RuntimeError, ValueError) as error:
            raise MNError(
                f"the preprocessed case '{name}' in {folder} cannot be read ({error}); delete its file {name}.b2nd and "
                f"run `nnunet-mn preprocess` for this data set"
            ) from error
        known.setdefault((voxels.shape, voxels.probe), {}).setdefault(voxels.sha256, []).append(name)
    return known
