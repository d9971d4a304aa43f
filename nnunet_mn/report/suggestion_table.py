"""The suggested cases, as a table or as JSON."""

import json
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnunet_mn.console import print_table
from nnunet_mn.suggesting import Suggestion


def print_suggestions(suggestions: Sequence[Suggestion], *, as_json: bool) -> None:
    """Print the best one first."""
    if as_json:
        typer.echo(json.dumps([one.to_json() for one in suggestions], indent=2))
    else:
        print_table(suggestion_table(suggestions), Console())


def suggestion_table(suggestions: Sequence[Suggestion]) -> Table:
    """One row for each suggestion."""
    table = Table()
    for title in ("", "case"):
        table.add_column(title, no_wrap=True)
    table.add_column("why")
    for number, one in enumerate(suggestions, start=1):
        table.add_row(str(number), Text(one.case), Text(one.reason))  # names may hold brackets
    return table
