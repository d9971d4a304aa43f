"""The page of `nnunet-mn doctor`: one line per check, with the fix if something is wrong."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnunet_mn.bridge.files import refusals_told
from nnunet_mn.console import print_table
from nnunet_mn.errors import MNError

State = Literal["good", "note", "bad"]
MARKS: dict[State, Text] = {
    "good": Text("ok", "green"),
    "note": Text("note", "yellow"),
    "bad": Text("BAD", "bold red"),
}


class Row(NamedTuple):
    """The result of one check; a `bad` one would stop a training."""

    state: State
    topic: str
    finding: str


Check = Callable[[], list[Row]]


def examine(topic: str, check: Check) -> list[Row]:
    """The rows of a check, or a bad row with its mistake."""
    try:
        with refusals_told():
            return check()
    except MNError as error:
        return [Row("bad", topic, str(error))]
    except Exception as error:  # as torch's of a busy or faulty card; the other checks have their rows still
        reason = f"{type(error).__name__}: {error}"
        return [Row("bad", topic, f"this check failed ({reason}); correct this and run the doctor again")]


def _without_repeats(rows: Iterator[Row]) -> list[Row]:
    """The rows. Checks with one mistake, such as a wrong setting, share a row."""
    topics: dict[Row, list[str]] = {}
    first: dict[tuple[State, str], Row] = {}
    for row in rows:
        topics.setdefault(first.setdefault((row.state, row.finding), row), []).append(row.topic)
    return [
        row._replace(finding=f"{row.finding} (also: {', '.join(also)})") if (also := topics[row][1:]) else row
        for row in topics
    ]


def print_page(rows: Iterator[Row], console: Console) -> bool:
    """Print the rows.

    Returns:
        Whether nothing would stop a training.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    collected = _without_repeats(rows)
    for row in collected:
        table.add_row(MARKS[row.state], row.topic, Text(row.finding))
    print_table(table, console)
    n_bad = sum(row.state == "bad" for row in collected)
    summary = f"{n_bad} of these would stop a training" if n_bad else "nothing here would stop a training"
    console.print(Text(summary, "bold red" if n_bad else "bold green"))
    return n_bad == 0
