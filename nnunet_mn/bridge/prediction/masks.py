"""Masks and maps of uncertainty as files with the image's own geometry."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.inference.export_prediction import export_prediction_from_logits

from nnunet_mn.bridge.cases.images import check_nifti
from nnunet_mn.bridge.prediction.predictor import BothPredictor, Predicted
from nnunet_mn.bridge.staging import staging_beside


def mask_files(folder: Path, name: str, ending: str) -> tuple[Path, Path]:
    """The files of a case: its mask, and the map of its uncertainty."""
    return folder / "masks" / f"{name}{ending}", folder / "uncertainty" / f"{name}{ending}"


def write_masks(
    folder: Path, name: str, predicted: Predicted, properties: dict[str, Any], made_by: BothPredictor
) -> None:
    """Write the joint mask and the map of uncertainty of a case. A mask that is there stays: it may have been edited.

    The mask has nnU-Net's labels. The map holds percent, 0 to 100.

    Args:
        folder: of the report.
        name: of the case.
        predicted: on the grid of the preprocessed image.
        properties: of the case, from nnU-Net's preprocessing.
        made_by: the predictor.

    Raises:
        OSError: when a file cannot be written whole.
    """
    ending = made_by.description["file_ending"]
    mask, uncertainty = mask_files(folder, name, ending)
    for file in (mask, uncertainty):
        file.parent.mkdir(parents=True, exist_ok=True)
    if not mask.exists():
        with _moved_to(mask, made_by) as part:
            export_prediction_from_logits(
                predicted.logits, properties, made_by.configuration, made_by.plans, made_by.description,
                str(part).removesuffix(ending), num_threads_torch=1,
            )  # fmt: skip
    with _moved_to(uncertainty, made_by) as part:
        _write_map(part, predicted, properties, made_by)


@contextmanager
def _moved_to(file: Path, made_by: BothPredictor) -> Iterator[Path]:
    """A path of the same name in a temporary folder. What is written there is moved beside `file`, and `file` last.

    Some of nnU-Net's writers put a second file beside the image: that for TIFF keeps the spacing in NAME.json.
    """
    with staging_beside(file) as folder:
        part = folder / file.name
        yield part
        _check_whole(part, made_by)
        for written in sorted(folder.iterdir(), key=lambda one: one == part):
            written.replace(file.with_name(written.name))


def _check_whole(file: Path, made_by: BothPredictor) -> None:
    """Raise an OSError unless a mask can be read. On a full disk ITK truncates a NIfTI file and raises nothing."""
    try:
        made_by.plans.image_reader_writer_class().read_seg(str(file))
        check_nifti(str(file))
    except Exception as error:  # every reader and file format has errors of its own
        raise OSError(f"{file.name} was not written whole; the disk may be full") from error


def _write_map(file: Path, predicted: Predicted, properties: dict[str, Any], made_by: BothPredictor) -> None:
    """Resample, uncrop and transpose back, as nnU-Net's export does with a mask."""
    forward = made_by.plans.transpose_forward
    resampled = made_by.configuration.resampling_fn_probabilities(
        predicted.uncertainty[None].astype(np.float32),
        properties["shape_after_cropping_and_before_resampling"],
        made_by.configuration.spacing,
        [properties["spacing"][axis] for axis in forward],
    )
    whole = np.zeros(properties["shape_before_cropping"], np.uint8)
    percent = np.rint(np.clip(np.asarray(resampled)[0], 0, 100)).astype(np.uint8)
    whole = insert_crop_into_image(whole, percent, properties["bbox_used_for_cropping"])
    writer = made_by.plans.image_reader_writer_class()
    writer.write_seg(whole.transpose(made_by.plans.transpose_backward), str(file), properties)
