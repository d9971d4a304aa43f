"""What the labeled cases look like: volumes and parts of each structure, to compare others with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_mn.bridge.prediction.structures import Structure, masks_of
from nnunet_mn.report.cases import components


@dataclass(frozen=True)
class Usual:
    """One structure in the labeled cases: its volumes in ml, and its numbers of parts."""

    volumes_ml: tuple[float, ...]
    components: tuple[int, ...]

    @property
    def smallest(self) -> float:
        return min(self.volumes_ml, default=0.0)

    @property
    def largest(self) -> float:
        return max(self.volumes_ml, default=0.0)

    @property
    def most_components(self) -> int:
        return max(self.components, default=0)


def usual_structures(
    segmentations: Iterable[NDArray[np.integer]],
    structures: Sequence[Structure],
    *,
    spacing: Sequence[float],
    ignored: int | None,
) -> Mapping[str, Usual]:
    """Measure the labels of the labeled cases, on the grid of the training.

    Cases with voxels to be ignored are left out: parts of their structures may be missing. Without any other case the
    tuples are empty.

    Args:
        segmentations: nnU-Net's labels of each labeled case, `(D, H, W)`.
        structures: of the dataset.
        spacing: mm along each axis of the preprocessed images.
        ignored: the label of voxels that do not count.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    volumes: dict[str, list[float]] = {structure.name: [] for structure in structures}
    parts: dict[str, list[int]] = {structure.name: [] for structure in structures}
    for segmentation in segmentations:
        if ignored is not None and (segmentation == ignored).any():
            continue
        for structure, mask in zip(structures, masks_of(structures, segmentation), strict=True):
            volumes[structure.name].append(float(mask.sum()) * voxel_ml)
            parts[structure.name].append(components(mask))
    return {name: Usual(tuple(volumes[name]), tuple(parts[name])) for name in volumes}
