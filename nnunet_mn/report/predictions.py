"""All cases of a report: predicted with progress, and kept case by case. A stopped run goes on where it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nnunet_mn.bridge.cases.preprocessed import state_of
from nnunet_mn.bridge.prediction.fold import Case, TrainedFold, load_case
from nnunet_mn.bridge.prediction.masks import mask_files, write_masks
from nnunet_mn.bridge.prediction.predictor import BothPredictor
from nnunet_mn.errors import MNError
from nnunet_mn.networks.weights import hash_of
from nnunet_mn.report.cases import CaseResult, assess, read_result, write_result
from nnunet_mn.report.validation import distances

FORMAT = 1  # of the kept results: another number has them made anew


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """How to predict.

    Args:
        device: of the networks.
        mirroring: average over mirrored windows.
        masks: write the joint masks of unlabeled cases as files.
    """

    device: torch.device
    mirroring: bool
    masks: bool


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """A context: an error of the file system becomes a message about the report's folder.

    Raises:
        MNError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise MNError(f"the report cannot be written to {out} ({error}); give another folder with -o") from error


class Predictions:
    """The cases of a trained fold.

    Args:
        found: the trained fold.
        out: the report's folder.
        options: how to predict.
    """

    def __init__(self, found: TrainedFold, out: Path, options: PredictionOptions) -> None:
        self.found, self.out, self.options = found, out, options
        of_both = (found.checkpoint["network_weights"], found.checkpoint["mn"]["network_2d"])
        self._of_model = [FORMAT, *(hash_of(weights.items()) for weights in of_both), options.mirroring]
        self._predictor: BothPredictor | None = None

    def all(self, log: Callable[[str], None]) -> list[CaseResult]:
        """Predict what is missing, and return every case.

        Args:
            log: takes lines for the user.

        Raises:
            MNError: when the networks cannot be built, a case cannot be read, or a result cannot be written.
        """
        cases = [(role, case) for role in ("val", "unlabeled") for case in self.found.cases(role)]
        kept = {(role, case): self._kept(role, case) for role, case in cases}
        missing = [key for key, result in kept.items() if result is None]
        if ready := len(cases) - len(missing):
            log(f"{ready} of {len(cases)} cases are predicted already")
        earlier = [case for role, case in missing if role == "unlabeled" and self._mask_files(case)[0].exists()]
        if self.options.masks and earlier:
            log(f"masks that are there stay: {len(earlier)}; delete one in {self.out / 'masks'} to get a new one")
        for role, case in tqdm(missing, desc="Predicting with both networks", unit="case", disable=not missing):
            kept[role, case] = self._make(role, case)
        return [result for result in kept.values() if result is not None]

    def _kept(self, role: str, case: Case) -> CaseResult | None:
        if role == "unlabeled" and self.options.masks and not all(file.exists() for file in self._mask_files(case)):
            return None
        return read_result(self._result_file(role, case), self._key(role, case))

    def _make(self, role: str, case: Case) -> CaseResult:
        key, loaded, by = self._key(role, case), load_case(case), self._built()
        predicted = by.predict(loaded.image)
        if role == "unlabeled" and self.options.masks:
            with writing_to(self.out):
                write_masks(self.out, case.name, predicted, loaded.properties, by)
        hd95 = self._distances(case, by) if role == "val" else {}
        result = assess(case.name, role, loaded, predicted, by, hd95)
        with writing_to(self.out):
            write_result(self._result_file(role, case), key, result)
        return result

    def _built(self) -> BothPredictor:
        if self._predictor is None:
            self._predictor = BothPredictor(self.found, device=self.options.device, mirroring=self.options.mirroring)
        return self._predictor

    def _distances(self, case: Case, by: BothPredictor) -> dict[str, float]:
        truth, mask = self._validated(case)
        if not (self.found.is_finished and truth.is_file() and mask.is_file()):
            return {}
        return distances(truth, mask, by.plans, by.structures, by.labels.ignore_label)

    def _validated(self, case: Case) -> tuple[Path, Path]:
        """The truth of a validation case, and nnU-Net's mask of it."""
        ending = self._ending
        preprocessed = self.found.planned.folders.preprocessed
        return (
            preprocessed / "gt_segmentations" / f"{case.name}{ending}",
            self.found.folder / "validation" / f"{case.name}{ending}",
        )

    @property
    def _ending(self) -> str:
        return str(self.found.planned.dataset_json["file_ending"])

    def _mask_files(self, case: Case) -> tuple[Path, Path]:
        return mask_files(self.out, case.name, self._ending)

    def _result_file(self, role: str, case: Case) -> Path:
        return self.out / "cases" / role / f"{case.name}.json"

    def _key(self, role: str, case: Case) -> list[Any]:
        """Everything that the result of a case depends on."""
        of_case = state_of(case.folder, case.name)
        return [*self._of_model, of_case, *(_states(self._validated(case)) if role == "val" else ())]


def _states(files: tuple[Path, ...]) -> Iterator[list[int] | None]:
    for file in files:
        yield [file.stat().st_size, file.stat().st_mtime_ns] if file.is_file() else None
