"""Tables with whole cells: users type and search their names."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_WIDEST = 100_000  # characters; of no limit


def print_table(table: Table, console: Console) -> None:
    """Print a table without cutting a word, whatever the width of the console.

    In a file or a pipe, each row is as long as its cells. A terminal wraps the cells between words. Columns with
    `no_wrap` stay whole, even if the table is wider than the terminal then.

    Args:
        table: at most one column may wrap; of several, some might break within words. Its title takes its own line.
        console: its destination.
    """
    if table.title:
        console.print(Text(str(table.title)), soft_wrap=True)
    table.title = None
    wide = console.options.update(max_width=_WIDEST)
    for column in table.columns:
        if column.no_wrap:  # rich takes the longest word for the least width
            cells = (column.header, *column.cells)
            column.min_width = max(Measurement.get(console, wide, cell).maximum for cell in cells)
    needed = Measurement.get(console, wide, table)
    table.width = max(needed.minimum, min(needed.maximum, console.width)) if console.is_terminal else needed.maximum
    console.print(table, crop=False)
