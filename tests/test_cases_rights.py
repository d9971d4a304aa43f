"""Folders and files that a user may not read or write: one sentence names them."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nnunet_mn import cli
from nnunet_mn.bridge.cases.dataset import CaseFolders, find_dataset
from nnunet_mn.bridge.cases.draw_splits import split_file
from nnunet_mn.bridge.cases.splits import read_splits, splits_for_planning
from nnunet_mn.bridge.cases.unlabeled import find_unlabeled_of_all_folds
from nnunet_mn.bridge.doctor.dataset import check_dataset
from nnunet_mn.bridge.doctor.environment import check_folders
from nnunet_mn.errors import MNError

NOBODY = 65534
NAME = "Dataset004_Heart"
DESCRIPTION = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


@contextmanager
def any_user() -> Iterator[None]:
    """Inside, root has no more rights than others."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


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
    split_file(find_dataset("4"), force=False)


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
