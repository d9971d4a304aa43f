from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_mn.bridge.training.loader import (
    MixedCases,
    MixedLoader,
    make_repeatable,
)
from nnunet_mn.bridge.training.stored_masks import StoredMasks
from nnunet_mn.bridge.training.workers import start_workers
from nnunet_mn.errors import MNError
from nnunet_mn.schedule import Schedule, UnlabeledCounts

PATCH = (8, 8, 8)
FOREGROUND = 7.0  # intensity of foreground voxels


def _write_case(folder: Path, name: str, *, labeled: bool, classes: tuple[Any, ...]) -> None:
    image, seg = np.zeros((1, 24, 24, 24), np.float32), np.zeros((1, 24, 24, 24), np.int16)
    image[0, 3, 3, 3], seg[0, 3, 3, 3] = FOREGROUND, labeled
    locations: dict[Any, Any] = {c: [] for c in classes}
    if labeled:
        locations[classes[0]] = np.argwhere(seg == 1)
        if len(classes) > 1:
            locations[classes[1]] = np.argwhere(seg >= 0)
    chunks = {"chunks": image.shape, "blocks": image.shape, "chunks_seg": seg.shape, "blocks_seg": seg.shape}
    nnUNetDatasetBlosc2.save_case(image, seg, {"class_locations": locations}, str(folder / name), **chunks)


@dataclass(frozen=True, kw_only=True)
class Share(Schedule):
    """The same share of unlabeled samples from the supervised stage's end on."""

    share: float

    def unlabeled_fraction(self, iteration: float) -> float:
        return self.share if self.is_cotraining(iteration) else 0.0


@pytest.fixture
def make_loader(tmp_path: Path) -> Callable[..., MixedLoader]:
    def make(
        *,
        batch_size: int = 4,
        fraction: float = 0.5,
        from_iteration: int = 0,
        first: int = 0,
        workers: int = 0,
        ignore: bool = False,
        oversample: float = 0.33,
        batch: Literal["replace", "add"] = "replace",
    ) -> MixedLoader:
        labels = {"background": 0, "organ": 1} | ({"ignore": 2} if ignore else {})
        classes = (1, (-1, 0, 1)) if ignore else (1,)
        for kind in ("labeled", "unlabeled"):
            (tmp_path / kind).mkdir()
            for i in range(3):
                _write_case(tmp_path / kind, f"{kind}_{i}", labeled=kind == "labeled", classes=classes)
        schedule = Share(total=1000, supervised=from_iteration, share=fraction)
        return MixedLoader(
            MixedCases(*(nnUNetDatasetBlosc2(str(tmp_path / kind)) for kind in ("labeled", "unlabeled"))),
            counts=UnlabeledCounts(schedule, batch_size=batch_size, batch=batch, rounding="diffusion"),
            part=range(batch_size),
            first=first,
            workers=workers,
            foreground_share=oversample,
            patch_size=PATCH,
            final_patch_size=PATCH,
            label_manager=LabelManager(labels, None),
            oversample_foreground_percent=oversample,
        )

    return make


def test_labeled_samples_come_first_and_are_counted(make_loader: Callable[..., MixedLoader]) -> None:
    loader = make_loader(fraction=0.6)
    counts = []
    for _ in range(20):
        batch = next(loader)
        kinds = [str(key).partition("_")[0] for key in batch["keys"]]
        assert kinds == ["labeled"] * batch["n_labeled"] + ["unlabeled"] * (4 - batch["n_labeled"])
        assert batch["data"].shape == (4, 1, *PATCH)
        counts.append(4 - batch["n_labeled"])
    assert np.mean(counts) == pytest.approx(0.6 * 4, abs=0.1)


def test_a_loader_of_nnunet_that_draws_other_cases_is_refused(
    make_loader: Callable[..., MixedLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pseudo-masks would stand under labeled samples."""
    loader = make_loader()
    monkeypatch.setattr(loader, "get_indices", lambda: ["labeled_0"] * 4)
    with pytest.raises(MNError, match=r"nnU-Net's loader drew \['labeled_0', .* this version of nnunetv2 does not fit"):
        next(loader)


def test_samples_on_top_come_after_a_whole_labeled_batch(make_loader: Callable[..., MixedLoader]) -> None:
    loader = make_loader(batch_size=2, fraction=1, from_iteration=1, batch="add")
    for n_unlabeled in (0, 2, 2):
        batch = next(loader)
        kinds = [str(key).partition("_")[0] for key in batch["keys"]]
        assert kinds == ["labeled"] * 2 + ["unlabeled"] * n_unlabeled
        assert batch["n_labeled"] == 2
        assert batch["data"].shape == (2 + n_unlabeled, 1, *PATCH)
        assert len(batch["target"]) == 2 + n_unlabeled


def test_the_labeled_batch_under_samples_on_top_is_oversampled_as_stock_does(
    make_loader: Callable[..., MixedLoader],
) -> None:
    np.random.seed(0)
    loader = make_loader(batch_size=2, fraction=1, batch="add", oversample=0.33)  # stock: the last of two
    shown = [[float(sample.max()) == FOREGROUND for sample in next(loader)["data"][:2]] for _ in range(60)]
    assert all(second for _, second in shown)
    assert sum(first for first, _ in shown) < 10


def test_the_number_of_unlabeled_samples_follows_from_the_iteration(make_loader: Callable[..., MixedLoader]) -> None:
    loader = make_loader(fraction=1, from_iteration=2)
    assert [next(loader)["n_labeled"] for _ in range(4)] == [4, 4, 1, 1]


def test_a_batch_without_unlabeled_samples_is_oversampled_as_stock_does(
    make_loader: Callable[..., MixedLoader],
) -> None:
    loader = make_loader(fraction=0)
    loader.get_indices()
    assert [loader.get_do_oversample(i) for i in range(4)] == [False, False, False, True]


def test_labeled_samples_of_a_mixed_batch_show_foreground_as_often_as_in_a_stock_batch(
    make_loader: Callable[..., MixedLoader],
) -> None:
    np.random.seed(0)
    loader = make_loader(batch_size=2, fraction=0.5, oversample=0.33)  # stock: one of two samples
    shown = [float(next(loader)["data"][0].max()) == FOREGROUND for _ in range(300)]
    # the one foreground voxel lies in 4^3 of the 17^3 random crops (1.3 %), and in all forced ones
    assert np.mean(shown) == pytest.approx(0.5, abs=0.08)


def test_unlabeled_cases_without_locations_are_cropped_at_random_and_without_a_warning(
    make_loader: Callable[..., MixedLoader],
) -> None:
    loader = make_loader(fraction=1, ignore=True, oversample=1.0)
    loader.get_indices()
    corners = {tuple(loader.get_bbox(np.array([24] * 3), True, {1: [], (-1, 0, 1): []})[0]) for _ in range(30)}
    assert len(corners) > 20
    for _ in range(5):
        next(loader)  # warnings are errors here


def test_a_damaged_mask_of_a_teacher_is_named_and_no_case(
    make_loader: Callable[..., MixedLoader], tmp_path: Path
) -> None:
    loader = make_loader(fraction=1)
    masks = StoredMasks(tmp_path, "0123456789abcdef")
    masks.folder.mkdir()
    for i in range(3):
        (masks.folder / f"unlabeled_{i}.b2nd").write_bytes(b"damaged")
    loader._data.masks = masks
    with pytest.raises(
        MNError, match=r"^the teacher's mask .*\.b2nd cannot be read .*delete it and continue with --c$"
    ):
        next(loader)


@pytest.mark.parametrize("damage", ["labeled_1.pkl", "unlabeled_2.b2nd", "unlabeled_0_seg.b2nd"])
def test_a_damaged_file_is_named_with_the_command_that_makes_it_anew(
    make_loader: Callable[..., MixedLoader], tmp_path: Path, damage: str
) -> None:
    loader = make_loader()
    kind, case = damage.partition("_")[0], damage.split(".")[0].removesuffix("_seg")
    (tmp_path / kind / damage).write_bytes(b"damaged")
    command = {"labeled": "nnUNetv2_preprocess", "unlabeled": "nnunet-mn preprocess"}[kind]
    with pytest.raises(MNError, match=f"'{case}' in .*{kind} cannot be read.*{command}"):
        [next(loader) for _ in range(30)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_this_process_or_of_workers_come_in_the_order_of_iterations(
    make_loader: Callable[..., MixedLoader], workers: int
) -> None:
    loader = make_loader(fraction=1, from_iteration=7, first=-1, workers=workers)
    running = start_workers(loader, workers=workers, cached=4, pin_memory=False, seed=None)
    assert [next(running)["n_labeled"] for _ in range(14)] == [4] * 8 + [1] * 6
    if workers:
        running._finish()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_training_has_the_right_batches_from_its_first_one_on(
    make_loader: Callable[..., MixedLoader], workers: int
) -> None:
    loader = make_loader(fraction=0.6, from_iteration=2, first=19, workers=workers)
    running = start_workers(loader, workers=workers, cached=6, pin_memory=False, seed=None)
    drawn = [next(running)["n_labeled"] for _ in range(8)]
    assert drawn == [4 - loader.counts.of(iteration) for iteration in range(19, 27)]
    assert 4 not in drawn
    if workers:
        running._finish()


def test_the_same_seed_draws_the_same_batches(make_loader: Callable[..., MixedLoader]) -> None:
    loader = make_loader()

    def draw() -> list[torch.Tensor]:
        np.random.seed(3)
        return [next(loader)["data"] for _ in range(3)]

    assert all(torch.equal(a, b) for a, b in zip(draw(), draw(), strict=True))


def test_stocks_blur_no_longer_chooses_by_wall_clock() -> None:
    transform = nnUNetTrainer.get_training_transforms(PATCH, (-0.5, 0.5), None, (0, 1, 2), False)
    assert _blurs(transform)[0].benchmark
    make_repeatable(transform)
    assert [blur.benchmark for blur in _blurs(transform)] == [False]


def _blurs(transform: Any) -> list[GaussianBlurTransform]:
    inner = [t.transform for t in transform.transforms if hasattr(t, "transform")]
    return [t for t in inner if isinstance(t, GaussianBlurTransform)]
