"""The structures of a dataset: its classes, or its regions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray


@dataclass(frozen=True)
class Structure:
    """A class or a region, without the background.

    Args:
        name: from dataset.json.
        labels: the values that make it up in a mask.
        key: its name in nnU-Net's summary.json.
        channel: of the networks' output.
    """

    name: str
    labels: tuple[int, ...]
    key: str
    channel: int


def structures_of(labels: LabelManager, description: Mapping[str, Any]) -> tuple[Structure, ...]:
    """The structures of a dataset, in the order of the networks' channels.

    Args:
        labels: nnU-Net's view of the labels.
        description: the content of dataset.json.
    """
    named = [(name, value) for name, value in description["labels"].items() if name not in ("background", "ignore")]
    if labels.has_regions:
        return tuple(
            Structure(name, _values(value), str(tuple(value) if isinstance(value, list) else value), channel)
            for channel, (name, value) in enumerate(named)
        )
    return tuple(
        Structure(name, _values(value), str(_values(value)[0]), _values(value)[0])
        for name, value in sorted(named, key=lambda entry: _values(entry[1]))
    )


def _values(value: int | Sequence[int]) -> tuple[int, ...]:
    return (int(value),) if isinstance(value, int) else tuple(map(int, value))


def masks_of(structures: Sequence[Structure], segmentation: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The mask of each structure: `(...)` -> `(S, ...)`."""
    return np.stack([np.isin(segmentation, structure.labels) for structure in structures])
