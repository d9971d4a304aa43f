import os
import sys
from pathlib import Path

import pytest

from nnunet_mn.bridge.stock_commands import epoch_begun, run_stock
from nnunet_mn.errors import MNError

PYTHON = Path(sys.executable).name


def _run(code, tmp_path, **kwargs):
    return run_stock([PYTHON, "-c", code], environment=dict(os.environ), log=tmp_path / "log", **kwargs)


def test_output_goes_to_the_log_and_line_by_line_to_the_caller(tmp_path):
    lines = []
    seconds = _run("print('one'); print('10%', end=chr(13)); print('two')", tmp_path, on_line=lines.append)
    assert [line.strip() for line in lines] == ["one", "10%", "two"]
    assert (tmp_path / "log").read_text() == "one\n10%\ntwo\n"
    assert seconds > 0


def test_lines_arrive_while_the_command_runs(tmp_path):
    """The child waits for a file that is made when its line arrives."""
    flag = tmp_path / "seen"
    code = f"import pathlib, time\nprint('go')\nwhile not pathlib.Path({str(flag)!r}).exists(): time.sleep(0.01)"
    _run(code, tmp_path, on_line=lambda line: flag.touch())


def test_failure_names_exit_code_last_line_and_log(tmp_path):
    with pytest.raises(MNError, match=r"exit code 3\): the reason; .*log$"):
        _run("import sys; print('the reason'); print(); sys.exit(3)", tmp_path)


def test_missing_command_is_named(tmp_path):
    with pytest.raises(MNError, match="no-such-command"):
        run_stock(["no-such-command"], environment={}, log=tmp_path / "log")


def test_arguments_meet_no_shell(tmp_path):
    lines = []
    command = [PYTHON, "-c", "import sys; print(sys.argv[1])", "$HOME; a 'b'"]
    run_stock(command, environment=dict(os.environ), log=tmp_path / "log", on_line=lines.append)
    assert lines == ["$HOME; a 'b'\n"]


@pytest.mark.parametrize(
    ("line", "epoch"),
    [
        ("2026-11-23 02:49:28.876996: Epoch 4 \n", 4),
        ("Epoch 12\n", 12),
        ("2026-11-23 02:55:49.753530: Epoch time: 18.93 s\n", None),
        ("Pseudo dice [0.1]\n", None),
    ],
)
def test_epoch_is_read_from_the_line_that_begins_it(line, epoch):
    assert epoch_begun(line) == epoch
