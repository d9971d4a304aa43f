"""Tables are whole at any width: in a terminal, in a file, without colors."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from nnunet_mn.bridge.doctor.page import Row, print_page
from nnunet_mn.console import print_table
from nnunet_mn.networks.registry import ENTRIES

NAME = "nvidia/segformer-b2-finetuned-ade-512-512"
SENTENCE = "one finding of many words about /a/very/long/folder/without/any/space/in/it and its remedy"


def table() -> Table:
    made = Table(title=f"title of {NAME}")
    made.add_column("name", no_wrap=True)
    made.add_column("finding")
    made.add_row(NAME, SENTENCE)
    made.add_row("b", "short")
    return made


def printed(width: int, *, is_terminal: bool) -> str:
    file = io.StringIO()
    print_table(table(), Console(file=file, width=width, force_terminal=is_terminal, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("width", [10, 60, 80, 300])
def test_no_word_is_cut_or_broken_at_any_width(width: int, is_terminal: bool) -> None:
    text = printed(width, is_terminal=is_terminal)
    assert text.count(NAME) == 2  # title and cell
    assert "…" not in text
    assert set(SENTENCE.split()) <= set(text.split())


@pytest.mark.parametrize("width", [40, 80, 120])
def test_columns_of_several_words_that_may_not_wrap_are_whole(width: int) -> None:
    made = Table()
    cells = ("efficientnet-lite0", "ImageNet-1k, 300 x 300", "Apache-2.0 and others", "yes")
    for title in ("name", "pretrained on", "license", "here"):
        made.add_column(title, no_wrap=True)
    made.add_row(*cells)
    file = io.StringIO()
    print_table(made, Console(file=file, width=width, force_terminal=True, color_system=None))
    assert all(cell in file.getvalue() for cell in ("here", *cells))


@pytest.mark.parametrize("width", [10, 60, 300])
def test_a_row_in_a_file_is_one_line(width: int) -> None:
    assert SENTENCE in printed(width, is_terminal=False)


def test_a_wide_terminal_shows_no_more_than_the_table_needs() -> None:
    assert printed(300, is_terminal=True) == printed(10, is_terminal=False)


def test_a_sentence_wraps_at_the_width_of_a_terminal() -> None:
    lines = printed(100, is_terminal=True).splitlines()
    assert SENTENCE not in "".join(lines)
    assert max(map(len, lines[1:])) <= 100


def test_the_doctors_findings_can_be_searched_in_a_file() -> None:
    file = io.StringIO()
    print_page(iter([Row("bad", "2D weights", SENTENCE)]), Console(file=file, width=60))
    assert f"BAD  2D weights  {SENTENCE}\n" in file.getvalue()


def test_weights_list_in_a_pipe_names_every_source_and_license() -> None:
    """As a user pipes it, in a narrow terminal and without colors."""
    environment = os.environ | {"COLUMNS": "60", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "from nnunet_mn.cli import main; main()", "weights", "list"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "…" not in listed
    for entry in ENTRIES:
        (line,) = (line for line in listed.splitlines() if f" {entry.name} " in line)
        assert entry.source in line
        assert entry.license in line
