"""Run nnU-Net's own commands as a user would, in child processes with a log file each."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import Signals

from nnunet_mn.errors import MNError

_EPOCH = re.compile(r"\bEpoch (\d+)\s*$")


def run_stock(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    on_line: Callable[[str], Signals | None] | None = None,
) -> float:
    """Run one command to its end.

    Args:
        command: the name of a console script of this Python environment, and its arguments; no shell sees them.
        environment: all variables of the child.
        log: file for the output of the command.
        on_line: called with every line as it comes; a progress bar's carriage return ends a line too. It may return
            a signal for the command.

    Returns:
        Its seconds.

    Raises:
        MNError: when the command is missing, or fails; with the log's path and last line.
    """
    start, last = time.monotonic(), ""
    arguments = [_script(command[0]), *command[1:]]
    with (
        log.open("w", encoding="utf-8", buffering=1) as file,  # whoever follows it sees each line
        subprocess.Popen(
            arguments,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child,
    ):
        for line in child.stdout or ():
            file.write(line)
            last = line.strip() or last
            signal = None if on_line is None else on_line(line)
            if signal is not None:
                child.send_signal(signal)
    if child.returncode != 0:
        raise MNError(f"{command[0]} failed (exit code {child.returncode}): {last}; all it said is in {log}")
    return time.monotonic() - start


def epoch_begun(line: str) -> int | None:
    """The number of the epoch, from 0, if this line of nnU-Net's log announces one; else None."""
    found = _EPOCH.search(line)
    return int(found[1]) if found else None


def _script(name: str) -> str:
    """The console script beside this Python, for environments without activation; else the one on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise MNError(f"nnU-Net's command {name} is neither beside {sys.executable} nor on the path; install nnunetv2")
    return found
