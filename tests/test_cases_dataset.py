"""Finding a dataset's folders."""

from pathlib import Path

import pytest

from nnunet_mn.bridge.cases.dataset import DatasetFolders, find_dataset
from nnunet_mn.errors import MNError


@pytest.fixture
def roots(tmp_path: Path, monkeypatch) -> tuple[Path, Path]:
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    for variable, root in (("nnUNet_raw", raw), ("nnUNet_preprocessed", preprocessed)):
        root.mkdir()
        monkeypatch.setenv(variable, str(root))
    (raw / "Dataset004_Heart").mkdir()
    (raw / "Dataset0041_Strange").mkdir()
    (preprocessed / "Dataset005_Lung").mkdir()
    return raw, preprocessed


@pytest.mark.parametrize("given", ["4", "004", "Dataset004_Heart"])
def test_number_and_name_mean_the_same(roots, given: str) -> None:
    raw, preprocessed = roots
    found = find_dataset(given)
    assert (found.name, found.raw, found.preprocessed) == (
        "Dataset004_Heart",
        raw / "Dataset004_Heart",
        preprocessed / "Dataset004_Heart",
    )


def test_raw_data_may_be_elsewhere(roots, monkeypatch) -> None:
    assert find_dataset("5").raw is None
    monkeypatch.delenv("nnUNet_raw")
    assert find_dataset("5").name == "Dataset005_Lung"


@pytest.mark.parametrize("given", ["7", "Dataset004", "Heart"])
def test_unknown_dataset_is_told_with_the_folders_searched(roots, given: str) -> None:
    with pytest.raises(MNError, match=rf"no dataset fits '{given}' in {roots[0]} and {roots[1]}"):
        find_dataset(given)


def test_number_of_two_datasets_is_refused(roots) -> None:
    (roots[1] / "Dataset004_Liver").mkdir()
    with pytest.raises(
        MNError, match=r"2 datasets fit \(Dataset004_Heart, Dataset004_Liver\) '4' .*rename all but one"
    ):
        find_dataset("4")


def test_an_archive_beside_a_dataset_is_none(roots) -> None:
    raw, _ = roots
    (raw / "Dataset004_Heart.zip").touch()
    assert find_dataset("4").name == "Dataset004_Heart"


@pytest.mark.parametrize(("name", "number"), [("Dataset004_Heart", "4"), ("Dataset1000_Big", "1000")])
def test_the_number_is_that_of_nnunets_commands(name: str, number: str) -> None:
    assert DatasetFolders(name, None, Path()).number == number


def test_missing_folder_variable_is_told(roots, monkeypatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(MNError, match="nnUNet_preprocessed is not set"):
        find_dataset("4")
