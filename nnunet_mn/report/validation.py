"""nnU-Net's own validation of the 3D network: Dice from its `summary.json`, distances from its masks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mn.bridge.prediction.structures import Structure, masks_of
from nnunet_mn.distances import hausdorff_95
from nnunet_mn.errors import MNError
from nnunet_mn.report.cases import or_none

Dice = Mapping[str, Mapping[str, float | None]]  # by case and structure; None where neither mask has it


def read_validation(folder: Path, structures: Sequence[Structure], ending: str) -> Dice:
    """Dice of each validation case and structure. It is empty as long as nnU-Net has not validated.

    Args:
        folder: `fold_X/validation`.
        ending: of image files.

    Raises:
        MNError: when the file is damaged.
    """
    file = folder / "summary.json"
    if not file.is_file():
        return {}
    try:
        cases = json.loads(file.read_text(encoding="utf-8"))["metric_per_case"]
        return {
            Path(case["prediction_file"]).name.removesuffix(ending): {
                s.name: or_none(float(case["metrics"][s.key]["Dice"])) for s in structures
            }
            for case in cases
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MNError(f"{file} cannot be read ({error}); run nnUNetv2_train with --val to write it anew") from error


def distances(
    truth: Path, prediction: Path, plans: PlansManager, structures: Sequence[Structure], ignored: int | None
) -> dict[str, float]:
    """HD95 in mm of each structure, in the image's own geometry. NaN where a mask is empty.

    Args:
        truth, prediction: files of the same case.
        plans: they name nnU-Net's reader.
        ignored: the label of voxels that do not count.
    """
    reader: Any = plans.image_reader_writer_class()
    true, properties = reader.read_seg(str(truth))
    predicted, _ = reader.read_seg(str(prediction))
    counted = np.ones(true.shape[1:], bool) if ignored is None else true[0] != ignored
    pairs = zip(masks_of(structures, true[0]), masks_of(structures, predicted[0]), strict=True)
    spacing = tuple(float(s) for s in properties["spacing"])
    return {
        s.name: hausdorff_95(a & counted, b & counted, spacing) for s, (a, b) in zip(structures, pairs, strict=True)
    }
