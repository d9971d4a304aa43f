"""Folders and files that a user may not read or write: one sentence names them."""

import ctypes
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nnunet_mn import cli
from nnunet_mn.bridge.cases.dataset import CaseFolders, find_dataset
from nnunet_mn.bridge.cases.draw_splits import refuse_to_replace
from nnunet_mn.bridge.cases.splits import read_splits, splits_for_planning
from nnunet_mn.bridge.cases.unlabeled import find_unlabeled_of_all_folds
from nnunet_mn.bridge.doctor.dataset import check_dataset
from nnunet_mn.bridge.doctor.environment import check_folders
from nnunet_mn.errors import MNError

NOBODY = 65534
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
NAME = "Dataset004_Heart"
DESCRIPTION = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


@contextmanager
def any_user() -> Iterator[None]:
    """Inside, root has no more rights than others."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@contextmanager
def another_of_the_group(folder: Path) -> Iterator[None]:
    """Inside, the files in a folder are `any_user`'s, and this user is another one of their group.

    Root gives the files away and lays its privileges down. It can still read its own Python, which may be closed to
    others. nnU-Net looks for its classes there.
    """
    if os.geteuid() != 0:
        yield
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, -1)
    groups = os.getgroups()
    os.setgroups([NOBODY])
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0
    effective = sets[0], sets[3]
    sets[0] = sets[3] = 0
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0], sets[3] = effective
        assert libc.capset(header, sets) == 0
        os.setgroups(groups)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of `any_user`. Those of pytest are closed to others than root."""
    folder = Path(tempfile.mkdtemp())
    with any_user_owns(folder):
        yield folder


@contextmanager
def any_user_owns(folder: Path) -> Iterator[None]:
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    try:
        yield
    finally:
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.fixture
def dataset(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the raw and the preprocessed folder of a dataset."""
    with any_user():
        for root in ("nnUNet_raw", "nnUNet_preprocessed"):
            monkeypatch.setenv(root, str(place / root))
            (place / root / NAME).mkdir(parents=True)
            (place / root / NAME / "splits_final.json").write_text('[{"train": ["a"], "val": ["v"]}]')
            (place / root / NAME / "dataset.json").write_text(json.dumps(DESCRIPTION))
        (place / "nnUNet_preprocessed" / NAME / "data_unlabeled").mkdir()
    return place


def read_all_splits() -> None:
    folders = find_dataset("4")
    read_splits(folders.preprocessed, folders.raw)


def plan_all_splits() -> None:
    folders = find_dataset("4")
    assert folders.raw is not None
    splits_for_planning(folders.preprocessed, folders.raw)


def search_unlabeled() -> None:
    folders = find_dataset("4")
    find_unlabeled_of_all_folds(
        CaseFolders(raw=folders.raw, labeled=folders.preprocessed / "data", description=DESCRIPTION), None
    )


def overwrite_splits() -> None:
    refuse_to_replace(find_dataset("4"), force=False)


RAW, PREPROCESSED = f"nnUNet_raw/{NAME}", f"nnUNet_preprocessed/{NAME}"
CLOSED: list[tuple[str, Callable[[], Any]]] = [
    ("nnUNet_raw", read_all_splits),
    ("nnUNet_preprocessed", read_all_splits),
    (".", read_all_splits),
    (RAW, read_all_splits),
    (PREPROCESSED, read_all_splits),
    (f"{RAW}/splits_final.json", read_all_splits),
    (f"{PREPROCESSED}/splits_final.json", read_all_splits),
    (RAW, plan_all_splits),
    (PREPROCESSED, plan_all_splits),
    (f"{PREPROCESSED}/data_unlabeled", search_unlabeled),
    (PREPROCESSED, overwrite_splits),
]


@pytest.mark.parametrize(("closed", "use"), CLOSED, ids=lambda one: getattr(one, "__name__", one))
def test_what_may_not_be_read_is_named(dataset: Path, closed: str, use: Callable[[], Any]) -> None:
    with any_user():
        (dataset / closed).chmod(0)
        with pytest.raises(
            MNError, match=rf"{dataset / closed}.* \(Permission denied\): check the path, and the permis"
        ):
            use()


@pytest.mark.parametrize("closed", ["nnUNet_raw", "nnUNet_preprocessed", ".", RAW, PREPROCESSED])
def test_doctor_names_what_may_not_be_read(dataset: Path, closed: str) -> None:
    with any_user():
        (dataset / closed).chmod(0)
        folders = [row.finding for row in check_folders() if row.state == "bad"]
        rows = [row.finding for row in check_dataset("4", plans="P", configuration="C") if row.state == "bad"]
    assert any(str(dataset / closed) in finding for finding in rows)
    assert any(str(dataset / closed) in finding for finding in folders) == (closed not in (RAW, PREPROCESSED))


@pytest.mark.parametrize("command", ["split --labeled 1", "preprocess", "suggest"])
def test_commands_name_what_may_not_be_read(dataset: Path, command: str) -> None:
    name, *options = command.split()
    CliRunner().invoke(cli.app, [name, "-d", "4", *options])  # imports what it needs: root's Python may be closed, too
    with any_user():
        (dataset / "nnUNet_raw").chmod(0)
        result = CliRunner().invoke(cli.app, [name, "-d", "4", *options])
    assert isinstance(result.exception, MNError)
    assert "Permission denied" in str(result.exception)


# ---- a folder of a group


@pytest.fixture
def shared(place: Path, planned_dataset: Any, copy_site: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A planned dataset of this user, in folders to which the group of `any_user` may write."""
    site = copy_site(planned_dataset(layout="imagesUn"), place / "root")
    for root in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(root, str(site.root / root))
    if os.geteuid() == 0:
        os.chown(site.preprocessed, 0, NOBODY)
    place.chmod(0o755)
    site.preprocessed.chmod(0o775)
    before = os.umask(0o022)
    yield site
    os.umask(before)


def preprocess(site: Any) -> str:
    result = CliRunner().invoke(cli.app, ["preprocess", "-d", site.name, "-np", "1"])
    assert result.exit_code == 0, result.exception
    return result.output


def test_what_one_user_makes_others_of_the_group_can_write_to(shared: Any) -> None:
    preprocess(shared)
    folder = f"{shared.cases.name}_unlabeled"
    group = shared.preprocessed.stat().st_gid
    of_group = {
        path.name
        for path in shared.preprocessed.iterdir()
        if path.stat().st_mode & stat.S_IWGRP and path.stat().st_gid == group
    }
    assert of_group >= {folder, f"{folder}.0-of-1.lock", f"{folder}.0-of-1.jsonl"}


def test_second_user_of_the_group_preprocesses_new_and_changed_images(shared: Any, volume_tools: Any) -> None:
    preprocess(shared)
    folder = shared.preprocessed / f"{shared.cases.name}_unlabeled"
    changed = folder / "unlabeled_00.b2nd"
    before = changed.stat().st_ino
    stale = folder.with_name(f"{folder.name}.1-of-4.staging-abc")  # of a killed process
    stale.mkdir()
    for seed, name in enumerate(("unlabeled_00", "new")):
        volume_tools.write(volume_tools.make(70 + seed)[0][0], shared.unlabeled_image(f"{name}_0000.nii.gz"))
    with another_of_the_group(shared.preprocessed):
        assert not os.access(stale, os.W_OK, effective_ids=True)
        assert "4 unlabeled cases are ready" in preprocess(shared)
    assert (folder / "new.b2nd").is_file()
    assert changed.stat().st_ino != before
    preprocess(shared)


@pytest.mark.parametrize("mode", [0o555, 0o775])
def test_user_with_nothing_to_preprocess_needs_no_right_to_write(shared: Any, mode: int) -> None:
    preprocess(shared)
    for file in shared.preprocessed.iterdir():
        file.chmod(0o555 if file.is_dir() else 0o444)
    shared.preprocessed.chmod(mode)
    for image in (shared.raw / "imagesUn").iterdir():
        os.utime(image)  # only its time stamp is new
    with any_user():
        assert "3 unlabeled cases are ready" in preprocess(shared)
