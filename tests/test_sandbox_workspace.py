import pytest

from nnunet_mn.errors import MNError
from nnunet_mn.sandbox.workspace import Workspace

LENGTHS = {"seed": 3, "epochs": 2, "iterations": 4, "val_iterations": 1}


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(MNError, match=f"{tmp_path}.*--out"):
        Workspace(tmp_path).prepare()
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_file_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(MNError, match="is a file"):
        Workspace(file).prepare()


def test_second_run_clears_the_first_and_nothing_else(tmp_path):
    space = Workspace(tmp_path / "new" / "demo")
    space.prepare()
    for folder in (space.raw, space.results, space.predictions("some")):
        folder.mkdir(parents=True)
        (folder / "old").touch()
    (space.out / "demo.json").touch()
    (space.out / "notes.txt").touch()
    other = space.results.parent / "Dataset001_Other"
    other.mkdir()
    space.prepare()
    left = {file.name for file in space.out.rglob("*") if file.is_file()}
    assert left == {".nnunet-mn-demo", "notes.txt"}
    assert other.is_dir()


def test_children_get_the_demos_folders_and_settings_and_none_of_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_mn_preset", "paper")
    monkeypatch.setenv("nnUNet_raw", "/elsewhere")
    environment = Workspace(tmp_path).environment(**LENGTHS)
    assert "nnUNet_mn_preset" not in environment
    assert environment["nnUNet_raw"] == str(tmp_path / "nnUNet_raw")
    assert environment["nnUNet_mn_seed"] == "3"
    assert environment["nnUNet_mn_iterations_per_epoch"] == "4"
    assert int(environment["nnUNet_n_proc_DA"]) >= 1


def test_test_labels_lie_outside_what_training_reads(tmp_path):
    space = Workspace(tmp_path)
    for read in (space.raw, space.preprocessed):
        assert not space.test_labels.is_relative_to(read.parent)
