"""Two processes on parts of a batch do what one does on the whole of it."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("one_rank.py")


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_rank", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ONE_RANK = _load_script()


@pytest.fixture(scope="module")
def ranks(train: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found; both run all cases once."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = train.python(*((SCRIPT, str(rank), folder) for rank in (0, 1)), output=folder / "said.txt")
    assert [code for code, _ in ended] == [0, 0], ended
    return [torch.load(folder / f"rank_{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("number", range(len(ONE_RANK.CASES)), ids=lambda n: "-".join(map(str, ONE_RANK.CASES[n])))
def test_gradients_losses_and_weights_are_those_of_one_process_on_the_joint_batch(
    ranks: list[dict[str, Any]], number: int
) -> None:
    expected = ONE_RANK.alone(ONE_RANK.CASES[number])
    for rank in ranks:
        for network in ("3d", "2d"):
            found = rank["steps"][number][network]
            assert found["loss"] == pytest.approx(expected[network]["loss"], abs=1e-5)
            for kind in ("gradients", "weights"):
                for one, joint in zip(found[kind], expected[network][kind], strict=True):
                    torch.testing.assert_close(one, joint, rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", range(len(ONE_RANK.CASES)))
def test_both_ranks_hold_the_same_weights_to_the_bit(ranks: list[dict[str, Any]], number: int) -> None:
    for network in ("3d", "2d"):
        first, second = (rank["steps"][number][network]["weights"] for rank in ranks)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_are_large_enough_to_tell_a_wrong_weighting() -> None:
    gradients = [g for n in ("3d", "2d") for g in ONE_RANK.alone(ONE_RANK.CASES[0])[n]["gradients"]]
    assert max(float(g.abs().max()) for g in gradients) > 1e-2


def test_a_bad_voxel_on_one_rank_makes_all_skip(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["bad"] == {"unchanged": True, "skipped": [1, 1]}


def test_all_ranks_end_with_the_sentence_of_a_loader_that_fails_on_one(ranks: list[dict[str, Any]]) -> None:
    other = "the data loader of another GPU's process failed"
    assert [rank["told"] for rank in ranks] == [[other, "ask for more"], ["ask for more", "ask for more"]]
    assert [rank["untold"] for rank in ranks] == [[other, None], ["no disk", None]]


def test_a_flag_of_one_rank_is_seen_by_all_and_counts_are_exact(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["flags"] == [False, True, True]
        assert rank["count"] == 2 * (2**24 + 1)
