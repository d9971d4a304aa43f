"""Suggestions: one case of each group that looks alike, without the groups that have labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_mn.errors import MNError
from nnunet_mn.suggesting import suggest

SIZES = {"a": 5, "b": 4, "c": 3}  # of three groups, far apart


@pytest.fixture
def features() -> dict[str, np.ndarray]:
    """Cases `a0`, `a1` and so on around three points. Number 0 of each group is its middle."""
    rng = np.random.default_rng(0)
    middles = dict(zip(SIZES, 100 * np.eye(3, 4), strict=True))
    around = {name: rng.normal(size=(size - 1, 4)) for name, size in SIZES.items()}
    return {
        f"{name}{i}": middles[name] + ([0] * 4 if i == 0 else around[name][i - 1] - around[name].mean(axis=0))
        for name, size in SIZES.items()
        for i in range(size)
    }


def test_each_group_gives_its_middle_and_the_largest_comes_first(features) -> None:
    chosen = suggest(features, 3)
    assert [one.case for one in chosen] == ["a0", "b0", "c0"]
    assert [one.alike for one in chosen] == [5, 4, 3]
    assert chosen[0].reason == "the most typical of 5 cases that look alike"


def test_order_of_the_cases_does_not_matter(features) -> None:
    backwards = dict(reversed(features.items()))
    assert suggest(backwards, 5) == suggest(features, 5)


def test_group_with_a_labeled_case_needs_no_suggestion(features) -> None:
    chosen = suggest(features, 2, labeled=["a3"])
    assert {one.case[0] for one in chosen} == {"b", "c"}


def test_labeled_case_is_never_suggested(features) -> None:
    labeled = [name for name in features if name != "c1"]
    assert [one.case for one in suggest(features, 1, labeled=labeled)] == ["c1"]


def test_case_that_stands_alone_is_said_to(features) -> None:
    features["odd"] = np.full(4, -500.0)
    reasons = {one.case: one.reason for one in suggest(features, 4)}
    assert reasons["odd"] == "looks like no other"


def test_case_unlike_all_others_is_not_suggested_among_many(features) -> None:
    features["odd"] = np.full(4, -500.0)
    assert "odd" not in [one.case for one in suggest(features, 2)]
    assert "odd" in [one.case for one in suggest(features, 1, estimated_dice={"odd": 0.1, "a0": 0.9, "a1": 0.9})]


def test_estimates_draw_the_choice_to_what_the_networks_get_wrong(features) -> None:
    estimates = {name: 0.3 if name == "b3" else 0.99 for name in features}
    (chosen,) = suggest(features, 1, labeled=["a0"], estimated_dice=estimates)
    assert chosen.case == "b3"
    assert chosen.reason == "estimated Dice 0.30, stands for 11 cases that look alike"


def test_case_without_an_estimate_is_left_out(features) -> None:
    assert [one.case for one in suggest(features, 1, estimated_dice={"c2": 0.9})] == ["c2"]


@given(n=st.integers(1, 9), copies=st.integers(1, 4))
@settings(deadline=None, max_examples=15)  # a busy machine is no failure
def test_equal_images_do_not_lessen_the_suggestions(n: int, copies: int) -> None:
    equal = {f"{i}_{k}": np.array([float(i), 1.0]) for i in range(9) for k in range(copies)}
    names = [one.case for one in suggest(equal, n)]
    assert len(set(names)) == n
    assert len({name[0] for name in names}) == n  # no copy as long as there is another image


def test_more_suggestions_than_cases_are_refused(features) -> None:
    with pytest.raises(MNError, match=r"-n is 13, but 12 cases can be suggested; lower it"):
        suggest(features, 13)
