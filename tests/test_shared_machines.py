"""Trainings on shared and preempted machines: kills, full disks, read-only folders, dying workers, and no leaks."""

import ctypes
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunet_mn.bridge.training.owner import FoldLock

pytestmark = pytest.mark.slow

Site = Any  # of training_site.py
Train = Any  # of training_site.py
KILLS = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """Calls `mount`, and undoes it; skips where that is not allowed."""
    mounted: list[Path] = []

    def run(folder: Path, *options: str) -> None:
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        if folder not in mounted:  # a remount is no mount of its own
            mounted.append(folder)

    yield run
    for folder in reversed(mounted):
        subprocess.run(["umount", str(folder)], check=True)


def small_disk(mount: Callable[..., None], folder: Path, *, mebibytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mount(folder, "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs")


def fill(folder: Path, *, leave: int) -> None:
    """Write a file that leaves this many bytes free."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(bytes(free - leave))


def log_of(site: Site) -> str:
    return "".join(file.read_text() for file in sorted(site.fold.glob("training_log_*.txt")))


# ---- disks -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_on_a_full_disk_keeps_the_previous_one_and_ends_with_a_sentence(
    site_of: Callable[..., Site], train: Train, mount: Callable[..., None]
) -> None:
    site = site_of()
    site.validate = False
    small_disk(mount, site.root / "nnUNet_results", mebibytes=200)
    code, output = train(site)
    assert code == 0, output[-2000:]
    checkpoints = {file.name: file.read_bytes() for file in site.fold.glob("checkpoint_*.pth")}
    assert checkpoints.keys() == {"checkpoint_final.pth", "checkpoint_best.pth"}
    fill(site.root / "nnUNet_results", leave=len(checkpoints["checkpoint_final.pth"]) // 2)
    site.set(epochs=2)
    site.arguments.append("--c")
    code, output = train(site)
    assert code != 0
    assert "Epoch 1" in output
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert re.match(r"ERROR: the checkpoint .*\.pth could not be written .*: the previous one is whole; free", last)
    assert {file.name: file.read_bytes() for file in site.fold.glob("checkpoint_*")} == checkpoints


def test_preprocessing_on_a_full_disk_ends_with_a_sentence_and_leaves_nothing_half_written(
    site_of: Callable[..., Site], train: Train, mount: Callable[..., None]
) -> None:
    site = site_of()
    site.validate = False
    files = [file for file in site.preprocessed.rglob("*") if file.is_file()]
    kept = {file.relative_to(site.preprocessed): file.read_bytes() for file in files}
    small_disk(mount, site.preprocessed, mebibytes=32)
    for name, content in kept.items():
        (site.preprocessed / name).parent.mkdir(parents=True, exist_ok=True)
        (site.preprocessed / name).write_bytes(content)
    fill(site.preprocessed, leave=24 * 1024)
    code, output = train(site)
    assert code != 0
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert re.match(r"ERROR: a preprocessed case could not be written to .* GiB free .*run again", last), last
    assert not list(site.preprocessed.glob("*.staging-*"))
    whole = {file.name for file in site.preprocessed.glob("*_unlabeled/*.b2nd")}
    assert not {name for name in whole if name.endswith("_seg.b2nd")} - {n.replace(".b2nd", "_seg.b2nd") for n in whole}
    assert all((site.preprocessed / name).read_bytes() == content for name, content in kept.items())
    (site.preprocessed / "filler").unlink()
    assert train(site)[0] == 0


def test_raw_data_may_be_read_only_and_later_be_gone(
    site_of: Callable[..., Site], train: Train, mount: Callable[..., None]
) -> None:
    site = site_of()
    site.validate = False
    mount(site.root / "nnUNet_raw", "--bind", str(site.root / "nnUNet_raw"))
    mount(site.root / "nnUNet_raw", "-o", "remount,ro,bind")
    with pytest.raises(OSError, match="Read-only"):
        (site.raw / "probe").touch()
    code, output = train(site)
    assert code == 0, output[-2000:]
    site.environment["nnUNet_raw"] = str(site.root / "not-on-this-node")
    code, output = train(site)
    assert code == 0, output[-2000:]


# ---- leaks -----------------------------------------------------------------------------------------------------------


class Watch:
    """Names of files in some folders that any process opened (inotify(7))."""

    OPEN = 0x20

    def __init__(self, *folders: Path) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self.libc.inotify_init1(os.O_NONBLOCK)
        for folder in folders:
            assert self.libc.inotify_add_watch(self.descriptor, os.fsencode(folder), self.OPEN) > 0, folder

    def opened(self) -> set[str]:
        names, data = set(), b""
        while True:
            try:
                data += os.read(self.descriptor, 2**20)
            except BlockingIOError:
                break
        while data:
            _, _, _, length = struct.unpack("iIII", data[:16])
            names.add(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
        os.close(self.descriptor)
        return names


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux's")
def test_no_label_of_an_unlabeled_case_is_opened_in_training(site_of: Callable[..., Site], train: Train) -> None:
    site = site_of()
    site.validate = False
    assert {path.name.partition(".")[0] for path in (site.raw / "labelsTr").iterdir()} >= set(site.names["unlabeled"])
    watch = Watch(site.raw / "labelsTr", site.cases, site.preprocessed / "gt_segmentations")
    code, output = train(site)
    assert code == 0, output[-2000:]
    opened = watch.opened()
    assert {"labeled_00_seg.b2nd", "labeled_00.pkl", "val_00_seg.b2nd"} <= opened  # it does watch
    assert not [name for name in opened if name.startswith("unlabeled_")]


# ---- workers ---------------------------------------------------------------------------------------------------------


SECONDS_TO_SURFACE = 30


def start_and_wait_for(text: str, site: Site, train: Train) -> int:
    """The number of the training's process once it has said something."""
    process: int = train.start(site)
    deadline = time.monotonic() + 300
    while text not in site.output.read_text():
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            pytest.fail(f"{text!r} was not said: {train.end(site)[1][-2000:]}")
        time.sleep(0.1)
    return process


def workers_of(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("which", [0, 1], ids=["training", "validation"])
def test_a_killed_worker_ends_the_training_with_a_sentence(
    site_of: Callable[..., Site], train: Train, which: int
) -> None:
    site = site_of()
    site.validate = False
    site.environment["nnUNet_n_proc_DA"] = "1"
    site.set(iterations_per_epoch=10**5)
    process = start_and_wait_for("Epoch 0", site, train)
    killed = time.monotonic()
    os.kill(workers_of(process)[which], signal.SIGKILL)
    code, output = train.end(site)
    assert time.monotonic() - killed < SECONDS_TO_SURFACE
    assert code == 1
    last = output.splitlines()[-1]
    assert re.match(r"ERROR: a worker of the data loader was killed \(SIGKILL\).* with --c to go on$", last), last
    assert last in log_of(site)


def test_a_crash_in_a_worker_ends_the_training_with_its_sentence_and_its_traceback_in_the_log(
    site_of: Callable[..., Site], train: Train
) -> None:
    site = site_of()
    site.validate = False
    for file in site.cases.glob("labeled_*_seg.b2nd"):
        file.write_bytes(b"x")
    site.environment["nnUNet_n_proc_DA"] = "1"
    start_and_wait_for("Exception in background worker", site, train)
    crashed = time.monotonic()
    code, output = train.end(site)
    assert time.monotonic() - crashed < SECONDS_TO_SURFACE
    assert code != 0
    assert re.match(r"ERROR: the preprocessed case 'labeled_0\d' in .* cannot be read", output.splitlines()[-1])
    log = log_of(site)
    assert "Traceback (most recent call last)" in log
    assert "in generate_train_batch" in log


# ---- continuing ------------------------------------------------------------------------------------------------------


def test_going_on_with_nothing_says_so_loudly_and_leftovers_of_kills_are_removed(
    site_of: Callable[..., Site], train: Train
) -> None:
    site = site_of()
    site.validate = False
    site.fold.mkdir(parents=True)
    (site.fold / "checkpoint_latest.pth.tmp").write_bytes(b"half")
    site.arguments.append("--c")
    code, output = train(site)
    assert code == 0, output[-2000:]
    assert f"#####\nWARNING: --c was given, but there is no checkpoint in {site.fold}: a new training starts" in output
    assert "WARNING: --c was given" in log_of(site)
    assert not list(site.fold.glob("*.tmp"))


def test_a_second_start_is_refused_and_leaves_the_files_of_the_first_alone(
    site_of: Callable[..., Site], train: Train
) -> None:
    site = site_of()
    site.validate = False
    site.fold.mkdir(parents=True)
    running = FoldLock(site.fold)
    running.acquire()
    half = site.fold / f"checkpoint_latest.pth.{os.getpid()}.tmp"
    half.write_bytes(b"half")
    code, output = train(site)
    assert code == 1
    last = output.splitlines()[-1]
    assert re.match(rf"ERROR: a training already runs in {site.fold}: process {os.getpid()} on .* since ", last), last
    assert last in log_of(site)
    assert half.read_bytes() == b"half"
    running.release()
    code, output = train(site)
    assert code == 0, output[-2000:]
    assert not half.exists()
    assert not running.file.exists()


def test_trainings_survive_a_dozen_kills(site_of: Callable[..., Site], train: Train, tmp_path: Path) -> None:
    site = site_of()
    folders = {name: str(site.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    command = [KILLS, "--kills", "12", "--dataset", str(int(site.name[7:10])), "--seed", "1"]
    ((code, said),) = train.python(command, output=tmp_path / "said.txt", **folders)
    assert code == 0, said[-3000:]
    assert re.search(r"^kills +12$", said, re.MULTILINE), said
    assert re.search(r"^trainings that ended +[1-9]\d*, all equal to the bit$", said, re.MULTILINE), said
