from types import SimpleNamespace
from typing import Any

import pytest

from nnunet_mn.bridge.training.skips import Skips
from nnunet_mn.errors import MNError


def _watched(updates: int) -> tuple[Skips, Any, Any, list[str]]:
    first, second, lines = SimpleNamespace(name="3D", skipped=2), SimpleNamespace(name="2D", skipped=0), []
    return Skips([first, second], updates=updates, log=lines.append), first, second, lines


def test_a_skipped_update_is_logged_with_the_cases_of_its_batch() -> None:
    skips, _, second, lines = _watched(20)
    assert not skips.has_new()
    second.skipped += 1
    assert skips.has_new()
    skips.look(["b", "a", "b"])
    assert not skips.has_new()
    assert len(lines) == 1
    assert "update of the 2D network was skipped" in lines[0]
    assert lines[0].endswith("the batch held a, b")


def test_more_than_a_tenth_of_an_epoch_ends_the_training_and_names_the_most_frequent_cases() -> None:
    skips, first, _, _ = _watched(20)
    for case in ("a", "b"):
        first.skipped += 1
        skips.look([case, "bad"])
    first.skipped += 1
    with pytest.raises(MNError, match=r"3D .* in 3 of .*20 updates.*held bad \(3 times\).*nnUNet_mn_lr_3d"):
        skips.look(["bad"])


def test_one_skipped_update_of_a_short_epoch_ends_nothing() -> None:
    skips, first, _, lines = _watched(8)
    first.skipped += 1
    skips.look(["a"])
    assert len(lines) == 1
    first.skipped += 1
    with pytest.raises(MNError, match="2 of the epoch's 8 updates"):
        skips.look(["a"])


def test_each_epoch_and_each_network_is_counted_apart() -> None:
    skips, first, second, lines = _watched(10)
    for _ in range(3):
        first.skipped += 1
        second.skipped += 1
        skips.look(["a"])
        skips.begin_epoch()
    assert len(lines) == 6
