"""Masks of unlabeled cases from a finished teacher. They are stored once and then read as labels."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor
from tqdm import tqdm

from nnunet_mn.bridge.cases.preprocessed import Cases, reading
from nnunet_mn.bridge.files import replace_whole
from nnunet_mn.errors import MNError
from nnunet_mn.ranks import ALONE, Ranks

DIGITS = 12  # of the hash in a folder's name
_DAMAGED = (OSError, RuntimeError, KeyError)  # what blosc2 raises for a missing or damaged file, or its stamp


class StoredMasks:
    """A folder of hard masks, one file a case.

    Args:
        folder: of the fold's results.
        teacher_hash: of all that shapes the teacher's masks. Each teacher has a folder of its own.
    """

    def __init__(self, folder: Path, teacher_hash: str) -> None:
        self.folder = folder / f"masks_of_{teacher_hash[:DIGITS]}"

    def of(self, case: str) -> Any:
        """The mask of a case in the place of its empty segmentation: `(1, Z, Y, X)`, on disk until it is cropped.

        Raises:
            MNError: if the file cannot be read.
        """
        try:
            return self._open(case)
        except _DAMAGED as error:
            raise MNError(
                f"the teacher's mask {self._file(case)} cannot be read ({error}): delete it and continue with --c"
            ) from error

    def has(self, case: str, image: np.ndarray) -> bool:
        """Whether the mask is there, and was made for this image `(C, Z, Y, X)`."""
        try:
            stored = self._open(case)
            return bool(stored.schunk.vlmeta["made_for"] == _stamp(image))
        except _DAMAGED:  # missing or damaged
            return False

    def write(self, case: str, mask: np.ndarray, image: np.ndarray, segmentation: Any) -> None:
        """Store a mask, whole or not at all.

        Args:
            case: its name.
            mask: labels `(Z, Y, X)`.
            image: `(C, Z, Y, X)`.
            segmentation: the case's empty one, `(1, Z, Y, X)`: 0, and -1 outside nnU-Net's nonzero region. The latter
                stays. The mask is divided on disk as it is, so that a crop reads as little.

        Raises:
            MNError: if the file cannot be written.
        """
        empty = np.asarray(segmentation[:])
        labels = np.where(empty < 0, empty, mask[None]).astype(np.int16)  # labels may not fit into the type of `empty`
        stored = blosc2.asarray(labels, **{name: getattr(segmentation, name, None) for name in ("chunks", "blocks")})
        stored.schunk.vlmeta["made_for"] = _stamp(image)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_whole(self._file(case), lambda stream: stream.write(stored.to_cframe()))
        except OSError as error:
            raise MNError(
                f"the teacher's mask {self._file(case)} could not be written ({error}): free some space and continue "
                f"with --c"
            ) from error

    def _open(self, case: str) -> Any:
        return blosc2.open(urlpath=str(self._file(case)), mode="r", dparams={"nthreads": 1})

    def _file(self, case: str) -> Path:
        return self.folder / f"{case}.b2nd"


def _stamp(image: np.ndarray) -> str:
    """Tells a changed image: its shape, and a hash of its middle slices along each axis."""
    z, y, x = (size // 2 for size in image.shape[1:])
    middle = (np.asarray(plane, np.float32).tobytes() for plane in (image[:, z], image[:, :, y], image[:, :, :, x]))
    return f"{tuple(image.shape)} {sha256(b''.join(middle)).hexdigest()}"


def to_labels(logits: Tensor, label_manager: LabelManager) -> np.ndarray:
    """Labels `(Z, Y, X)` from logits `(C, Z, Y, X)` on any device."""
    found: Tensor = label_manager.convert_logits_to_segmentation(logits.cpu())  # nnU-Net makes arrays on its way
    return found.numpy()


def store(
    masks: StoredMasks,
    cases: Cases,
    predict: Callable[[Tensor], np.ndarray],
    *,
    ranks: Ranks = ALONE,
) -> int:
    """Predict and store the missing masks. A kill loses the mask in work alone.

    Args:
        masks: where they go.
        cases: preprocessed unlabeled cases.
        predict: image `(C, Z, Y, X)` -> labels `(Z, Y, X)`.
        ranks: they share the cases, and wait for each other after each case.

    Returns:
        The number of cases that were missing.

    Raises:
        MNError: if a case cannot be read, or a file cannot be written.
    """
    missing = []
    for name in sorted(cases.identifiers):
        with reading(cases, name):
            if not masks.has(name, cases.load_case(name)[0]):
                missing.append(name)
    ranks.wait()  # all have looked
    for names in tqdm(ranks.rounds(missing), desc="masks of the teacher", disable=ranks.own > 0):
        for name in names:
            with reading(cases, name):
                volume, segmentation, *_ = cases.load_case(name)
                image = np.asarray(volume[:], dtype=np.float32)
            masks.write(name, predict(torch.from_numpy(image)), image, segmentation)
        ranks.wait()  # the others have theirs, too
    return len(missing)
