"""More numbers of a predicted case, for scores that the report does not use.

A view is what one network says along one axis. The 3D network is one view, and the 2D network has one along each axis.
"""

import json
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.helpers import softmax_helper_dim0
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.prediction.fold import Case
from nnunet_mn.bridge.prediction.predictor import BothPredictor, Predicted
from nnunet_mn.networks.joint import Joint
from nnunet_mn.quality import binary_entropy
from nnunet_mn.report.cases import CaseResult
from nnunet_mn.report.predictions import Predictions

Probabilities = NDArray[np.floating]


class PredictionsWithViews(Predictions):
    """The report's predictions of a dataset with classes. A file for each case holds the numbers of its views."""

    def numbers(self, name: str) -> dict[str, dict[str, float]]:
        """The numbers of each structure of a case."""
        found: dict[str, dict[str, float]] = json.loads(self._file(name).read_bytes())
        return found

    def _kept(self, role: str, case: Case) -> CaseResult | None:
        return super()._kept(role, case) if self._file(case.name).is_file() else None

    def _make(self, role: str, case: Case) -> CaseResult:
        result = super()._make(role, case)
        by = self._built()
        found = [numbers_of(by.views, by.joint, structure.channel) for structure in by.structures]
        self._file(case.name).parent.mkdir(exist_ok=True)
        write_whole(self._file(case.name), json.dumps(dict(zip(result.structures, found, strict=True))))
        return result

    def _built(self) -> "PredictorOfViews":
        if self._predictor is None:
            self._predictor = PredictorOfViews(self.found, device=self.options.device, mirroring=self.options.mirroring)
        assert isinstance(self._predictor, PredictorOfViews)
        return self._predictor

    def _file(self, name: str) -> Path:
        return self.out / "views" / f"{name}.json"


class PredictorOfViews(BothPredictor):
    """Keeps the views of the case that it predicted last.

    Args:
        views: probabilities of each view, `(V, K, D, H, W)`.
        joint: labels of the joint mask, `(D, H, W)`.
    """

    views: Probabilities
    joint: NDArray[np.integer]

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        networks: Joint = self._predictor.network.joint
        self._heads = self.labels.num_segmentation_heads
        number = 3 + len(networks.axes)
        self._predictor.network = Views(networks)
        self._predictor.label_manager = SimpleNamespace(num_segmentation_heads=number * self._heads)
        self._slide = self._predictor.predict_sliding_window_return_logits
        self._predictor.predict_sliding_window_return_logits = self._logits_of_both

    def predict(self, image: NDArray[np.float32]) -> Predicted:
        predicted = super().predict(image)
        self.joint = predicted.joint
        return predicted

    def _logits_of_both(self, image: Tensor) -> Tensor:
        logits = self._slide(image)
        views = logits[2 * self._heads :].float().split(self._heads)
        self.views = np.stack([softmax_helper_dim0(view).numpy() for view in views])
        return logits[: 2 * self._heads]


class Views(nn.Module):
    """Volume `(B, C, D, H, W)` -> logits `(B, (2 + V)·K, D, H, W)`: those of both networks, then those of each view."""

    def __init__(self, networks: Joint) -> None:
        super().__init__()
        self.joint = networks

    def forward(self, volume: Tensor) -> Tensor:
        along = [self.joint._along(volume, axis) for axis in self.joint.axes]
        of_3d = self.joint._log_probabilities(self.joint.network_3d(volume))
        of_2d = torch.logsumexp(torch.stack(along), 0) - np.log(len(along))
        return torch.cat([self.joint._to_logits(logs) for logs in (of_3d, of_2d, of_3d, *along)], dim=1)


def numbers_of(views: Probabilities, joint: NDArray[np.integer], channel: int) -> dict[str, float]:
    """What the views say about one structure.

    Args:
        views: probabilities of the 3D network, then of the 2D network along each axis, `(V, K, D, H, W)`.
        joint: labels of the joint mask.
        channel: of the structure. It is its label too.

    Returns:
        under_3d, under_2d, under_worst: expected Dice of the joint mask under the probabilities of the 3D network, of
            the 2D network, and of the view that gives the lowest.
        softer: expected Dice with the temperature 2 of the mean probabilities.
        pulled: expected Dice with each probability pulled towards a half where the views disagree.
        views_soft, views_masks: mean Dice of all pairs of views, of their probabilities and of their masks.
        core: voxels with a probability over 0.9, of those over 0.1.
        border: certainty at the border of the joint mask.
    """
    mask = joint == channel
    of_2d = views[1:].mean(0)
    mean = (views[0] + of_2d) / 2
    p, each = mean[channel], views[:, channel]
    pairs = list(combinations(range(len(views)), 2))
    masks = views.argmax(1) == channel
    border = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask)
    heated = np.sqrt(mean)
    return {
        "under_3d": _dice(each[0], mask),
        "under_2d": _dice(of_2d[channel], mask),
        "under_worst": min(_dice(view, mask) for view in each),
        "softer": _dice(heated[channel] / heated.sum(0), mask),
        "pulled": _dice(p + (0.5 - p) * np.clip(2 * each.std(0), 0, 1), mask),
        "views_soft": float(np.mean([_dice(each[i], each[j]) for i, j in pairs])),
        "views_masks": float(np.mean([_dice(masks[i], masks[j]) for i, j in pairs])),
        "core": float((p > 0.9).sum() / max(1, (p > 0.1).sum())),
        "border": float(1 - binary_entropy(p)[border].mean()) if mask.any() else 0.0,
    }


def _dice(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Soft Dice of masks or probabilities. 0 of two empty ones."""
    return float(2 * (one * other).sum() / max(one.sum() + other.sum(), 1e-9))
