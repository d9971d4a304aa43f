"""The benchmark's trainers: their losses, schedules and teachers, and copy-paste."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "evidence" / "trainers"))
from nnUNetTrainerMNBenchmark import (
    LONGEST,
    SHORTEST,
    Paste,
    draw_pastes,
    paste,
)

SIZE = (10, 20, 30)


def _pastes(n_labeled: int = 2, n_unlabeled: int = 200) -> list[Paste]:
    return draw_pastes(n_labeled, n_unlabeled, SIZE, torch.Generator().manual_seed(0))


def test_each_unlabeled_sample_gets_one_box_within_the_volume() -> None:
    pastes = _pastes()
    assert len(pastes) == 200
    assert {source for source, _ in pastes} == {0, 1}
    for axis, length in enumerate(SIZE):
        edges = [box[axis].stop - box[axis].start for _, box in pastes]
        assert min(box[axis].start for _, box in pastes) == 0
        assert max(box[axis].stop for _, box in pastes) == length
        assert min(edges) == round(SHORTEST * length)
        assert max(edges) == round(LONGEST * length)


def test_without_labeled_samples_nothing_is_pasted() -> None:
    assert _pastes(n_labeled=0) == []
    unlabeled = torch.randn(3, 1, *SIZE)
    assert paste(unlabeled[:0], unlabeled, []) is unlabeled


def test_volumes_of_one_voxel_along_an_axis_can_be_pasted() -> None:
    assert all(box[0] == slice(0, 1) for _, box in draw_pastes(1, 20, (1, 8, 8), torch.Generator().manual_seed(0)))


def test_a_box_shows_the_labeled_sample_and_the_rest_the_unlabeled_one() -> None:
    labeled, unlabeled = torch.zeros(2, 3, *SIZE), torch.ones(5, 3, *SIZE)
    labeled[1] = 2
    pastes = _pastes(n_unlabeled=5)
    mixed = paste(labeled, unlabeled, pastes)
    assert unlabeled.min() == 1
    for sample, (source, box) in zip(mixed, pastes, strict=True):
        inside = torch.zeros(SIZE, dtype=torch.bool)
        inside[box] = True
        assert (sample[:, inside] == 2 * source).all()
        assert (sample[:, ~inside] == 1).all()
