"""Drawn splits: disjoint where they must be, stable where experiments rely on it, never lost."""

import contextlib
import json
import os
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnunet_mn.bridge import files
from nnunet_mn.bridge.cases.dataset import DatasetFolders
from nnunet_mn.bridge.cases.draw_splits import draw_splits, training_cases, write_splits
from nnunet_mn.bridge.cases.splits import planning_refuses
from nnunet_mn.errors import MNError

CASES = [f"case_{i:03d}" for i in range(60)]


@given(
    n=st.integers(1, 100),
    labeled=st.integers(1, 20),
    val=st.none() | st.integers(1, 20),
    folds=st.integers(1, 7),
    seed=st.integers(0, 9),
)
@settings(deadline=None)  # a busy machine is no failure
@example(n=7, labeled=4, val=None, folds=1, seed=0)  # a fifth of the rest is less than one case
def test_every_fold_parts_all_cases_and_no_case_is_validated_twice(
    n: int, labeled: int, val: int | None, folds: int, seed: int
) -> None:
    cases = [f"c{i}" for i in range(n)]
    try:
        splits = draw_splits(cases, labeled=labeled, val=val, folds=folds, seed=seed)
    except MNError:
        assert n - labeled < folds * (val or 1)
        return
    assert len(splits) == folds
    for split in splits:
        assert sorted(split["train"] + split["val"] + split["unlabeled"]) == sorted(cases)
        assert split["train"] == splits[0]["train"]
        assert len(split["train"]) == labeled
        assert len(split["val"]) == (val or len(splits[0]["val"])) > 0
    assert all(not set(a["val"]) & set(b["val"]) for a, b in combinations(splits, 2))


def test_order_of_the_cases_does_not_matter_but_the_seed_does() -> None:
    draw = {"labeled": 4, "val": 5, "folds": 3}
    assert draw_splits(CASES, seed=0, **draw) == draw_splits(CASES[::-1], seed=0, **draw)
    assert draw_splits(CASES, seed=0, **draw) != draw_splits(CASES, seed=1, **draw)


def test_more_labels_keep_the_labeled_and_the_validation_cases() -> None:
    few, many = (draw_splits(CASES, labeled=n, val=6, folds=5, seed=3) for n in (4, 8))
    assert set(few[0]["train"]) < set(many[0]["train"])
    assert [fold["val"] for fold in few] == [fold["val"] for fold in many]


def test_too_few_cases_are_told_with_the_options_that_help() -> None:
    with pytest.raises(MNError, match=r"10 cases are too few for 4 labeled ones .* of 2; lower --labeled, --val or"):
        draw_splits(CASES[:10], labeled=4, val=2, folds=5, seed=0)


def test_cases_are_those_that_nnunet_trains_on(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    for name in ("b_0000.nii.gz", "b_0001.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz"):
        (tmp_path / "imagesTr" / name).touch()
    (tmp_path / "labelsTr").mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / "labelsTr" / name).touch()
    (tmp_path / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    assert training_cases(tmp_path) == ["a", "b"]


def test_folder_that_is_no_dataset_is_told(tmp_path: Path) -> None:
    with pytest.raises(MNError, match=r"dataset\.json cannot be read .*write it as nnU-Net's dataset format"):
        training_cases(tmp_path)


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"file_ending": 1}', '{"file_ending": "", "dataset": null}'])
def test_description_of_another_shape_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(MNError, match=rf"{tmp_path / 'dataset.json'} .*write it as nnU-Net's dataset format"):
        training_cases(tmp_path)


@pytest.mark.parametrize(("ending", "said"), [("nii.gz", r"must be '\.nii\.gz', but is 'nii\.gz'"), ("", "but is ''")])
def test_ending_without_its_dot_is_told(tmp_path: Path, ending: str, said: str) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"file_ending": ending}))
    with pytest.raises(MNError, match=f"'file_ending' in {tmp_path / 'dataset.json'} .*{said}"):
        training_cases(tmp_path)


@pytest.mark.parametrize("images", [[3], ["a_0000.nii.gz", None], "a_0000.nii.gz"])
def test_listed_images_that_are_no_texts_are_told(tmp_path: Path, images: Any) -> None:
    content = {"file_ending": ".nii.gz", "dataset": {"a": {"images": images, "label": "a.nii.gz"}}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(MNError, match=r"'a' in the entry 'dataset' of .*dataset\.json must have a list of images"):
        training_cases(tmp_path)


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetFolders:
    return DatasetFolders("Dataset001_A", None, tmp_path / "Dataset001_A")


SPLITS = [{"train": ["a"], "val": ["b"], "unlabeled": ["c"]}]


def test_written_file_is_read_back_as_it_was_drawn(dataset: DatasetFolders) -> None:
    file, backup = write_splits(dataset, SPLITS, force=False)
    assert json.loads(file.read_text()) == SPLITS
    assert backup is None


def test_file_is_not_overwritten_unless_forced(dataset: DatasetFolders) -> None:
    file, _ = write_splits(dataset, SPLITS, force=False)
    with pytest.raises(MNError, match="--force"):
        write_splits(dataset, [], force=False)
    assert json.loads(file.read_text()) == SPLITS


def test_every_replaced_file_is_kept(dataset: DatasetFolders) -> None:
    versions = [[{"train": [name], "val": [], "unlabeled": []}] for name in "abc"]
    backups = [write_splits(dataset, version, force=True)[1] for version in versions]
    assert backups[0] is None
    assert [json.loads(backup.read_text()) for backup in backups[1:] if backup] == versions[:2]


def test_a_file_that_is_no_text_is_kept_too(dataset: DatasetFolders) -> None:
    file, _ = write_splits(dataset, SPLITS, force=False)
    file.write_bytes(b"\xff\xfe")
    _, backup = write_splits(dataset, SPLITS, force=True)
    assert backup is not None
    assert backup.read_bytes() == b"\xff\xfe"


def test_full_disk_keeps_the_old_file(dataset: DatasetFolders, monkeypatch) -> None:
    file, _ = write_splits(dataset, SPLITS, force=False)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(MNError, match="No space left on device"):
        write_splits(dataset, [], force=True)
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert json.loads(file.read_text()) == SPLITS


def test_hidden_files_are_no_cases(tiny_dataset) -> None:
    raw = tiny_dataset(n_labeled=1, n_val=1, n_unlabeled=0).raw
    (raw / "imagesTr" / "._labeled_00_0000.nii.gz").write_bytes(b"of macOS")
    assert training_cases(raw) == ["labeled_00", "val_00"]


def test_name_that_is_not_utf_8_is_refused(tiny_dataset) -> None:
    raw = tiny_dataset(n_labeled=1, n_val=1, n_unlabeled=0).raw
    image = raw / "imagesTr" / "val_00_0000.nii.gz"
    image.rename(image.with_name(os.fsdecode(b"M\xfcller_0000.nii.gz")))
    with pytest.raises(MNError, match=r"M\\xfcller_0000\.nii\.gz is not UTF-8"):
        training_cases(raw)


def test_a_misnamed_image_makes_no_case(tiny_dataset) -> None:
    raw = tiny_dataset(n_labeled=2, n_val=0, n_unlabeled=0).raw
    image = raw / "imagesTr" / "labeled_01_0000.nii.gz"
    image.rename(raw / "imagesTr" / "labeled_01.nii.gz")
    assert training_cases(raw) == ["labeled_00"]


def test_cases_without_a_label_are_not_drawn(tiny_dataset) -> None:
    raw = tiny_dataset(n_labeled=1, n_val=1, n_unlabeled=0).raw
    (raw / "labelsTr" / "val_00.nii.gz").unlink()
    assert training_cases(raw) == ["labeled_00"]
    (raw / "labelsTr" / "labeled_00.nii.gz").unlink()
    with pytest.raises(MNError, match=f"{raw} has no case with an image and a label"):
        training_cases(raw)


def test_listed_cases_without_a_label_are_not_drawn(tiny_dataset) -> None:
    dataset = tiny_dataset(n_labeled=2, n_val=0, n_unlabeled=0)
    listed = {name: {"images": [f"imagesTr/{name}_0000.nii.gz"]} for name in dataset.labeled}
    listed["labeled_00"]["label"] = "labelsTr/labeled_00.nii.gz"
    (dataset.raw / "dataset.json").write_text(json.dumps({**dataset.dataset_json, "dataset": listed}))
    assert training_cases(dataset.raw) == ["labeled_00"]


def test_a_raw_file_that_disagrees_with_the_written_one_is_told(tmp_path: Path, capsys) -> None:
    raw, used = (tmp_path / root / "Dataset001_A" for root in ("raw", "preprocessed"))
    raw.mkdir(parents=True)
    write_splits(DatasetFolders(raw.name, raw, used), SPLITS, force=False)
    (raw / "splits_final.json").write_text(json.dumps([{**SPLITS[0], "unlabeled": []}]))  # nnU-Net does not read it
    write_splits(DatasetFolders(raw.name, raw, used), SPLITS, force=True)
    assert capsys.readouterr() == ("", "")
    write_splits(DatasetFolders(raw.name, raw, used), [{"train": ["c"], "val": ["b"], "unlabeled": []}], force=True)
    told = capsys.readouterr().err
    assert told.startswith(f"WARNING: {raw / 'splits_final.json'} does not agree with {used / 'splits_final.json'}")


@pytest.mark.parametrize(
    ("used", "refused"),
    [
        ([("a", "v")], False),
        ([("a", "v"), ("b", "w")], False),  # nnU-Net takes more folds
        ([("ab", "v")], True),
        ([("a", "w")], True),
    ],
)
def test_split_files_are_compared_as_by_nnunet(tmp_path: Path, used: list[tuple[str, str]], refused: bool) -> None:
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import _maybe_copy_splits_file

    files = tmp_path / "used.json", tmp_path / "raw.json"
    for file, folds in zip(files, (used, [("a", "v")]), strict=True):
        file.write_text(json.dumps([{"train": [*train], "val": [*val]} for train, val in folds]))
    with pytest.raises(AssertionError) if refused else contextlib.nullcontext():
        _maybe_copy_splits_file(str(files[1]), str(files[0]))
    assert planning_refuses(*files) == refused


def test_broken_split_files_do_not_agree(tmp_path: Path) -> None:
    used, raw = tmp_path / "used.json", tmp_path / "raw.json"
    used.write_text("[{")
    assert not planning_refuses(used, raw)
    raw.write_text("[{}]")
    assert planning_refuses(used, raw)
    assert planning_refuses(raw, raw)
