"""Staging folders: what a killed process leaves, and who may remove it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunet_mn.bridge.staging import staging_beside, take_place

# A process that works in a staging folder until it is killed: before its result takes the place, or amid that.
WORK = """
import pathlib, sys, time
from nnunet_mn.bridge import staging

target, moment = pathlib.Path(sys.argv[1]), sys.argv[2]

def wait(*_):
    print("works", flush=True)
    time.sleep(600)

with staging.staging_beside(target) as folder:
    (folder / "new").touch()
    if moment == "before":
        wait()
    staging._put_back = lambda *_: None
    pathlib.Path.rename = lambda path, to, rename=pathlib.Path.rename: wait() if path == folder else rename(path, to)
    staging.take_place(folder, target)
"""


def test_a_name_as_long_as_file_systems_allow_has_a_staging_folder(tmp_path: Path) -> None:
    target = tmp_path / ("ö" * 120 + ".nii.gz")
    with staging_beside(target) as folder:
        (folder / target.name).touch()
        take_place(folder, target)
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A result that is there."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    return folder


@pytest.fixture(params=["before", "amid"])
def worker(request: Any, target: Path) -> Iterator[Any]:
    """A process at work."""
    with subprocess.Popen([sys.executable, "-c", WORK, str(target), request.param], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"works\n"
        yield process
        process.kill()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_remains_of_a_kill_are_removed_and_nothing_is_lost(worker: Any, target: Path) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert len(names(target.parent)) > 1
    with staging_beside(target):
        assert names(target) == ["old"]
    assert names(target.parent) == ["model"]


def test_the_folder_of_a_process_at_work_stays(worker: Any, target: Path) -> None:
    before = names(target.parent)
    with staging_beside(target):
        assert set(before) <= set(names(target.parent))
    assert names(target.parent) == before


def test_a_result_takes_the_place_of_an_old_one(target: Path) -> None:
    with staging_beside(target) as folder:
        (folder / "new").touch()
        take_place(folder, target)
    assert names(target) == ["new"]
    assert names(target.parent) == ["model"]


def test_a_result_that_may_not_replace_another_one_leaves_it_alone(target: Path) -> None:
    before = names(target)
    with pytest.raises(FileExistsError), staging_beside(target) as folder:
        take_place(folder, target, replace=False)
    assert names(target) == before
    assert names(target.parent) == ["model"]


def test_an_error_leaves_the_old_result_alone(target: Path) -> None:
    with pytest.raises(NotADirectoryError), staging_beside(target) as folder:
        (target / "old" / "below").touch()
    assert not folder.exists()
    assert names(target) == ["old"]
    assert names(target.parent) == ["model"]


def test_without_locks_nothing_of_others_is_removed(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = target.with_name(f".model.{'0' * 32}.new")
    other.mkdir()
    other.with_suffix(".lock").touch()

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with staging_beside(target):
        pass
    assert other.is_dir()


def test_results_of_similar_names_are_told_apart(target: Path) -> None:
    other = target.with_name(f".model.v2.{'0' * 32}.old")
    other.mkdir()
    other.with_suffix(".lock").touch()
    with staging_beside(target):
        pass
    assert other.is_dir()
