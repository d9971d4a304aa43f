"""Preprocess one unlabeled case with nnU-Net's own preprocessor, and move it in when it is whole."""

import pickle
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_mn.bridge.cases.headers import Header, fault_of_unit
from nnunet_mn.bridge.cases.images import BadImageError, read_images
from nnunet_mn.bridge.cases.manifest import Manifest, Record, Voxels, look_at, with_content
from nnunet_mn.bridge.cases.raw_images import n_channels
from nnunet_mn.bridge.cases.sources import UnlabeledCase
from nnunet_mn.bridge.preprocessing.leaks import identity_of, open_volume
from nnunet_mn.bridge.preprocessing.soundness import fault_of_volume, varies
from nnunet_mn.bridge.preprocessing.to_do import survey
from nnunet_mn.bridge.words import fault_of_path, name_some, printable
from nnunet_mn.errors import MNError

LITTLE_SPACE = 16 * 2**20  # bytes; with less free space, the disk is blamed for an unwritten case


@dataclass(frozen=True)
class Job:
    """The data in common to all cases.

    Args:
        settings: from `manifest.settings_hash`.
        begun_ns: `time.time_ns()` before the cases were looked at.
    """

    folder: Path
    staging: Path
    plans: dict[str, Any]
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    settings: str
    begun_ns: int


class _CheckedReader:
    """nnU-Net's reader. It refuses images unfit for training."""

    def __init__(self, reader: Any, plans: "_CheckedPlans") -> None:
        self.reader, self.plans, self.job = reader, plans, plans.job

    def read_images(self, images: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        data, properties = read_images(self.reader, images, channels=n_channels(self.job.dataset_json))
        self._check_unit(data, properties, images[0])
        self.plans.varied = [varies(channel) for channel in data]
        self.plans.extremes = float(data.min()), float(data.max())
        return data, properties

    def _check_unit(self, data: np.ndarray, properties: dict[str, Any], image: str) -> None:
        axes, planned = self.job.plans["transpose_forward"], self.job.configuration.configuration
        header = Header(tuple(properties["spacing"][a] for a in axes), tuple(data.shape[1 + a] for a in axes))
        is_resampled = planned.get("resampling_fn_data") != "no_resampling_hack" and len(planned["spacing"]) == 3
        if is_resampled and (fault := fault_of_unit(header, planned["spacing"])):
            raise BadImageError(f"{image}: {fault}")


class _CheckedPlans(PlansManager):
    """Plans with a checking reader of images. nnU-Net's preprocessor runs unchanged and reads each image once.

    `varied` and `extremes` describe the raw image after that.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job.plans)
        self.job = job
        self.varied: list[bool] | None = None
        self.extremes: tuple[float, float] | None = None

    @property
    def image_reader_writer_class(self) -> Any:
        reader_class = super().image_reader_writer_class
        return lambda: _CheckedReader(reader_class(), self)


def prepare_case(job: Job, case: UnlabeledCase) -> Record:
    """Preprocess a case into the staging folder and rename it into its place.

    A case that another process has finished since the job began stays: a training may read it already.

    Returns:
        Its record. For a bad image, `skipped` gives the reason.

    Raises:
        MNError: when the result cannot be written, or memory is short.
    """
    if (record := _done_by_another(job, case)) is not None:
        return record
    checked_ns = time.time_ns()
    try:
        paths = case.files
        before = look_at(paths)
        files = with_content(before, paths)
    except OSError as error:
        images = list(map(str, case.images))
        file = printable(error.filename) if error.filename else name_some(images)  # a failing disk names no file
        fault = next(filter(None, map(fault_of_path, images)), None)
        reason = fault or f"{file} cannot be read ({error.strerror}); restore it or remove the case"
        return Record(case.name, case.source, (), checked_ns, job.settings, skipped=reason)
    try:
        voxels = _preprocess(job, case)
        if look_at(case.files) != before:
            raise BadImageError(f"{case.images[0]} changed while it was read; run again when it is complete")
    except BadImageError as error:
        return Record(case.name, case.source, files, checked_ns, job.settings, skipped=str(error))
    try:
        move_in(case.name, job.staging, job.folder)
    except (OSError, RuntimeError) as error:
        raise not_written(job.staging, error) from error
    return Record(case.name, case.source, files, checked_ns, job.settings, voxels)


def _done_by_another(job: Job, case: UnlabeledCase) -> Record | None:
    """The record of a case that was finished since the job began. Parts and a whole run have locks of their own."""
    volume = _files(job.folder / case.name)[0]
    if not volume.exists() or volume.stat().st_ctime_ns < job.begun_ns:
        return None
    if survey([case], job.folder, job.settings).to_do:
        return None
    return Manifest.read(job.folder).get(case.name)


def _preprocess(job: Job, case: UnlabeledCase) -> Voxels:
    """Run the plans' preprocessor without a segmentation, as for a test case, and save as stock does for training."""
    plans = _CheckedPlans(job)
    preprocessor = job.configuration.preprocessor_class(verbose=False)
    images, target = [str(image) for image in case.images], job.staging / case.name
    try:
        with np.errstate(all="ignore"):  # the result is checked below
            preprocessor.run_case_save(str(target), images, None, plans, job.configuration, job.dataset_json)
        _add_class_locations(_files(target)[2], plans, job.dataset_json)
    except MNError:
        raise
    except MemoryError as error:
        raise MNError(f"{images[0]} does not fit into memory: use fewer processes or a machine with more") from error
    except Exception as error:  # a custom preprocessor may raise anything
        if isinstance(error, OSError) or _files(target)[0].exists() or _is_full(job.staging):
            raise not_written(job.staging, error) from error
        reason = f"{type(error).__name__}: {error}"
        raise BadImageError(f"{images[0]} cannot be preprocessed ({reason}); correct or remove the case") from error
    try:
        volume = open_volume(_files(target)[0])[:]
    except (OSError, RuntimeError) as error:
        raise not_written(job.staging, error) from error
    if fault := fault_of_volume(volume, job.configuration.normalization_schemes, varied=plans.varied):
        reach = "" if plans.extremes is None else " (its voxels reach from {:.3g} to {:.3g})".format(*plans.extremes)
        raise BadImageError(
            f"{name_some(images)} {fault} after normalization{reach}; clip huge ones or remove the case"
        )
    return identity_of(volume)


def _add_class_locations(file: Path, plans: PlansManager, dataset_json: dict[str, Any]) -> None:
    """Add empty `class_locations`. Stock's loader insists on a key for every class."""
    labels = plans.get_label_manager(dataset_json)
    keys = list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)
    if labels.has_ignore_label:
        keys.append([-1, *labels.all_labels])  # all annotated voxels
    properties = pickle.loads(file.read_bytes())  # written a moment ago by nnU-Net
    properties["class_locations"] = {
        tuple(int(label) for label in key) if isinstance(key, (list, tuple)) else int(key): [] for key in keys
    }
    file.write_bytes(pickle.dumps(properties))


def move_in(name: str, staging: Path, folder: Path) -> None:
    """Rename a finished case into its place.

    An old volume goes first and the new one comes last. A mixture of both never looks whole.
    """
    (folder / f"{name}.b2nd").unlink(missing_ok=True)
    for source, target in zip(reversed(_files(staging / name)), reversed(_files(folder / name)), strict=True):
        source.replace(target)


def _files(truncated: Path) -> tuple[Path, Path, Path]:
    """The volume, the nonzero mask and the properties of a preprocessed case."""
    volume, mask, properties = (truncated.with_name(truncated.name + end) for end in (".b2nd", "_seg.b2nd", ".pkl"))
    return volume, mask, properties


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < LITTLE_SPACE


def not_written(folder: Path, error: Exception) -> MNError:
    """The error for a failure to write a case beside the preprocessed ones."""
    free = shutil.disk_usage(folder.parent).free / 2**30 if folder.parent.is_dir() else 0.0
    return MNError(
        f"a preprocessed case could not be written to {folder.parent} ({free:.2f} GiB free there; {error}): make "
        f"room or check the rights there and run again; finished cases are kept"
    )
