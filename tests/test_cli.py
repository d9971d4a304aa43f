"""The command line: what a user sees, also after a mistake."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nnunet_mn import cli
from nnunet_mn.bridge import registration
from nnunet_mn.errors import MNError

COMMANDS = sorted(typer.main.get_command(cli.app).commands)
RUNNER = CliRunner()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "weights"])
def test_help_of_every_command_shows_an_example(command: str) -> None:
    result = RUNNER.invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"nnunet-mn {command}" in " ".join(result.output.split("Example:")[1].split())


def test_help_names_every_command() -> None:
    output = RUNNER.invoke(cli.app, ["--help"]).output
    assert not [command for command in COMMANDS if command not in output]


def test_weights_has_its_own_commands() -> None:
    output = RUNNER.invoke(cli.app, ["weights", "--help"]).output
    assert [command for command in ("list", "fetch", "check") if command not in output] == []


def test_version_is_the_package_version() -> None:
    assert RUNNER.invoke(cli.app, ["--version"]).output.split() == ["nnunet-mn", version("nnunet-mn")]


def test_start_is_fast_because_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'nnunetv2', 'transformers', 'matplotlib'}"
    code = f"import sys, nnunet_mn.cli; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_mistake_of_the_user_is_one_line_and_exit_code_2(monkeypatch, capsys) -> None:
    def refuse() -> None:
        raise MNError("the value 7 is wrong; use 8")

    monkeypatch.setattr(registration, "register", refuse)
    monkeypatch.setattr(sys, "argv", ["nnunet-mn", "register"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "nnunet-mn: error: the value 7 is wrong; use 8\n")


@pytest.mark.parametrize("command", ["report", "suggest"])
def test_second_fold_is_refused_where_a_command_takes_one(command: str) -> None:
    result = RUNNER.invoke(cli.app, [command, "-d", "4", "-f", "0", "1"])
    assert isinstance(result.exception, MNError)
    assert str(result.exception).startswith("'1' belongs to no option: -f takes one fold")


def test_trainers_path_prints_a_folder_and_nothing_else() -> None:
    printed = RUNNER.invoke(cli.app, ["trainers-path"]).output
    assert Path(printed.rstrip("\n")) == registration.trainers_path()


def test_register_and_unregister_name_their_files(monkeypatch, tmp_path: Path) -> None:
    for hook in registration.HOOKS:
        (tmp_path / hook.file).parent.mkdir(parents=True)
        ((tmp_path / hook.file).parent / "__init__.py").touch()
    monkeypatch.setattr(registration, "nnunet_package", lambda: tmp_path)
    files = [str(tmp_path / hook.file) for hook in registration.HOOKS]
    assert RUNNER.invoke(cli.app, ["register"]).output.split() == [w for f in files for w in ("registered:", f)]
    assert RUNNER.invoke(cli.app, ["unregister"]).output.split() == [w for f in files for w in ("removed:", f)]
    assert RUNNER.invoke(cli.app, ["unregister"]).output == "nothing was registered\n"


def test_split_of_a_raw_dataset_is_written_where_nnunet_reads_it(monkeypatch, tmp_path: Path) -> None:
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    images, labels = (raw / "Dataset004_A" / folder for folder in ("imagesTr", "labelsTr"))
    images.mkdir(parents=True)
    labels.mkdir()
    preprocessed.mkdir()
    for i in range(20):
        (images / f"case_{i}_0000.nii.gz").touch()
        (labels / f"case_{i}.nii.gz").touch()
    (images.parent / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    arguments = ["split", "-d", "4", "--labeled", "4", "--val", "2", "--folds", "3"]
    result = RUNNER.invoke(cli.app, arguments)
    assert result.output.endswith("3 folds of 4 train, 2 val, 14 unlabeled\n")
    splits = json.loads((preprocessed / "Dataset004_A" / "splits_final.json").read_text())
    assert [len(fold["unlabeled"]) for fold in splits] == [14, 14, 14]
    assert isinstance(RUNNER.invoke(cli.app, arguments).exception, MNError)
    assert "kept the previous file" in RUNNER.invoke(cli.app, [*arguments, "--force"]).output


def test_preprocess_makes_the_unlabeled_cases_ready_once(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn")
    arguments = ["preprocess", "-d", str(dataset.number), "-np", "1"]
    first, second = (RUNNER.invoke(cli.app, arguments) for _ in range(2))
    folder = dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    assert {file.name for file in folder.glob("*.pkl")} == {f"{name}.pkl" for name in dataset.unlabeled}
    assert f"{len(dataset.unlabeled)} unlabeled cases are ready in {folder}" in "".join(first.output.split("\n"))
    assert (first.exit_code, second.exit_code) == (0, 0)


def test_parts_of_the_preprocessing_share_the_cases(fresh_planned_dataset) -> None:
    dataset = fresh_planned_dataset(layout="imagesUn", n_unlabeled=3)
    for part in range(2):
        arguments = ["preprocess", "-d", dataset.name, "-np", "1", "--num-parts", "2", "--part-id", str(part)]
        assert RUNNER.invoke(cli.app, arguments).exit_code == 0
        done = len(list((dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled").glob("*.pkl")))
        assert done == [2, 3][part]


def test_doctor_ends_with_1_where_a_training_would_not_start(tiny_dataset) -> None:
    result = RUNNER.invoke(cli.app, ["doctor", "-d", str(tiny_dataset().number)])
    assert result.exit_code == 1
    assert "would stop a training" in result.output
