"""Sentences in the docs quote differences with their intervals. Each must come from a record of a benchmark."""

import itertools
import re
import sys
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import accuracy  # noqa: E402
from evidence import methods, records, tables  # noqa: E402

Interval = tuple[float, float, float]  # mean difference, lower and upper bound
QUOTED = re.compile(r"([+-]?\d\.\d{3})(?:\s+Dice)?\s+[\[(]([+-]?\d\.\d{3})(?:,|\s+to)\s+([+-]?\d\.\d{3})[\])]")
OFTEN_MEANT = [  # a sentence about one of them may leave out its name
    *("mn", "nnunet-adamw", "student", "joint", "mn-four-times-as-long"),
    *(f"nnunet-adamw-{how_long}" for how_long in ("equal-time", "twice-as-long", "twelve-times-as-long")),
]


def quoted(text: str) -> Iterator[Interval]:
    """The intervals in the sentences of a text."""
    sentences = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("|"))
    for found in QUOTED.finditer(sentences):
        mean, low, high = (float(number) + 0.0 for number in found.groups())
        yield mean, low, high


def turned(interval: Interval) -> Interval:
    """The same difference from the other side: "0.003 lower"."""
    mean, low, high = interval
    return 0.0 - mean, 0.0 - high, 0.0 - low


@cache
def found_records() -> list[records.Record]:
    return records.read(accuracy.RECORDS)


@cache
def differences(method: str, base: str) -> set[Interval]:
    """All differences of two methods: each scale, half, label set, mean of label sets, and seed."""
    found: set[Interval] = set()
    by_scale: dict[tuple[str, int, str], list[records.Record]] = {}
    for record in found_records():
        if record.method in (method, base):
            by_scale.setdefault((record.dataset, record.updates, record.scale), []).append(record)
    for here in by_scale.values():
        sizes = {r.fold: r.n_labeled for r in here if not methods.METHODS[r.method].all_labels}
        for folds in _sets_of_one_size(sizes):
            for seeds in _choices({r.seed for r in here}):
                ours, theirs = (
                    [r for r in here if r.method == name and r.seed in seeds and (r.fold in folds or _has_all(r))]
                    for name in (method, base)
                )
                compared = (tables.paired_difference(ours, theirs, half) for half in typing.get_args(records.Half))
                found |= {_rounded(difference) for difference in compared if difference is not None}
    return found


def _has_all(record: records.Record) -> bool:
    return methods.METHODS[record.method].all_labels


def _choices(items: set[int]) -> list[set[int]]:
    """All of them together, and each alone."""
    return [items, *({item} for item in items if len(items) > 1)]


def _sets_of_one_size(sizes: dict[int, int]) -> Iterator[tuple[int, ...]]:
    for size in set(sizes.values()):
        folds = [fold for fold in sizes if sizes[fold] == size]
        for n in range(1, len(folds) + 1):
            yield from itertools.combinations(folds, n)


def _rounded(difference: tables.Difference) -> Interval:
    mean, low, high = (float(f"{number:.3f}") + 0.0 for number in (difference.mean, difference.low, difference.high))
    return mean, low, high


def is_recorded(interval: Interval, names: list[str]) -> bool:
    """Two of the methods differ by this."""
    sides = {interval, turned(interval)}
    return any(sides & differences(method, base) for method, base in itertools.permutations(names, 2))


@pytest.mark.parametrize(("page", "fewest"), [("README.md", 5), ("docs/evidence.md", 50), ("docs/choices.md", 15)])
def test_intervals_in_sentences_are_those_of_the_records(page: str, fewest: int) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    of_suggest = set(quoted((accuracy.RESULTS / "suggest.md").read_text(encoding="utf-8")))
    n_checked = 0
    for paragraph in re.split(r"\n\n|^- ", text, flags=re.MULTILINE):
        named = [name for name in methods.METHODS if f"`{name}`" in paragraph]
        for interval in quoted(paragraph):
            assert interval in of_suggest or is_recorded(interval, [*OFTEN_MEANT, *named]), (interval, paragraph)
            n_checked += 1
    assert n_checked >= fewest


@pytest.mark.parametrize(
    "text", ["by 0.013 Dice (0.006 to 0.020)", "+0.013 [+0.006, +0.020]", "0.013\n[0.006,\n0.020]"]
)
def test_every_way_of_quoting_is_seen(text: str) -> None:
    assert list(quoted(text)) == [(0.013, 0.006, 0.02)]


def test_an_interval_that_no_record_gives_is_found() -> None:
    assert is_recorded((-0.014, -0.032, -0.002), ["nnunet-adamw", "mn"])
    assert not is_recorded((0.013, 0.006, 0.021), ["nnunet-adamw", "joint"])
