"""Masks of unlabeled cases from a finished teacher. They are stored once and then read as labels."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor
from tqdm import tqdm

from nnunet_mn.bridge.cases.preprocessed import Cases
from nnunet_mn.bridge.files import write_arrays
from nnunet_mn.errors import MNError
from nnunet_mn.ranks import ALONE, Ranks

DIGITS = 12  # of the hash in a folder's name


class StoredMasks:
    """A folder of hard masks, one file a case.

    Args:
        folder: of the fold's results.
        teacher_hash: of the teacher's weights. Each teacher has a folder of its own.
    """

    def __init__(self, folder: Path, teacher_hash: str) -> None:
        self.folder = folder / f"masks_of_{teacher_hash[:DIGITS]}"

    def of(self, case: str, segmentation: np.ndarray) -> np.ndarray:
        """The mask of a case in the place of its empty segmentation.

        Args:
            case: its name.
            segmentation: `(1, Z, Y, X)`, 0, and -1 outside nnU-Net's nonzero region. The latter stays.

        Raises:
            MNError: if the file cannot be read.
        """
        try:
            with np.load(self._file(case)) as stored:
                mask: np.ndarray = stored["mask"]  # int16: labels may not fit into the empty segmentation's type
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise MNError(
                f"the teacher's mask {self._file(case)} cannot be read ({error}): delete it and continue with --c"
            ) from error
        return np.where(segmentation < 0, segmentation, mask[None])

    def has(self, case: str, image: np.ndarray) -> bool:
        """Whether the mask is there, and was made for this image `(C, Z, Y, X)`."""
        try:
            with np.load(self._file(case)) as stored:
                return str(stored["made_for"]) == _stamp(image)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # missing, damaged or of an earlier version
            return False

    def write(self, case: str, mask: np.ndarray, image: np.ndarray) -> None:
        """Store labels `(Z, Y, X)` of an image `(C, Z, Y, X)`, whole or not at all.

        Raises:
            MNError: if the file cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_arrays(self._file(case), {"mask": mask.astype(np.int16), "made_for": np.array(_stamp(image))})
        except OSError as error:
            raise MNError(
                f"the teacher's mask {self._file(case)} could not be written ({error}): free some space and continue "
                f"with --c"
            ) from error

    def _file(self, case: str) -> Path:
        return self.folder / f"{case}.npz"


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
        MNError: if a file cannot be written.
    """
    missing = [name for name in sorted(cases.identifiers) if not masks.has(name, cases.load_case(name)[0])]
    ranks.any(False)  # all have looked
    for names in tqdm(ranks.rounds(missing), desc="masks of the teacher", disable=ranks.own > 0):
        for name in names:
            image = np.asarray(cases.load_case(name)[0][:], dtype=np.float32)
            masks.write(name, predict(torch.from_numpy(image)), image)
        ranks.any(False)  # the others have theirs, too
    return len(missing)
