import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import pytest

from nnunet_mn.bridge.training import owner
from nnunet_mn.bridge.training.owner import FoldLock, Owner
from nnunet_mn.errors import MNError


@pytest.fixture
def other() -> Iterator[Owner]:
    """A process that runs."""
    process = subprocess.Popen(["sleep", "60"])
    yield replace(Owner.here(), pid=process.pid, began=owner._began(process.pid))
    process.kill()
    process.wait()


@pytest.fixture
def ended() -> Owner:
    """A process that has ended."""
    process = subprocess.Popen(["sleep", "60"])
    found = replace(Owner.here(), pid=process.pid, began=owner._began(process.pid))
    process.kill()
    process.wait()
    return found


def own(folder: Path, by: Owner) -> FoldLock:
    """Write the lock of another process, and return ours."""
    lock = FoldLock(folder)
    lock.file.write_text(json.dumps(asdict(by)))
    return lock


def is_taken_over(lock: FoldLock) -> bool:
    lock.acquire()
    taken = json.loads(lock.file.read_text())["pid"] == os.getpid()
    lock.release()
    return taken and not list(lock.file.parent.iterdir())


def test_a_second_start_is_refused_and_told_of_the_first(tmp_path: Path, other: Owner) -> None:
    lock = own(tmp_path, other)
    with pytest.raises(MNError) as refusal:
        lock.acquire()
    for part in (str(tmp_path), f"process {other.pid} on {other.host} since {other.since}", "wait for its end"):
        assert part in str(refusal.value)
    assert "delete" not in str(refusal.value)
    lock.release()
    assert json.loads(lock.file.read_text()) == asdict(other)


def test_what_a_dead_process_left_is_taken_over(tmp_path: Path, ended: Owner) -> None:
    assert is_taken_over(own(tmp_path, ended))


def test_a_later_process_of_the_same_number_is_another_one(tmp_path: Path, other: Owner) -> None:
    assert is_taken_over(own(tmp_path, replace(other, began="1")))


@pytest.mark.parametrize(("began", "runs"), [("1", False), ("", True), (None, True)])
def test_a_process_of_another_user_is_told_from_a_later_one(
    other: Owner, monkeypatch: pytest.MonkeyPatch, began: str | None, runs: bool
) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    if began is not None:  # empty: the system does not say it
        monkeypatch.setattr(owner, "_began", lambda _: began)
    assert owner._runs(other.pid, other.began) is runs


def test_a_process_from_before_the_machine_restarted_is_dead(tmp_path: Path, other: Owner) -> None:
    assert is_taken_over(own(tmp_path, replace(other, boot="earlier")))


def test_another_machine_is_asked_for_first(tmp_path: Path, ended: Owner) -> None:
    lock = own(tmp_path, replace(ended, host="n7", place="n7"))
    with pytest.raises(MNError, match=rf"on n7 since .*if it no longer runs there, delete {lock.file}"):
        lock.acquire()


def test_a_job_that_slurm_starts_again_on_another_machine_goes_on(
    tmp_path: Path, other: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = own(tmp_path, replace(other, place="n7", job="42", restarts=0))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    with pytest.raises(MNError, match="already runs"):
        lock.acquire()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert is_taken_over(lock)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[1]", b'{"pid": 3}'])
def test_a_file_that_a_kill_or_a_full_disk_cut_off_is_nobodys(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "WRITING_S", 0.2)
    lock = FoldLock(tmp_path)
    lock.file.write_bytes(content)
    assert is_taken_over(lock)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MNError, match=r"training\.lock cannot be written or read .*No space left.*free some space"):
        FoldLock(tmp_path).acquire()
    assert not list(tmp_path.iterdir())


def test_the_same_process_may_start_again(tmp_path: Path) -> None:
    FoldLock(tmp_path).acquire()
    assert is_taken_over(FoldLock(tmp_path))


@pytest.mark.parametrize("has_links", [True, False])
def test_a_third_start_keeps_its_file_when_the_second_ones_comes_back(
    tmp_path: Path, ended: Owner, other: Owner, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, third = own(tmp_path, ended), replace(other, since="the third start")
    real, calls = Path.rename, []

    def rename(file: Path, target: Path) -> Path:
        calls.append(file)
        if len(calls) > 1:
            return real(file, target)
        own(tmp_path, other)  # another start has taken over before this one
        moved = real(file, target)
        if has_links:
            own(tmp_path, third)
        return moved

    def no_links(*_: object) -> NoReturn:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "rename", rename)
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(MNError, match="already runs"):
        lock.acquire()
    assert [file.read_text() for file in tmp_path.iterdir()] == [json.dumps(asdict(third if has_links else other))]


def test_a_start_that_lost_its_file_to_another_one_is_no_owner(
    tmp_path: Path, other: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FoldLock(tmp_path)
    monkeypatch.setattr(owner.time, "sleep", lambda _: own(tmp_path, other))  # while this one waits
    with pytest.raises(MNError, match=f"already runs in {tmp_path}: process {other.pid}"):
        lock.acquire()
    lock.release()
    assert json.loads(lock.file.read_text()) == asdict(other)


def test_an_empty_restart_count_of_slurm_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "")
    assert Owner.here().restarts == 0


START = """
import sys, time
from pathlib import Path
from nnunet_mn.bridge.training.owner import FoldLock
from nnunet_mn.errors import MNError
begin = float(sys.argv[2])
time.sleep(max(0, begin - 0.1 - time.time()))
while time.time() < begin: pass
try:
    FoldLock(Path(sys.argv[1])).acquire()
    print("owner", flush=True)
except MNError:
    print("refused", flush=True)
sys.stdin.read()
"""


def test_of_many_starts_at_once_one_becomes_the_owner(tmp_path: Path, ended: Owner) -> None:
    own(tmp_path, ended)
    command = [sys.executable, "-c", START, str(tmp_path), str(time.time() + 3)]
    starts = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    answers = [start.stdout.readline().strip() for start in starts if start.stdout is not None]
    for start in starts:
        start.communicate("")
    assert sorted(answers) == ["owner", *["refused"] * 5]
    assert not list(tmp_path.iterdir())
