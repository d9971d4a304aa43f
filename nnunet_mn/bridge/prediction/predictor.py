"""Both networks of a checkpoint in nnU-Net's own predictor."""

import contextlib
import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from torch import Tensor

from nnunet_mn.bridge.prediction.fold import TrainedFold
from nnunet_mn.bridge.prediction.structures import Structure, masks_of, structures_of
from nnunet_mn.bridge.training.joint_model import joint_model
from nnunet_mn.device import prepare_torch
from nnunet_mn.networks.joint import SideBySide
from nnunet_mn.quality import Pair, Sums, binary_entropy, sums_of

VALUES_AT_ONCE = 2**25  # probabilities of a network: 128 MiB


class Predicted(NamedTuple):
    """What both networks say about a case, on the grid of the preprocessed image.

    Args:
        mask_3d, mask_2d, joint: nnU-Net's labels of each voxel, `(D, H, W)`.
        uncertainty: entropy of the mean probabilities, in percent of the largest, `(D, H, W)`.
        sums: over all voxels, for each structure.
        logits: of the joint prediction, `(K, D, H, W)`, for nnU-Net's export.
    """

    mask_3d: NDArray[np.integer]
    mask_2d: NDArray[np.integer]
    joint: NDArray[np.integer]
    uncertainty: NDArray[np.uint8]
    sums: Sums
    logits: NDArray[np.float16]


class BothPredictor:
    """Predicts preprocessed cases with both networks, in one pass of nnU-Net's sliding window.

    Args:
        found: the trained fold.
        device: of the networks.
        mirroring: average over mirrored windows, as nnU-Net does by default. It takes up to eight times as long.

    Raises:
        MNError: when its 2D network cannot be built here.
    """

    def __init__(self, found: TrainedFold, *, device: torch.device, mirroring: bool) -> None:
        if device.type == "cpu":
            prepare_torch()
        configuration, checkpoint = found.folders.configuration, found.checkpoint
        model = joint_model(found.file, checkpoint, configuration)
        self.description: dict[str, Any] = model.plans.description
        self.plans = PlansManager(model.plans.plans)
        self.configuration: ConfigurationManager = self.plans.get_configuration(configuration)
        self.labels: LabelManager = self.plans.get_label_manager(self.description)
        self.structures: tuple[Structure, ...] = structures_of(self.labels, self.description)
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of a fallback that is no news
            self._predictor = nnUNetPredictor(use_mirroring=mirroring, device=device, allow_tqdm=False)
        self._predictor.manual_initialization(
            SideBySide(model.network),
            self.plans,
            self.configuration,
            None,
            self.description,
            checkpoint["trainer_name"],
            checkpoint.get("inference_allowed_mirroring_axes"),
        )
        # The sliding window asks it for the number of channels alone.
        self._predictor.label_manager = SimpleNamespace(num_segmentation_heads=2 * self.labels.num_segmentation_heads)

    def predict(self, image: NDArray[np.float32]) -> Predicted:
        """Predict a preprocessed image `(C, D, H, W)`."""
        logits: Tensor = self._predictor.predict_sliding_window_return_logits(torch.from_numpy(image)).cpu()
        shape, heads = tuple(logits.shape[1:]), self.labels.num_segmentation_heads
        kind = np.uint8 if max(self.labels.all_labels) < 256 else np.uint16
        mask_3d, mask_2d, joint = (np.empty(shape, kind) for _ in range(3))
        uncertainty = np.empty(shape, np.uint8)
        joint_logits = np.empty((heads, *shape), np.float16)
        parts = []
        for part in _parts(shape, VALUES_AT_ONCE // heads):
            of_3d, of_2d = (self._probabilities(one) for one in logits[:, part].split(heads))
            mean = (of_3d + of_2d) / 2
            mask_3d[part], mask_2d[part], joint[part] = (
                self.labels.convert_probabilities_to_segmentation(one) for one in (of_3d, of_2d, mean)
            )
            uncertainty[part] = np.rint(100 * self._entropy(mean))
            joint_logits[:, part] = self._logits(mean)
            parts.append(self._sums(of_3d, of_2d, mask_3d[part], mask_2d[part], joint[part]))
        return Predicted(mask_3d, mask_2d, joint, uncertainty, sum(parts[1:], start=parts[0]), joint_logits)

    def _probabilities(self, logits: Tensor) -> NDArray[np.float32]:
        return np.asarray(self.labels.apply_inference_nonlin(logits).numpy())

    def _logits(self, probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
        """Logits that nnU-Net turns into these probabilities."""
        p = np.clip(probabilities, 1e-7, 1 - 1e-7)
        logits: NDArray[np.floating] = np.log(p) - np.log1p(-p) if self.labels.has_regions else np.log(p)
        return logits

    def _entropy(self, mean: NDArray[np.floating]) -> NDArray[np.floating]:
        """Entropy of each voxel, between 0 and 1: of the classes, or of the most uncertain region."""
        if self.labels.has_regions:
            return np.asarray(binary_entropy(mean).max(0))
        p = np.clip(mean, 1e-7, 1)
        return np.asarray(-(p * np.log(p)).sum(0) / np.log(len(p))).clip(0, 1)

    def _sums(
        self,
        of_3d: NDArray[np.float32],
        of_2d: NDArray[np.float32],
        *segmentations: NDArray[np.integer],
    ) -> Sums:
        channels = [structure.channel for structure in self.structures]
        return sums_of(Pair(of_3d[channels], of_2d[channels], *(masks_of(self.structures, s) for s in segmentations)))


def _parts(shape: tuple[int, ...], voxels: int) -> Iterator[slice]:
    """Slabs along the first axis of at most so many voxels: a whole volume of probabilities may not fit in memory."""
    step = max(1, voxels // int(np.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)
