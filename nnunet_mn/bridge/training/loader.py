"""nnU-Net's data loader, drawing mixed batches: labeled samples first, then unlabeled ones."""

import pickle
import warnings
from collections.abc import Callable, Mapping
from multiprocessing import Value
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_mn.bridge.last_word import WorkerFailures
from nnunet_mn.bridge.training.foreground import ForegroundLocations
from nnunet_mn.errors import MNError
from nnunet_mn.schedule import SharedBatch, UnlabeledCounter

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError)  # what damaged files raise


class Cases(Protocol):
    """What the loader needs of an nnU-Net dataset."""

    identifiers: list[str]
    source_folder: str

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image, segmentation, previous stage's segmentation and properties."""
        ...


class JointCases:
    """Labeled and unlabeled cases of two preprocessed folders under one `load_case`.

    Args:
        labeled, unlabeled: nnU-Net datasets without a common identifier. A case listed as unlabeled is read from the
            folder of the unlabeled ones alone, which holds no label.
        foreground: where unlabeled cases show foreground, as far as the 3D network has found some; None: unknown.
    """

    def __init__(self, labeled: Cases, unlabeled: Cases, foreground: ForegroundLocations | None = None) -> None:
        self.labeled = labeled
        self.foreground = foreground
        self.unlabeled = unlabeled
        self.identifiers = labeled.identifiers  # what the stock loader looks at
        self._unlabeled_names = frozenset(unlabeled.identifiers)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Read a case from its folder."""
        image, segmentation, previous, properties = self._dataset_of(identifier).load_case(identifier)
        if self.foreground is not None and identifier in self._unlabeled_names:
            found = self.foreground.of(identifier)
            properties = {**properties, "class_locations": {**properties["class_locations"], **found}}
        return image, segmentation, previous, properties

    def folder_of(self, identifier: str) -> str:
        """Where a case's preprocessed files lie."""
        return self._dataset_of(identifier).source_folder

    def _dataset_of(self, identifier: str) -> Cases:
        return self.unlabeled if identifier in self._unlabeled_names else self.labeled


class SharedFraction:
    """The wanted share of unlabeled samples, set by the trainer and read by every worker."""

    def __init__(self) -> None:
        self._value = Value("d", 0.0, lock=False)  # one aligned double: written and read in one piece

    def get(self) -> float:
        """The share, 0 to 1."""
        return float(self._value.value)

    def set(self, fraction: float) -> None:
        """Change the share of batches drawn from now on."""
        self._value.value = fraction


class RankPart(NamedTuple):
    """What one of several ranks draws of each batch.

    Args:
        batches: its number of unlabeled samples, batch after batch.
        workers: how many processes draw them, in turn.
        oversample: nnU-Net's share of samples that must show foreground, of the whole batch.
    """

    batches: SharedBatch
    workers: int
    oversample: float


class TellingLoader(nnUNetDataLoader):  # type: ignore[misc]
    """nnU-Net's loader, whose workers tell the trainer why they end: stock's print it and leave the trainer to guess.

    Args:
        failures: where they tell it; None: nobody listens.
        stock: the arguments of `nnUNetDataLoader`.
    """

    def __init__(self, *stock: Any, failures: WorkerFailures | None = None, **named: Any) -> None:
        super().__init__(*stock, **named)
        self.failures = failures

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except Exception as error:
            if self.failures is not None:
                self.failures.tell(error)
            raise


class MixedLoader(TellingLoader):
    """Draws `{'data', 'target', 'keys', 'n_labeled'}` with labeled samples first.

    Each worker has its own copy, and so diffuses its own rounding error; batches may wait in the queue for some
    iterations, which is why each says itself how many of its samples are labeled.

    Args:
        cases: labeled and unlabeled cases.
        counter: turns the share into a number of samples; knows the batch size.
        fraction: the share, which the trainer changes as training goes on.
        part: where several ranks share a batch, what this one draws of it; None: all.
        stock: the remaining arguments of `TellingLoader`, by name.
    """

    def __init__(
        self,
        cases: JointCases,
        *,
        counter: UnlabeledCounter,
        fraction: SharedFraction,
        part: RankPart | None = None,
        **stock: Any,
    ) -> None:
        super().__init__(cases, counter.batch_size if part is None else len(part.batches.part), **stock)
        self.counter = counter
        self.fraction = fraction
        self.part = part
        self._labeled = np.array(cases.labeled.identifiers)
        self._unlabeled = np.array(cases.unlabeled.identifiers)
        self._n_labeled = self.batch_size
        self._is_mixed = False
        self._keys = np.array([], dtype=str)
        oversample = self.oversample_foreground_percent if part is None else part.oversample
        self._forced_share = 1 - round(counter.batch_size * (1 - oversample)) / counter.batch_size
        self._stock_oversample: Callable[[int], bool] = self.__dict__["get_do_oversample"]
        self.get_do_oversample = self._oversample_within_group

    def get_indices(self) -> np.ndarray:
        """The names of a batch's cases."""
        n_unlabeled = self._count_unlabeled()
        self._n_labeled = self.batch_size - n_unlabeled
        # nnU-Net's workers seed numpy's global generator
        self._keys = np.concatenate(
            [np.random.choice(self._labeled, self._n_labeled), np.random.choice(self._unlabeled, n_unlabeled)]
        )
        return self._keys

    def _count_unlabeled(self) -> int:
        """How many samples of the next batch, or of this rank's part of it, are unlabeled."""
        if self.part is None:
            mine = whole = self.counter.next(self.fraction.get())
        else:
            whole, mine = self.part.batches.next()
            self.part.batches.skip(self.part.workers - 1)
        self._is_mixed = whole > 0
        return mine

    def set_thread_id(self, thread_id: int) -> None:
        """Called in each worker when it starts."""
        super().set_thread_id(thread_id)
        if self.part is not None:
            self.part.batches.skip(thread_id)
            torch.set_num_threads(1)  # batchgenerators does both of these for its unordered workers alone
            torch.manual_seed(int(np.random.randint(2**31)))

    def generate_train_batch(self) -> dict[str, Any]:
        """A batch as stock draws it, with the number of its labeled samples."""
        try:
            batch: dict[str, Any] = super().generate_train_batch()
        except UNREADABLE as error:
            raise self._blame(error) from error
        return {**batch, "n_labeled": self._n_labeled}

    def get_bbox(self, data_shape: Any, force_fg: bool, class_locations: Mapping[Any, Any], *args: Any) -> Any:
        """Where to crop; at random where nothing is known of the classes, as in many unlabeled cases."""
        with warnings.catch_warnings():
            if not len(class_locations.get(self.annotated_classes_key, ())):
                warnings.filterwarnings("ignore", message="Warning! No annotated pixels in image!")
            return super().get_bbox(data_shape, force_fg, class_locations, *args)

    def _blame(self, error: Exception) -> Exception:
        """An MNError about the case of the last batch that cannot be read, or the error itself if all can."""
        for name in self._keys:
            try:
                image, segmentation, *_ = self._data.load_case(name)
                image[:], segmentation[:]
            except UNREADABLE:
                folder = self._data.folder_of(name)
                command = "nnunet-mn preprocess" if name in self._unlabeled else "nnUNetv2_preprocess"
                return MNError(
                    f"the preprocessed case '{name}' in {folder} cannot be read ({error}): delete its files there and "
                    f"run {command} for this dataset"
                )
        return error

    def _oversample_within_group(self, sample: int) -> bool:
        """Whether a sample must show foreground.

        Stock forces it on the last samples of a batch, which in a mixed one are always the unlabeled ones: there each
        sample is forced with the share that stock gives a whole batch.
        """
        if not self._is_mixed:
            return bool(self._stock_oversample(sample))
        return bool(np.random.uniform() < self._forced_share)


def make_repeatable(transform: Any) -> None:
    """Stop a blur inside a transform from choosing its algorithm by wall clock, which changes the last bits."""
    if isinstance(transform, GaussianBlurTransform):
        transform.benchmark = False
    for inner in [*getattr(transform, "transforms", []), getattr(transform, "transform", None)]:
        if inner is not None:
            make_repeatable(inner)
