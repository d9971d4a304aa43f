"""The dataset's fingerprint for planning: geometry of all images, intensities of labeled cases alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, maybe_convert_to_dataset_name
from tqdm import tqdm

from nnunet_mn.bridge.cases.headers import FEWER, Header, fault_of_unit, read_headers
from nnunet_mn.bridge.cases.raw_images import RawImages
from nnunet_mn.bridge.cases.roles import labeled_for_planning, roles_of_all_folds
from nnunet_mn.bridge.cases.splits import check_agreement, splits_for_planning
from nnunet_mn.bridge.files import read_object
from nnunet_mn.bridge.last_word import last_word
from nnunet_mn.bridge.processes import map_in_processes
from nnunet_mn.bridge.words import fault_of_path, name_some
from nnunet_mn.errors import MNError

FEW_HEADERS = 1000  # are read sooner than processes start
REMEDY = "repair the file, or take its case out of the dataset"
PERCENTILES = {"percentile_00_5": 0.5, "median": 50.0, "percentile_99_5": 99.5}


class MNFingerprintExtractor(DatasetFingerprintExtractor):
    """nnU-Net's extractor on labeled cases alone: `nnUNetv2_plan_and_preprocess -fpe MNFingerprintExtractor`.

    Stock's extractor reads every label in labelsTr, also those of a split's unlabeled cases.

    Args:
        dataset_name_or_id, num_processes, verbose: as stock's.

    Raises:
        MNError: when no case is labeled, an image or a label of a labeled case is missing or cannot be read, their
            shapes differ, or the split file or dataset.json is broken.
    """

    dataset: dict[str, Any]

    @last_word
    def __init__(self, dataset_name_or_id: str | int, num_processes: int = 8, verbose: bool = False) -> None:
        check_description(dataset_name_or_id)
        super().__init__(dataset_name_or_id, num_processes, verbose)
        preprocessed = Path(nnUNet_preprocessed) / self.dataset_name
        splits, self.warnings = splits_for_planning(preprocessed, Path(self.input_folder))
        self.roles = roles_of_all_folds(splits, self.dataset)
        labeled, warnings = labeled_for_planning(self.dataset, splits)
        self.dataset = {name: self.dataset[name] for name in labeled}
        self.warnings += warnings
        raw = RawImages(Path(self.input_folder), self.dataset_json)
        for name in self.dataset:
            raw.check_as_listed(name)

    @property
    def reader(self) -> type[Any]:
        """nnU-Net's reader of the dataset."""
        first = next(iter(self.dataset.values()))["images"][0]
        if fault := fault_of_path(first):
            raise MNError(fault)
        try:
            reader: type[Any] = determine_reader_writer_from_dataset_json(self.dataset_json, first, verbose=False)
        except RuntimeError as error:  # stock tries its readers on this image
            raise MNError(f"{first} cannot be read with any of nnU-Net's readers; {REMEDY}") from error
        return reader

    @last_word
    def run(self, overwrite_existing: bool = False) -> dict[str, Any]:
        """Check the headers of the labeled cases, then write the fingerprint as stock does."""
        self.headers()
        try:
            found: dict[str, Any] = super().run(overwrite_existing)
        except Exception:
            self.analyze()  # stock does not name the case, but this does
            raise
        return found

    def headers(self) -> dict[str, Header]:
        """Headers of the labeled images by case name.

        Raises:
            MNError: when one cannot be read, or its label is missing or of another shape.
        """
        images = {name: [Path(image) for image in files["images"]] for name, files in self.dataset.items()}
        headers, unreadable = _headers(self, images)
        unreadable |= other_units(headers, headers.values())
        unreadable |= self._faulty_labels(headers)
        if unreadable:
            raise MNError(
                f"{len(unreadable)} labeled case(s) cannot be planned for: {name_some(list(unreadable.values()))}; "
                f"{REMEDY}"
            )
        return headers

    def _faulty_labels(self, headers: Mapping[str, Header]) -> dict[str, str]:
        """A sentence for each case whose label is missing, unreadable or of another shape than its image."""
        labels = {name: Path(self.dataset[name]["label"]) for name in headers}
        faults = {name: f"'{name}' has no label {file}" for name, file in labels.items() if not file.is_file()}
        found, unreadable = _headers(self, {name: [file] for name, file in labels.items() if name not in faults})
        shapes = {name: (header.shape, headers[name].shape) for name, header in found.items()}
        other = {
            name: f"'{name}' has a label of {own} voxels, but an image of {of_image}"
            for name, (own, of_image) in shapes.items()
            if own != of_image
        }
        return faults | unreadable | other

    def analyze(self) -> dict[str, tuple[Any, ...]]:
        """The results of stock's `analyze_case`, by case name."""
        samples = int(self.num_foreground_voxels_for_intensitystats // len(self.dataset))
        work = partial(_analyze, self.analyze_case, self.reader, samples)
        processes = min(self.num_processes, len(self.dataset))
        results = map_in_processes(work, self.dataset.items(), processes=processes, remedy=FEWER)
        return dict(sorted(tqdm(results, total=len(self.dataset), desc="Reading labeled cases")))


def _analyze(
    analyze_case: Callable[..., tuple[Any, ...]], reader: type[Any], samples: int, case: tuple[str, Mapping[str, Any]]
) -> tuple[str, tuple[Any, ...]]:
    name, files = case
    try:
        return name, analyze_case(files["images"], files["label"], reader, samples)
    except Exception as error:  # every reader and file format has errors of its own
        reason = " ".join(str(error).split())[-200:] or type(error).__name__
        raise MNError(f"image or label of '{name}' cannot be used ({reason}); {REMEDY}") from error


def check_description(dataset_name_or_id: str | int) -> None:
    """Raise an MNError if a dataset's dataset.json is broken. Stock would not name the file."""
    raw = RawImages.read(Path(nnUNet_raw) / maybe_convert_to_dataset_name(dataset_name_or_id))
    listed = raw.description.get("dataset", {})
    if bare := [name for name, entry in listed.items() if not isinstance(entry.get("label"), str)]:
        raise MNError(
            f"{len(bare)} case(s) in the entry 'dataset' of {raw.folder / 'dataset.json'} have no text under 'label' "
            f"({name_some(bare)}), and nnU-Net needs one for each; add it, or move their images to imagesUn"
        )


def check_splits(dataset_name_or_id: str | int) -> None:
    """Raise an MNError if the split files of a dataset differ so that stock would not plan. It would not say why."""
    name = maybe_convert_to_dataset_name(dataset_name_or_id)
    check_agreement(Path(nnUNet_preprocessed) / name, Path(nnUNet_raw) / name)


def check_fingerprint(dataset_name_or_id: str | int) -> None:
    """Raise an MNError if a dataset's fingerprint is broken. Stock would not name the file."""
    name = maybe_convert_to_dataset_name(dataset_name_or_id)
    file = Path(nnUNet_preprocessed) / name / "dataset_fingerprint.json"
    if file.is_file():  # else stock says what to do
        number = convert_dataset_name_to_id(name)  # the command takes no name
        read_object(file, remedy=f"run 'nnUNetv2_extract_fingerprint -d {number} --clean' again")


def fingerprint(
    extractor: MNFingerprintExtractor, unlabeled: Mapping[str, Sequence[Path]]
) -> tuple[dict[str, Any], list[str]]:
    """A fingerprint as stock's planners read it.

    Cropping leaves some share of each labeled image along each axis. The shape after cropping of an unlabeled image is
    its own shape times the median of these shares.

    Args:
        extractor: for the labeled cases.
        unlabeled: image files of the unlabeled cases by name.

    Returns:
        The fingerprint, and warnings.
    """
    own = extractor.headers()
    analyzed = extractor.analyze()
    left = np.median([np.divide(analyzed[name][0], header.shape) for name, header in own.items()], axis=0)
    headers, unreadable = _headers(extractor, unlabeled)
    unreadable |= (units := other_units(headers, own.values()))
    headers = {name: header for name, header in headers.items() if name not in units}
    warnings = []
    if unreadable:
        warnings.append(
            f"WARNING: {len(unreadable)} unlabeled case(s) are left out of the planning: "
            f"{name_some(list(unreadable.values()))}"
        )
    return {
        "spacings": [list(map(float, a[1])) for a in analyzed.values()] + [list(h.spacing) for h in headers.values()],
        "shapes_after_crop": [list(map(int, a[0])) for a in analyzed.values()]
        + [_cropped(header, left) for header in headers.values()],
        "foreground_intensity_properties_per_channel": _intensities([a[2] for a in analyzed.values()]),
        "median_relative_size_after_cropping": float(np.median([a[4] for a in analyzed.values()])),
    }, warnings


def _headers(
    extractor: MNFingerprintExtractor, cases: Mapping[str, Sequence[Path]]
) -> tuple[dict[str, Header], dict[str, str]]:
    few = len(cases) < FEW_HEADERS
    return read_headers(extractor.reader, cases, processes=1 if few else extractor.num_processes)


def other_units(headers: Mapping[str, Header], planned: Iterable[Header]) -> dict[str, str]:
    """A sentence for each case whose spacing is far from the median of the planned cases."""
    usual = np.median([header.spacing for header in planned], axis=0).tolist()
    faults = {name: fault_of_unit(header, usual) for name, header in headers.items()}
    return {name: f"'{name}' has {fault}" for name, fault in faults.items() if fault is not None}


def _cropped(header: Header, left: np.ndarray) -> list[int]:
    return [max(1, round(n * share)) for n, share in zip(header.shape, left, strict=True)]


def _intensities(sampled: Sequence[Sequence[np.ndarray]]) -> dict[str, dict[str, float]]:
    """Statistics of each channel over the foreground voxels drawn from every case.

    Args:
        sampled: by case, then by channel.
    """
    statistics = {}
    for channel, of_cases in enumerate(zip(*sampled, strict=True)):
        values = np.concatenate(of_cases)
        if len(values) == 0:
            raise MNError("no labeled case has a foreground voxel; check the labels in labelsTr")
        found = dict(zip(PERCENTILES, np.percentile(values, list(PERCENTILES.values())), strict=True))
        found |= {"mean": np.mean(values), "std": np.std(values), "min": np.min(values), "max": np.max(values)}
        statistics[str(channel)] = {key: float(value) for key, value in found.items()}
    return statistics
