"""No unlabeled case may be a validation case under another name."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunet_mn.bridge.cases.manifest import Manifest, Voxels
from nnunet_mn.bridge.cases.preprocessed import UNREADABLE, complete_cases, dataset_class_of, unreadable
from nnunet_mn.bridge.preprocessing.findings import Findings
from nnunet_mn.bridge.preprocessing.thumbnails import alike, thumbnail
from nnunet_mn.bridge.words import name_some
from nnunet_mn.errors import MNError


def open_volume(file: Path) -> Any:
    """A preprocessed volume (C, Z, Y, X) on disk.

    Raises:
        RuntimeError: when the file is no whole volume.
    """
    return blosc2.open(urlpath=str(file), mode="r")


def identity_of(volume: np.ndarray) -> Voxels:
    """Identity of a preprocessed volume (C, Z, Y, X)."""
    middle = volume[:, volume.shape[1] // 2]
    return Voxels(tuple(volume.shape), hash_voxels(middle), hash_voxels(volume), thumbnail(volume))


def hash_voxels(array: np.ndarray) -> str:
    """SHA-256 of an array's voxels."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def refuse_copies_of_val(
    folder: Path, val_folder: Path, val: Sequence[str], *, unlabeled: Collection[str] | None = None
) -> list[str]:
    """Refuse unlabeled cases with the voxels of a validation case, and warn of those that look like one.

    Args:
        folder: of the preprocessed unlabeled cases.
        val_folder: of the preprocessed labeled cases.
        val: names of the validation cases.
        unlabeled: names of the cases in use. None means all in the folder but those called like a validation case.

    Returns:
        Warnings.

    Raises:
        MNError: naming the cases with equal preprocessed voxels, or an unreadable one.
    """
    names = sorted(complete_cases(folder) - set(val) if unlabeled is None else unlabeled)
    if not val or not names:
        return []
    ours, held_out = _of_unlabeled(folder, names), _of_val(val_folder, val, folder)
    equal = {(voxels.shape, voxels.sha256): name for name, voxels in held_out.items()}
    copies = {name: equal.get((voxels.shape, voxels.sha256)) for name, voxels in ours.items()}
    if found := [f"'{name}' (of '{of}')" for name, of in copies.items() if of is not None]:
        raise MNError(f"unlabeled cases are copies of validation cases: {name_some(found)}; remove them")
    pairs = alike([v.thumbnail for v in ours.values()], [v.thumbnail for v in held_out.values()])
    told = [f"'{names[i]}' ('{val[k]}', correlation {same:.3f})" for i, k, same in pairs]
    return [
        f"WARNING: {len(told)} unlabeled case(s) look like the scan of a validation case: {name_some(told)}; remove "
        f"those that are the same scan: validation looks too good on a scan that was trained on"
    ] if told else []  # fmt: skip


def _of_unlabeled(folder: Path, names: Sequence[str]) -> dict[str, Voxels]:
    """Identities from the manifest. Older records are completed from the volume, and remembered."""
    manifest, findings, found = Manifest.read(folder), Findings(folder, unlabeled=folder), {}
    for name in names:
        record = manifest.get(name)
        try:
            if record is not None and record.voxels is not None and record.voxels.thumbnail:
                found[name] = record.voxels
            else:
                found[name] = _remembered(findings, name, lambda name: open_volume(folder / f"{name}.b2nd"))
        except UNREADABLE as error:
            raise unreadable(name, str(folder), error) from error
    findings.save()
    return found


def _of_val(folder: Path, names: Sequence[str], unlabeled: Path) -> dict[str, Voxels]:
    dataset = dataset_class_of(folder)(str(folder), list(names))
    findings, found = Findings(folder, unlabeled=unlabeled), {}
    for name in names:
        try:
            found[name] = _remembered(findings, name, lambda name: dataset.load_case(name)[0])
        except UNREADABLE as error:
            raise unreadable(name, str(folder), error, command="nnUNetv2_preprocess") from error
    findings.save()
    return found


def _remembered(findings: Findings, name: str, load: Callable[[str], Any]) -> Voxels:
    """The identity of a case. Its volume is read only once."""
    known = findings.get(name, "voxels")
    if known is None:
        known = identity_of(load(name)[:])
        findings.put(name, "voxels", known)
    return Voxels(tuple(known[0]), *known[1:])
