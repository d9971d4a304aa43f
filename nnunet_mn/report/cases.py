"""One case of the report: its numbers and pictures, and the file that keeps them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.prediction.fold import Loaded
from nnunet_mn.bridge.prediction.predictor import BothPredictor, Predicted
from nnunet_mn.bridge.prediction.structures import masks_of
from nnunet_mn.report.pictures import Picture, Shown, small_picture, three_planes

NETWORKS = ("3D", "2D", "joint")


@dataclass(frozen=True, kw_only=True)
class StructureNumbers:
    """One structure of one case. None stands for what does not exist, such as the Dice of two empty masks.

    Args:
        estimate: the estimated Dice of the joint mask.
        disagreement: 1 - Dice between both networks.
        entropy: mean uncertainty where either network sees the structure, 0 to 1.
        volume_ml, components: of the joint mask.
        dice: of each network and of both against the truth, on the grid of the training; only of validation cases.
    """

    estimate: float | None
    disagreement: float | None
    entropy: float | None
    volume_ml: float
    components: int
    dice: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """All about one case.

    Args:
        name, role: the role is `val` or `unlabeled`.
        structures: by name.
        hd95: of nnU-Net's validation mask, in mm, by structure.
        thumbnail: SVG.
        planes: the three planes.
    """

    name: str
    role: str
    structures: Mapping[str, StructureNumbers]
    hd95: Mapping[str, float | None]
    thumbnail: str
    planes: Sequence[Picture]


def assess(
    name: str, role: str, loaded: Loaded, predicted: Predicted, made_by: BothPredictor, hd95: Mapping[str, float]
) -> CaseResult:
    """Numbers and pictures of a predicted case.

    Args:
        name, role: of the case.
        loaded: its preprocessed files. Those of a validation case hold the truth.
        predicted: what both networks say.
        made_by: the predictor.
        hd95: of nnU-Net's validation mask.
    """
    segmentations = dict(zip(NETWORKS, (predicted.mask_3d, predicted.mask_2d, predicted.joint), strict=True))
    masks = {network: masks_of(made_by.structures, one) for network, one in segmentations.items()}
    truth = masks_of(made_by.structures, loaded.segmentation) if role == "val" else None
    counted = loaded.segmentation != made_by.labels.ignore_label if made_by.labels.has_ignore_label else None
    shown = Shown(
        image=loaded.image[0],
        masks=({} if truth is None else {"truth": truth}) | {_css(network): one for network, one in masks.items()},
        uncertainty=predicted.uncertainty,
        spacing=tuple(made_by.configuration.spacing),
    )
    wrong = (masks["3D"] != masks["2D"]).any(0) if truth is None else (masks["joint"] != truth).any(0)
    if truth is not None and counted is not None:
        wrong &= counted
    return CaseResult(
        name=name,
        role=role,
        structures=dict(_numbers(predicted, masks, truth, counted, made_by)),
        hd95={structure: or_none(value) for structure, value in hd95.items()},
        thumbnail=small_picture(shown, np.asarray(masks["joint"].any(0))),
        planes=three_planes(shown, np.asarray(wrong)),
    )


def _css(network: str) -> str:
    return f"of-{network.lower()}"


def _numbers(
    predicted: Predicted,
    masks: Mapping[str, NDArray[np.bool_]],
    truth: NDArray[np.bool_] | None,
    counted: NDArray[np.bool_] | None,
    made_by: BothPredictor,
) -> Iterator[tuple[str, StructureNumbers]]:
    sums = predicted.sums
    voxel_ml = float(np.prod(made_by.configuration.spacing)) / 1000
    for i, structure in enumerate(made_by.structures):
        dice = {} if truth is None else {n: _dice(one[i], truth[i], counted) for n, one in masks.items()}
        yield (
            structure.name,
            StructureNumbers(
                estimate=or_none(sums.expected_dice[i]),
                disagreement=or_none(sums.disagreement[i]),
                entropy=or_none(sums.mean_entropy[i]),
                volume_ml=float(sums.n_joint[i]) * voxel_ml,
                components=components(masks["joint"][i]),
                dice=dice,
            ),
        )


def components(mask: NDArray[np.bool_]) -> int:
    """The number of parts of a mask that do not touch, not even at a corner."""
    return int(ndimage.label(mask, np.ones((3, 3, 3)))[1])


def _dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_], counted: NDArray[np.bool_] | None) -> float | None:
    if counted is not None:
        mask, truth = mask & counted, truth & counted
    sizes = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / sizes if sizes else None


def or_none(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)


def read_result(file: Path, key: Any) -> CaseResult | None:
    """The result in a file. None if there is none, or if it is of another key.

    Args:
        file: of the case.
        key: of everything that the result depends on, in plain lists and values.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):  # a kill or another version may have left anything
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["key"] == key:
            return _result(content["case"])
    return None


def write_result(file: Path, key: Any, result: CaseResult) -> None:
    """Put a result where `read_result` finds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps({"key": key, "case": asdict(result)}))


def _result(raw: dict[str, Any]) -> CaseResult:
    structures = {name: StructureNumbers(**numbers) for name, numbers in raw.pop("structures").items()}
    planes = [Picture(**picture) for picture in raw.pop("planes")]
    return CaseResult(structures=structures, planes=planes, **raw)
