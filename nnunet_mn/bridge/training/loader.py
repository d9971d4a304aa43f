"""nnU-Net's data loader with mixed batches: labeled samples first, then unlabeled ones."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_mn.bridge.cases.preprocessed import UNREADABLE, Cases, unreadable
from nnunet_mn.bridge.last_word import WorkerFailures
from nnunet_mn.bridge.training.locations import ForegroundLocations
from nnunet_mn.bridge.training.stored_masks import StoredMasks
from nnunet_mn.bridge.training.workers import start_workers
from nnunet_mn.errors import MNError
from nnunet_mn.schedule import UnlabeledCounts


class MixedCases:
    """Labeled and unlabeled cases of two preprocessed folders under one `load_case`.

    Args:
        labeled, unlabeled: nnU-Net datasets without a common identifier. An unlabeled case is read from its own folder
            alone. No label lies there.
        foreground: locations in unlabeled cases, as far as the 3D network has found some; None: unknown.
        masks: stand in for the labels of unlabeled cases; None: nothing does.
    """

    def __init__(
        self,
        labeled: Cases,
        unlabeled: Cases,
        foreground: ForegroundLocations | None = None,
        masks: StoredMasks | None = None,
    ) -> None:
        self.labeled = labeled
        self.foreground = foreground
        self.masks = masks
        self.unlabeled = unlabeled
        self.identifiers = labeled.identifiers  # for the stock loader
        self._unlabeled_names = frozenset(unlabeled.identifiers)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Read a case from its folder."""
        image, segmentation, previous, properties = self._dataset_of(identifier).load_case(identifier)
        if identifier not in self._unlabeled_names:
            return image, segmentation, previous, properties
        if self.foreground is not None:
            found = self.foreground.of(identifier)
            properties = {**properties, "class_locations": {**properties["class_locations"], **found}}
        if self.masks is not None:
            segmentation = self.masks.of(identifier)
        return image, segmentation, previous, properties

    def folder_of(self, identifier: str) -> str:
        """The folder of a case's preprocessed files."""
        return self._dataset_of(identifier).source_folder

    def _dataset_of(self, identifier: str) -> Cases:
        return self.unlabeled if identifier in self._unlabeled_names else self.labeled


class TellingLoader(nnUNetDataLoader):
    """nnU-Net's loader. Its workers tell the trainer their errors; stock's print them and leave the trainer to guess.

    Args:
        failures: takes the errors; None: nobody listens.
        stock, named: the arguments of `nnUNetDataLoader`.
    """

    def __init__(self, *stock: Any, failures: WorkerFailures | None = None, **named: Any) -> None:
        super().__init__(*stock, **named)
        self.failures = failures

    def set_thread_id(self, thread_id: int) -> None:
        """Called in each worker when it starts: one thread, and augmentations of its own."""
        super().set_thread_id(thread_id)
        torch.set_num_threads(1)
        torch.manual_seed(int(np.random.randint(2**31)))

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except Exception as error:
            if self.failures is not None:
                self.failures.tell(error)
            raise


class MixedLoader(TellingLoader):
    """Draws `{'data', 'target', 'keys', 'n_labeled'}` with labeled samples first.

    Worker `w` of `n` draws the batches of the iterations `first + w`, `first + w + n`, ...

    Args:
        counts: the number of unlabeled samples in each batch.
        part: the samples of each batch to draw here; other ranks draw the others.
        first: iteration of the first batch.
        workers: processes, drawing in turn; 0 is this process.
        foreground_share: share of samples with foreground in a whole batch; stock's own is this rank's.
        stock: the remaining arguments of `TellingLoader`.
    """

    def __init__(
        self,
        cases: MixedCases,
        *,
        counts: UnlabeledCounts,
        part: range,
        first: int,
        workers: int,
        foreground_share: float,
        **stock: Any,
    ) -> None:
        super().__init__(cases, len(part), **stock)
        self.counts = counts
        self.part = part
        self.workers = max(1, workers)
        self._iteration = first
        self._labeled = np.array(cases.labeled.identifiers)
        self._unlabeled = np.array(cases.unlabeled.identifiers)
        self._n_labeled = len(part)
        self._is_mixed = False  # the samples now drawn may be unlabeled
        self._keys = np.array([], dtype=str)
        self._forced_share = 1 - round(counts.batch_size * (1 - foreground_share)) / counts.batch_size
        self._stock_oversample: Callable[[int], bool] = self.__dict__["get_do_oversample"]
        self.get_do_oversample = self._oversample_within_group

    def set_thread_id(self, thread_id: int) -> None:
        """Called in each worker when it starts."""
        super().set_thread_id(thread_id)
        self._iteration += thread_id

    def get_indices(self) -> np.ndarray:
        """The names of the cases that stock draws now."""
        return self._keys

    def generate_train_batch(self) -> dict[str, Any]:
        """Stock's batch, with the number of its labeled samples. Samples on top are a second batch of stock's."""
        n_unlabeled = self.counts.in_part(self._iteration, self.part)
        is_mixed = self.counts.of(self._iteration) > 0
        self._iteration += self.workers
        self._n_labeled = len(self.part) - (0 if self.counts.on_top else n_unlabeled)
        # nnU-Net's workers seed numpy's global generator
        labeled = np.random.choice(self._labeled, self._n_labeled)
        unlabeled = np.random.choice(self._unlabeled, n_unlabeled)
        if not self.counts.on_top:
            batch = self._draw(np.concatenate([labeled, unlabeled]), is_mixed=is_mixed)
        elif n_unlabeled == 0:
            batch = self._draw(labeled, is_mixed=False)
        else:
            batch = _one_batch(self._draw(labeled, is_mixed=False), self._draw(unlabeled, is_mixed=True))
        return {**batch, "n_labeled": self._n_labeled}

    def _draw(self, keys: np.ndarray, *, is_mixed: bool) -> dict[str, Any]:
        """Stock's batch of some cases."""
        self._keys, self._is_mixed = keys, is_mixed
        self.batch_size = len(keys)
        for shape in ("data_shape", "seg_shape"):
            if hasattr(self, shape):  # before nnunetv2 2.7
                setattr(self, shape, (len(keys), *getattr(self, shape)[1:]))
        try:
            batch: dict[str, Any] = super().generate_train_batch()
        except MNError:  # of a stored mask; it names the file
            raise
        except UNREADABLE as error:
            raise self._blame(error) from error
        if list(batch["keys"]) != list(keys):  # else pseudo-masks would stand under labeled samples
            raise MNError(
                f"nnU-Net's loader drew {list(batch['keys'])}, not {list(keys)} as it was asked to: this version of "
                f"nnunetv2 does not fit; install one that M&N was tried with"
            )
        return batch

    def get_bbox(self, data_shape: Any, force_fg: bool, class_locations: Mapping[Any, Any], *args: Any) -> Any:
        """The box to crop: a random one if no foreground is known, as in many unlabeled cases."""
        with warnings.catch_warnings():
            if not len(class_locations.get(self.annotated_classes_key, ())):
                warnings.filterwarnings("ignore", message="Warning! No annotated pixels in image!")
            return super().get_bbox(data_shape, force_fg, class_locations, *args)

    def _blame(self, error: Exception) -> Exception:
        """An MNError about the first unreadable case of the last batch, or the error itself if all can be read."""
        for name in self._keys:
            try:
                image, segmentation, *_ = self._data.load_case(name)
                image[:], segmentation[:]
            except UNREADABLE:
                command = "nnunet-mn preprocess" if name in self._unlabeled else "nnUNetv2_preprocess"
                return unreadable(name, self._data.folder_of(name), error, command=command)
        return error

    def _oversample_within_group(self, sample: int) -> bool:
        """Whether a sample must show foreground.

        Stock forces it on the last samples of a batch. Where these may be unlabeled, each sample is forced at random,
        with stock's share of a whole batch as the probability.
        """
        if not self._is_mixed:
            return bool(self._stock_oversample(sample))
        return bool(np.random.uniform() < self._forced_share)


def _one_batch(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two batches as one."""
    targets = first["target"], second["target"]
    both = (
        [torch.cat(pair) for pair in zip(*targets, strict=True)] if isinstance(targets[0], list) else torch.cat(targets)
    )
    return {
        "data": torch.cat([first["data"], second["data"]]),
        "target": both,
        "keys": np.concatenate([first["keys"], second["keys"]]),
    }


def transform_options(labels: LabelManager) -> dict[str, Any]:
    """Arguments about the labels for stock's transforms."""
    return {
        "foreground_labels": labels.foreground_labels,
        "regions": labels.foreground_regions if labels.has_regions else None,
        "ignore_label": labels.ignore_label,
    }


def start(
    train: MixedLoader, val: TellingLoader, *, workers: int, pin_memory: bool, seed: int | None
) -> tuple[Any, Any]:
    """Start both loaders with stock's numbers of workers and of waiting batches.

    Args:
        workers: of the training loader; the validation loader gets half as many.
        pin_memory, seed: see `start_workers`.
    """
    return (
        start_workers(train, workers=workers, cached=max(6, workers // 2), pin_memory=pin_memory, seed=seed),
        start_workers(val, workers=-(-workers // 2), cached=max(3, workers // 4), pin_memory=pin_memory, seed=seed),
    )


def make_repeatable(transform: Any) -> None:
    """Fix the algorithm of a blur inside a transform. Stock chooses by wall clock, and the last bits change with it."""
    if isinstance(transform, GaussianBlurTransform):
        transform.benchmark = False
    for inner in [*getattr(transform, "transforms", []), getattr(transform, "transform", None)]:
        if inner is not None:
            make_repeatable(inner)
