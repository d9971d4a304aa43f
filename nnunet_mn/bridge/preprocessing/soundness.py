"""Whether a training can learn from preprocessed volumes. A huge voxel makes all others equal, or not finite."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunet_mn.bridge.preprocessing.findings import Findings
from nnunet_mn.bridge.words import name_some
from nnunet_mn.errors import MNError

NEARLY_ALL = 0.999  # of the voxels
SAME = 1e-3  # difference of voxels in the units below
SCALED = {"ZScoreNormalization", "CTNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"}  # to about 1
MOST_COUNTED = 10**6  # voxels of a channel
BOX = 32  # voxels along each axis of a sampled box


def fault_of_volume(volume: np.ndarray, schemes: Sequence[str], *, varied: Sequence[bool] | None = None) -> str | None:
    """What is wrong with preprocessed voxels, as the end of a sentence.

    Args:
        volume: voxels (C, Z, Y, X).
        schemes: names of the channels' normalizations.
        varied: whether each channel of the raw image varies. None: unknown, and a flat channel beside others is no
            fault, since it may stand for a missing one.
    """
    if not np.isfinite(volume).all():
        return "holds voxels that are NaN or infinite"
    flat = [_is_flat(channel, scheme) for channel, scheme in zip(volume, schemes, strict=True)]
    wrong = all(flat) if varied is None else any(f and v for f, v in zip(flat, varied, strict=True))
    return "has the same value in nearly all voxels" if wrong else None


def varies(channel: np.ndarray) -> bool:
    """Whether a channel (Z, Y, X) of a raw image has more than one value in nearly all voxels."""
    return _share_near_median(channel, 0.0) < NEARLY_ALL


def _is_flat(channel: np.ndarray, scheme: str) -> bool:
    if scheme in SCALED:
        return _share_near_median(channel, SAME) >= NEARLY_ALL
    return bool(channel.min() == channel.max())


def _share_near_median(channel: np.ndarray, tolerance: float) -> float:
    voxels = channel.ravel()[:: max(1, channel.size // MOST_COUNTED)]
    return float((np.abs(voxels - np.median(voxels)) <= tolerance).mean())


def check_sound(folder: Path, names: Sequence[str], schemes: Sequence[str], *, unlabeled: Path) -> None:
    """Refuse unsound preprocessed cases. Three small boxes of each are read, and all voxels only if these look wrong.

    Sound cases are remembered until their file changes.

    Args:
        folder: of preprocessed cases. Cases in nnU-Net's older format are not checked.
        names: of cases.
        schemes: names of the channels' normalizations.
        unlabeled: the folder of the unlabeled cases. The memory lies beside it.

    Raises:
        MNError: naming the unsound cases.
    """
    findings, faults = Findings(folder, unlabeled=unlabeled), []
    for name in names:
        if findings.get(name, "sound") or not (folder / f"{name}.b2nd").is_file():
            continue
        try:
            fault = _fault(folder / f"{name}.b2nd", schemes)
        except (OSError, RuntimeError, ValueError):
            continue  # the loader names an unreadable case
        if fault is None:
            findings.put(name, "sound", True)
        else:
            faults.append(f"'{name}' {fault}")
    findings.save()
    if faults:
        raise MNError(
            f"unusable preprocessed cases in {folder}: {name_some(faults)}; look for huge or infinite voxels in their "
            f"raw images, repair these images and preprocess again, or remove the cases"
        )


def _fault(file: Path, schemes: Sequence[str]) -> str | None:
    volume: Any = blosc2.open(urlpath=str(file), mode="r")
    corners = [[max(0, int(n * share) - BOX // 2) for n in volume.shape[1:]] for share in (0.25, 0.5, 0.75)]
    boxes = (volume[(slice(None), *(slice(a, a + BOX) for a in corner))] for corner in corners)
    looks_sound = any(fault_of_volume(box, schemes) is None for box in boxes)
    return None if looks_sound else fault_of_volume(volume[:], schemes)
