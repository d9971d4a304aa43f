"""Foreground of unlabeled cases: what is kept, who sees it, and what it does to crops."""

import gc
import multiprocessing
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunet_mn.bridge.training import foreground, whole_images
from nnunet_mn.bridge.training.foreground import affordable_cases, refresh, take_from_masks
from nnunet_mn.bridge.training.loader import MixedCases, MixedLoader
from nnunet_mn.bridge.training.locations import NEVER, ForegroundLocations
from nnunet_mn.bridge.training.stored_masks import StoredMasks, store
from nnunet_mn.errors import MNError
from nnunet_mn.ranks import Ranks
from nnunet_mn.schedule import Schedule, UnlabeledCounts

SHAPE = (12, 14, 16)
ORGAN = (slice(2, 4), slice(5, 7), slice(8, 9))  # of 4 voxels; the empty case has none


class Volumes:
    """Images that are their own pseudo-masks, as a dataset of nnU-Net offers them."""

    source_folder = ""

    def __init__(self, *names: str) -> None:
        self.identifiers = list(names)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        image = np.zeros((1, *SHAPE), np.float32)
        if identifier != "empty":
            image[0][ORGAN] = 1
        return image, np.zeros((1, *SHAPE), np.int16), None, {"class_locations": {1: [], 2: []}}


def _predict(image: Tensor) -> Tensor:
    """Logits (3, Z, Y, X) of background and two classes, of which the second is where the image is bright."""
    return torch.stack([1 - image[0], torch.full(image.shape[1:], -1.0), image[0]])


def _refresh(locations: ForegroundLocations, *names: str, position: int = 20, **changed: Any) -> str:
    options = {"position": position, "regions": False, "seed": 0, "stop": lambda: False, **changed}
    return refresh(locations, Volumes(*names), changed.pop("predict", _predict), **options)


@pytest.fixture
def locations(tmp_path: Path) -> ForegroundLocations:
    return ForegroundLocations(tmp_path / "fold_0", [1, 2], iterations_per_epoch=8)


def test_locations_may_come_from_stored_masks_and_nothing_is_predicted(tmp_path: Path) -> None:
    locations = ForegroundLocations(tmp_path, [(1, 2), 2], iterations_per_epoch=8)
    masks, cases = StoredMasks(tmp_path, "a" * 64), Volumes("a", "empty")
    for name in cases.identifiers:
        image, segmentation, *_ = cases.load_case(name)
        masks.write(name, 2 * image[0], image, segmentation)
    line = take_from_masks(locations, cases, masks, position=0, seed=0)
    assert "foreground of 2 unlabeled cases" in line
    mask = np.zeros(SHAPE, bool)
    mask[ORGAN] = True
    for key in ((1, 2), 2):
        assert sorted(map(tuple, locations.of("a")[key][:, 1:])) == sorted(map(tuple, np.argwhere(mask)))
    assert locations.of("empty") == {}
    assert locations.position == 0


class TwoRanks(Ranks):
    """Two threads in place of two processes."""

    meeting = threading.Barrier(2)
    told: ClassVar[dict[int, Any]] = {}
    size = 2
    own = property(lambda _: int(threading.current_thread().name))  # type: ignore[assignment]

    def gather(self, value: Any) -> list[Any]:
        self.told[self.own] = value
        self.meeting.wait(timeout=20)
        values = [self.told[0], self.told[1]]
        self.meeting.wait(timeout=20)
        return values

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))


def test_ranks_share_stored_masks_and_none_waits_for_more_than_a_case(tmp_path: Path) -> None:
    """NCCL gives up after ten minutes: the first rank may not read a hundred masks while the others wait."""
    masks, names = StoredMasks(tmp_path, "a" * 64), ("a", "b", "c", "empty", "f")
    for name in names:
        image, segmentation, *_ = Volumes(name).load_case(name)
        masks.write(name, 2 * image[0], image, segmentation)
    log: list[tuple[int, str]] = []

    class Reads(StoredMasks):
        def of(self, case: str) -> Any:
            log.append((ranks.own, case))
            return super().of(case)

    class Told(TwoRanks):
        def any(self, flag: bool) -> bool:
            log.append((ranks.own, "waits"))
            return super().any(flag)

    ranks, found = Told(), {}

    def take() -> None:
        locations = ForegroundLocations(tmp_path, [2], iterations_per_epoch=8)
        take_from_masks(locations, Volumes(*names), Reads(tmp_path, "a" * 64), position=0, seed=0, ranks=ranks)
        found[ranks.own] = {name: len(locations.of(name).get(2, ())) for name in names}

    threads = [threading.Thread(target=take, name=str(own)) for own in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == {"a": 4, "b": 4, "c": 4, "empty": 0, "f": 4}
    assert [what for own, what in log if own == 0] == ["waits", "a", "waits", "c", "waits", "f", "waits"]
    assert [what for own, what in log if own == 1] == ["waits", "b", "waits", "empty", "waits", "waits"]


@pytest.mark.parametrize(("free", "fits"), [(None, False), (2 * 40_000 - 1, False), (2 * 40_000, True)])
def test_only_an_image_that_fits_beside_the_training_is_predicted_on_the_card(
    monkeypatch: pytest.MonkeyPatch, free: int | None, fits: bool
) -> None:
    """nnU-Net goes back to main memory by itself, but its thread keeps the image on the card."""
    monkeypatch.setattr(whole_images, "free_bytes", lambda _: free)
    shape, patch_size = (1, 10, 10, 5), [8, 8, 20]  # padded to 2,000 voxels, of 20 bytes each
    assert whole_images.fits_on_card(shape, patch_size, heads=3, device=torch.device("cuda")) == fits


def test_locations_are_foreground_voxels_under_nnunets_keys(locations: ForegroundLocations) -> None:
    line = _refresh(locations, "a", "empty")
    found = locations.of("a")
    assert set(found) == {2}
    mask = np.zeros(SHAPE, bool)
    mask[ORGAN] = True
    assert sorted(map(tuple, found[2][:, 1:])) == sorted(map(tuple, np.argwhere(mask)))
    assert (found[2][:, 0] == 0).all()
    assert locations.of("empty") == {}
    assert "looked for foreground in 2 of 2 unlabeled cases" in line
    assert "; none was found in 1 of them, whose crops stay random" in line
    assert "none was found" not in _refresh(locations, "a")


class Gone(Volumes):
    """Cases whose files were deleted in the middle of a training."""

    source_folder = "/data/Tiny_unlabeled"

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        raise FileNotFoundError(f"No such file or directory: {identifier}.b2nd")


def test_a_case_that_is_gone_is_named_with_the_command_that_makes_it_anew(locations: ForegroundLocations) -> None:
    told = r"^the preprocessed case 'a' in /data/Tiny_unlabeled cannot be read .*run nnunet-mn preprocess for this"
    with pytest.raises(MNError, match=told):
        refresh(locations, Gone("a"), _predict, position=0, regions=False, seed=0, stop=lambda: False)
    with pytest.raises(MNError, match=told):
        affordable_cases(Gone("a"), patch_size=(8, 8, 8), iterations=8, batch_size=2)
    with pytest.raises(MNError, match=told):
        store(StoredMasks(locations.folder, "a" * 64), Gone("a"), lambda image: image[0].numpy())


def test_the_file_names_the_epoch_and_lies_with_the_fold(locations: ForegroundLocations, tmp_path: Path) -> None:
    _refresh(locations, "a", position=20)
    assert [file.name for file in (tmp_path / "fold_0").iterdir()] == ["foreground_epoch_0002_iteration_0004.npz"]


def test_regions_overlap(tmp_path: Path) -> None:
    locations = ForegroundLocations(tmp_path, [(1, 2), 2], iterations_per_epoch=8)
    both = lambda image: torch.stack([image[0], image[0]]) - 0.5  # noqa: E731
    refresh(locations, Volumes("a"), both, position=0, regions=True, seed=0, stop=lambda: False)
    assert {key: len(voxels) for key, voxels in locations.of("a").items()} == {(1, 2): 4, 2: 4}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy leaves a bad archive open
@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_lost_or_damaged_file_of_locations_is_named(locations: ForegroundLocations, content: bytes | None) -> None:
    _refresh(locations, "a", position=20)
    (file,) = locations.folder.iterdir()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MNError, match=rf"{file.name} cannot be read .*: delete the file and continue with --c"):
        locations.of("a")


def test_few_voxels_of_many_are_kept(locations: ForegroundLocations) -> None:
    def everywhere(image: Tensor) -> Tensor:
        return torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE), torch.zeros(SHAPE)])

    refresh(locations, Volumes("a"), everywhere, position=0, regions=False, seed=0, stop=lambda: False)
    voxels = locations.of("a")[1]
    assert len(voxels) == foreground.MOST_LOCATIONS
    assert len(np.unique(voxels, axis=0)) == len(voxels)


def test_of_many_cases_each_refresh_takes_others_and_keeps_the_earlier(
    locations: ForegroundLocations,
) -> None:
    names = [f"case_{i}" for i in range(8)]
    known = []
    for position in (8, 16, 24):
        _refresh(locations, *names, position=position, most_cases=4)
        known.append({name for name in names if locations.of(name)})
    assert len(known[0]) == 4
    assert known[0] < known[1] <= known[2]


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [(250_000, foreground.MOST_CASES), (4000, 0.02 * 4000 * 2 * 6 / 4 / 8), (10, foreground.FEWEST_CASES)],
)
def test_all_refreshes_together_take_a_small_share_of_the_training(iterations: int, expected: float) -> None:
    cases = Volumes("a", "b")  # of 2 x 2 x 2 windows each, at steps of half a patch
    patch = [8, 10, 12]
    found = foreground.affordable_cases(cases, patch_size=patch, iterations=iterations, batch_size=2)
    assert found == int(expected)


def test_a_case_that_cannot_be_predicted_is_named_and_the_others_are_located(locations: ForegroundLocations) -> None:
    def overflow_in_the_empty_case(image: Tensor) -> Tensor:
        if not image.any():
            raise RuntimeError("Encountered inf in predicted array")
        return _predict(image)

    line = refresh(
        locations, Volumes("a", "empty"), overflow_in_the_empty_case, position=8, regions=False, seed=0,
        stop=lambda: False,
    )  # fmt: skip
    assert set(locations.of("a")) == {2}
    assert "1 could not be predicted: 'empty' (Encountered inf in predicted array)" in line


def test_many_classes_are_found_in_one_pass() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 105, (30, 40, 50)))
    logits = torch.nn.functional.one_hot(labels, 106).movedim(-1, 0).float()
    found = foreground._foreground(logits, regions=False)
    flat = labels.numpy().ravel()
    assert len(found) == 105
    assert all(np.array_equal(found[label - 1], np.flatnonzero(flat == label)) for label in range(1, 106))


def test_a_case_that_lost_its_foreground_is_cropped_at_random_again(locations: ForegroundLocations) -> None:
    _refresh(locations, "a", "b", position=8)
    nothing = lambda image: torch.stack([torch.ones(SHAPE), torch.zeros(SHAPE), torch.zeros(SHAPE)])  # noqa: E731
    refresh(locations, Volumes("a"), nothing, position=16, regions=False, seed=0, stop=lambda: False)
    assert locations.of("a") == {}
    assert set(locations.of("b")) == {2}


def test_a_refresh_draws_nothing_from_the_trainings_generators(locations: ForegroundLocations) -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.uniform(), float(torch.rand(()))
    np.random.seed(0)
    torch.manual_seed(0)
    _refresh(locations, "a", "b")
    assert (np.random.uniform(), float(torch.rand(()))) == expected


def test_a_refresh_that_is_stopped_leaves_no_trace(locations: ForegroundLocations, tmp_path: Path) -> None:
    asked = iter([False, True])
    assert "given up" in _refresh(locations, "a", "b", stop=lambda: next(asked))
    assert locations.position == NEVER
    assert not (tmp_path / "fold_0").exists()


def test_going_on_takes_the_refresh_of_the_checkpoint(locations: ForegroundLocations, tmp_path: Path) -> None:
    _refresh(locations, "a", position=8)
    _refresh(locations, "a", "b", position=16)
    again = ForegroundLocations(tmp_path / "fold_0", [1, 2], iterations_per_epoch=8)
    assert again.of("a") == {}
    assert again.use(8)
    assert again.of("b") == {}
    assert again.use(16)
    assert set(again.of("b")) == {2}
    assert not again.use(24)
    assert again.use(NEVER)


def _ask(locations: ForegroundLocations, asked: Any, answers: Any) -> None:
    for name in iter(asked.get, None):
        answers.put({key: len(voxels) for key, voxels in locations.of(name).items()})


def test_workers_see_what_the_trainer_finds_later(locations: ForegroundLocations) -> None:
    context = multiprocessing.get_context("fork")
    asked, answers = context.Queue(), context.Queue()
    worker = context.Process(target=_ask, args=(locations, asked, answers))
    worker.start()
    asked.put("a")
    assert answers.get(timeout=20) == {}
    _refresh(locations, "a", position=8)
    asked.put("a")
    assert answers.get(timeout=20) == {2: 4}
    asked.put(None)
    worker.join(20)


def test_no_file_of_an_earlier_refresh_or_of_forgotten_locations_stays_open(tmp_path: Path) -> None:
    locations = ForegroundLocations(tmp_path, [1], iterations_per_epoch=4)
    opened = []
    for position in (0, 1):
        locations.write(position, {"a": [np.ones((1, 3), int)]})
        locations.of("a")
        opened.append(locations._opened[1])
    assert [arrays.fid is None for arrays in opened] == [True, False]
    locations.itself = locations  # type: ignore[attr-defined]  # as in a loader: in a cycle
    del locations
    gc.collect()
    assert opened[1].fid is None


@pytest.mark.parametrize("known", [False, True])
def test_forced_crops_of_unlabeled_cases_show_the_foreground(locations: ForegroundLocations, known: bool) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    if known:
        _refresh(locations, "un_a", "un_b")
    loader = MixedLoader(
        MixedCases(Volumes("a"), Volumes("un_a", "un_b"), locations),
        counts=UnlabeledCounts(Schedule(total=1, supervised=0), batch_size=2, batch="replace"),
        part=range(2),
        first=1,  # one of two samples is unlabeled from then on
        workers=0,
        foreground_share=1.0,
        patch_size=(4, 4, 4),
        final_patch_size=(4, 4, 4),
        label_manager=LabelManager({"background": 0, "one": 1, "two": 2}, None),
        oversample_foreground_percent=1.0,
    )
    np.random.seed(0)
    shown = [bool(next(loader)["data"][1].max() > 0) for _ in range(30)]
    assert all(shown) if known else sum(shown) < 15


def test_the_first_refresh_is_at_the_end_of_the_supervised_stage() -> None:
    schedule = Schedule(total=1000, supervised=200)
    assert [schedule.refresh_due(i) for i in (0, 199, 200, 399, 400, 999)] == [-1, -1, 200, 200, 400, 800]
    assert Schedule(total=1000, supervised=0).refresh_due(249) == -1
    assert Schedule(total=2, supervised=0).refresh_due(2) == 1
