"""Case lists: who is labeled, unlabeled and held out, from split files and folders."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_mn.bridge.cases.dataset import CaseFolders
from nnunet_mn.bridge.cases.manifest import ImageFile, Record, append
from nnunet_mn.bridge.cases.roles import Roles, listed_split, roles_in_training, roles_of_all_folds, roles_of_fold
from nnunet_mn.bridge.cases.sources import SOURCES
from nnunet_mn.bridge.cases.splits import Split, read_splits
from nnunet_mn.bridge.cases.unlabeled import find_unlabeled, find_unlabeled_of_all_folds
from nnunet_mn.bridge.cases.wanted import write_wanted
from nnunet_mn.bridge.words import fault_of_path
from nnunet_mn.config import UNLABELED_SOURCES
from nnunet_mn.errors import MNError

DESCRIPTION = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


def touch(folder: Path, *names: str, channels: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for c in range(channels):
            (folder / f"{name}_{c:04d}.nii.gz").write_bytes(os.fsencode(name))


def find(
    raw: Path | None,
    labeled_folder: Path = Path("nowhere"),
    *,
    splits: list[Split] | None = None,
    fold: int | str = 0,
    labeled: Any = ("a",),
    val: Any = ("v",),
    sources: tuple[str, ...] | None = None,
    dataset_json: dict[str, Any] = DESCRIPTION,
) -> Any:
    folders = CaseFolders(raw=raw, labeled=labeled_folder, description=dataset_json)
    return find_unlabeled(folders, roles_of_fold(splits, fold, train=labeled, val=val), sources)


def names(found: Any) -> list[str]:
    return [case.name for case in found.cases]


def entry(train: Any = ("a",), val: Any = ("v",), unlabeled: Any = ()) -> dict[str, list[str]]:
    return {"train": list(train), "val": list(val), "unlabeled": list(unlabeled)}


# ---- split files


def write_splits(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "splits_final.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_split_without_unlabeled_lists_reads_as_one_with_empty_lists(tmp_path: Path) -> None:
    write_splits(tmp_path, [{"train": ["a"], "val": ["v"]}])
    assert read_splits(tmp_path, None) == ([entry()], [])


def test_a_misspelled_list_is_told_and_another_key_is_not(tmp_path: Path) -> None:
    folder = write_splits(tmp_path, [{"train": ["a"], "val": ["v"], "unlabeld": ["b"], "comment": ["c"]}])
    splits, (warning,) = read_splits(folder, None)
    assert splits == [{"train": ["a"], "val": ["v"], "unlabeled": []}]
    assert warning.endswith("has a list 'unlabeld', which is not read; did you mean 'unlabeled'?")


def test_no_split_file_is_no_error(tmp_path: Path) -> None:
    assert read_splits(tmp_path, tmp_path / "raw") == (None, [])


def test_the_preprocessed_split_wins_and_a_differing_raw_one_is_reported(tmp_path: Path) -> None:
    ours, theirs = write_splits(tmp_path / "p", [entry(["a"])]), write_splits(tmp_path / "r", [entry(["b"])])
    splits, warnings = read_splits(ours, theirs)
    assert splits is not None
    assert splits[0]["train"] == ["a"]
    assert len(warnings) == 1
    assert str(ours) in warnings[0]
    assert str(theirs) in warnings[0]
    assert read_splits(ours, write_splits(tmp_path / "same", [entry(["a"])]))[1] == []


def test_an_unlabeled_list_that_was_never_copied_is_refused(tmp_path: Path) -> None:
    raw = write_splits(tmp_path / "r", [entry(unlabeled=["u"])])
    with pytest.raises(MNError, match="copy it to"):
        read_splits(tmp_path, raw)


BROKEN = {
    "no JSON": '[{"train": ["a"]',
    "no list": {"train": ["a"], "val": ["v"]},
    "empty": [],
    "no fold": ["a"],
    "no val": [{"train": ["a"]}],
    "no list of names": [{"train": "a", "val": ["v"]}],
    "numbers": [{"train": [1], "val": ["v"]}],
    "unlabeled is None": [{"train": ["a"], "val": ["v"], "unlabeled": None}],
    "leak from val": [entry(unlabeled=["v"])],
    "labeled and unlabeled": [entry(unlabeled=["a"])],
    "leak in a later fold": [entry(), entry(unlabeled=["v"])],
    "path": [entry(unlabeled=["../../etc/passwd"])],
    "backslash": [entry(unlabeled=["..\\x"])],
    "parent": [entry(unlabeled=[".."])],
    "empty name": [entry(unlabeled=[""])],
    "name of a segmentation": [entry(unlabeled=["u_seg"])],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_split_file_is_named(tmp_path: Path, content: Any) -> None:
    write_splits(tmp_path, content)
    with pytest.raises(MNError, match=r"splits_final\.json"):
        read_splits(tmp_path, None)


def test_a_case_in_train_and_val_is_only_a_warning_as_in_stock(tmp_path: Path) -> None:
    splits, warnings = read_splits(write_splits(tmp_path, [entry(["a", "v"])]), None)
    assert splits == [entry(["a", "v"])]
    assert "'val'" in warnings[0]


# ---- stock split -> roles


def split_of(roles: Roles) -> tuple[list[str], list[str]]:
    return list(roles.labeled), list(roles.val)


def test_a_listed_fold_passes_unchanged() -> None:
    roles = roles_of_fold([entry(unlabeled=["u"])], 0, train=["a"], val=["v"])
    assert (*split_of(roles), roles.warnings) == (["a"], ["v"], ())
    assert roles.unlabeled == ("u",)


@pytest.mark.parametrize("fold", ["all", 7])
def test_for_folds_that_the_file_lacks_all_unlabeled_lists_are_taken_out(fold: int | str) -> None:
    splits = [entry(unlabeled=["u"]), entry(unlabeled=["w"])]
    roles = roles_of_fold(splits, fold, train=["a", "u"], val=["v", "w"])
    assert split_of(roles) == (["a"], ["v"])
    assert roles.unlabeled == ("u", "w")
    assert "2 cases" in roles.warnings[0]
    assert ("random 80:20 split" in roles.warnings[0]) is (fold != "all")


@pytest.mark.parametrize("fold", [0, 1, 7])
def test_split_without_a_trainer_is_that_of_nnunets_trainer(planned_dataset: Callable[..., Any], fold: int) -> None:
    dataset = planned_dataset()
    stock = get_trainer_from_args(str(dataset.number), "3d_fullres", fold, device=torch.device("cpu"))
    splits, _ = read_splits(dataset.preprocessed, dataset.raw)
    cases = sorted([*dataset.labeled, *dataset.val, *dataset.unlabeled])
    assert splits is not None
    assert len(splits) == 1
    train, val = listed_split(splits, fold, cases)
    assert (list(train), list(val)) == tuple(map(list, stock.do_split()))
    roles = roles_in_training(splits, fold, cases, lambda: listed_split(splits, fold, cases))
    assert roles == roles_in_training(splits, fold, cases, stock.do_split)


def test_without_validation_cases_the_labeled_ones_serve() -> None:
    roles = roles_of_fold(None, 0, train=["a"], val=[])
    assert roles.val == roles.labeled == ("a",)
    assert roles.warnings
    assert roles.held_out == []


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(MNError, match="no labeled case"):
        roles_of_fold([entry(unlabeled=["u"])], "all", train=["u"], val=["v"])


def test_without_any_case_and_split_file_the_command_is_named() -> None:
    with pytest.raises(MNError, match="fold all has no case: run nnUNetv2_preprocess"):
        roles_in_training(None, "all", [], lambda: ([], []))


def test_few_cases_without_a_split_file_are_all_labeled_and_stock_is_not_asked() -> None:
    def stock_split() -> Any:
        raise ValueError("KFold(5) needs 5 cases")

    roles = roles_in_training(None, 0, ["b", "a"], stock_split)
    assert split_of(roles) == (["a", "b"], ["a", "b"])
    assert "too few for nnU-Net's 5 folds" in roles.warnings[0]
    for splits, fold, cases in (([entry()], 0, ["a"]), (None, 0, [*"abcde"])):
        assert split_of(roles_in_training(splits, fold, cases, lambda: (["a"], ["v"]))) == (["a"], ["v"])


def test_a_case_that_any_fold_calls_unlabeled_is_unlabeled_for_all_folds() -> None:
    roles = roles_of_all_folds([entry(["a", "b"], ["v"], ["u"]), entry(["v", "u"], ["b"], ["a"])])
    assert (roles.labeled, roles.val, roles.unlabeled) == (("b", "v"), ("b", "v"), ("a", "u"))
    assert roles.mentioned == {"a", "b", "u", "v"}
    assert roles.held_out == []


def test_without_a_split_file_all_training_cases_are_labeled() -> None:
    roles = roles_of_all_folds(None, {"b", "a"})
    assert (roles.labeled, roles.val, roles.unlabeled) == (("a", "b"), (), ())


# ---- sources


def test_listed_cases_and_imagesun_are_united(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr", "a", "v", "u", "rest")
    touch(tmp_path / "imagesUn", "w")
    touch(tmp_path / "imagesTs", "t")
    found = find(tmp_path, splits=[entry(unlabeled=["u"])])
    assert names(found) == ["u", "w"]
    assert [case.source for case in found.cases] == ["split", "imagesUn"]
    assert found.cases[0].images == (tmp_path / "imagesTr" / "u_0000.nii.gz",)
    (warning,) = found.warnings
    assert "1 case(s) in imagesTr have no label (rest)" in warning


def test_imagests_serves_only_alone_and_with_a_warning(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTs", "t")
    found = find(tmp_path)
    assert names(found) == ["t"]
    assert "transductive" in found.warnings[0]
    assert "a folder called imagesUn" in found.warnings[0]  # users misspell it
    assert "transductive" in find(tmp_path, sources=("imagesTs",)).warnings[0]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [(("split",), ["u"]), (("imagesUn",), ["w"]), (("imagesTs",), ["t"]), (("imagesTs", "split"), ["t", "u"])],
)
def test_sources_narrow_the_search(tmp_path: Path, sources: tuple[str, ...], expected: list[str]) -> None:
    touch(tmp_path / "imagesTr", "u")
    touch(tmp_path / "imagesUn", "w")
    touch(tmp_path / "imagesTs", "t")
    assert names(find(tmp_path, splits=[entry(unlabeled=["u"])], sources=sources)) == expected


@pytest.mark.parametrize("sources", [None, ("split",)])
def test_no_unlabeled_case_names_the_three_remedies(tmp_path: Path, sources: tuple[str, ...] | None) -> None:
    touch(tmp_path / "imagesTr", "a", "v")
    with pytest.raises(MNError) as caught:
        find(tmp_path, sources=sources)
    for remedy in ("splits_final.json", "imagesUn", "nnUNet_mn_unlabeled_sources=imagesTs"):
        assert remedy in str(caught.value)


def test_cases_in_a_place_that_is_not_searched_are_told_apart_from_none(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr", "a", "v", "u")
    touch(tmp_path / "imagesUn", "w")
    unsearched = r"\(sources: split; imagesUn is not empty, but not searched\): set nnUNet_mn_unlabeled_sources="
    with pytest.raises(MNError, match=f"{unsearched}split,imagesUn$"):
        find(tmp_path, sources=("split",))
    with pytest.raises(MNError, match=r"split is not empty, but not searched.*sources=imagesTs,split,imagesUn$"):
        find(tmp_path, splits=[entry(unlabeled=["u"])], sources=("imagesTs",))


def test_the_remedy_of_a_place_that_is_not_searched_names_the_setting(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr", "a", "v")
    with pytest.raises(MNError, match=r"into imagesUn .*, with nnUNet_mn_unlabeled_sources=split,imagesUn, or"):
        find(tmp_path, sources=("split",))
    with pytest.raises(MNError) as caught:
        find(tmp_path, sources=("imagesTs",))
    assert "use the test images" not in str(caught.value)


def test_for_fold_all_every_listed_case_is_unlabeled(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr", "a", "u", "w")
    splits = [entry(unlabeled=["u"]), entry(unlabeled=["w"])]
    assert names(find(tmp_path, splits=splits, fold="all", val=["a"])) == ["u", "w"]


def test_a_listed_case_without_image_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr", "a")
    with pytest.raises(MNError, match="'u'"):
        find(tmp_path, splits=[entry(unlabeled=["u"])])


def test_listed_images_of_dataset_json_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "elsewhere", "u")
    monkeypatch.setenv("MN_ELSEWHERE", "elsewhere")
    images = {"images": ["$MN_ELSEWHERE/u_0000.nii.gz"], "label": "not/there.nii.gz"}
    description = {**DESCRIPTION, "dataset": {"u": images}}
    found = find(tmp_path, splits=[entry(unlabeled=["u"])], dataset_json=description)
    assert found.cases[0].images == (tmp_path / "elsewhere" / "u_0000.nii.gz",)
    shutil.rmtree(tmp_path / "elsewhere")
    with pytest.raises(MNError, match="u_0000"):
        find(tmp_path, splits=[entry(unlabeled=["u"])], dataset_json=description)


@pytest.mark.parametrize("folder", ["imagesUn", "imagesTr"])
@pytest.mark.parametrize(("change", "file"), [("missing", "u_0001"), ("surplus", "u_0002"), ("gap", "u_0000")])
def test_wrong_channels_are_named(tmp_path: Path, folder: str, change: str, file: str) -> None:
    touch(tmp_path / folder, "u", channels={"missing": 1, "surplus": 3, "gap": 2}[change])
    if change == "gap":
        (tmp_path / folder / "u_0000.nii.gz").unlink()
    description = {**DESCRIPTION, "channel_names": {"0": "T1", "1": "T2"}}
    splits = [entry(unlabeled=["u"] if folder == "imagesTr" else [])]
    with pytest.raises(MNError, match=f"{file}.nii.gz"):
        find(tmp_path, splits=splits, dataset_json=description)


def test_a_label_in_imagesun_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "imagesUn", "u")
    (tmp_path / "imagesUn" / "u.nii.gz").write_bytes(b"label")
    with pytest.raises(MNError, match=r"u\.nii\.gz"):
        find(tmp_path)


def test_other_files_in_imagesun_are_ignored_aloud_and_hidden_ones_silently(tmp_path: Path) -> None:
    touch(tmp_path / "imagesUn", "u")
    (tmp_path / "imagesUn" / ".DS_Store").touch()
    assert find(tmp_path).warnings == ()
    (tmp_path / "imagesUn" / "w_0000.nrrd").touch()
    assert "w_0000.nrrd" in find(tmp_path).warnings[0]


def test_the_file_of_spacing_beside_a_tiff_stack_is_read_and_not_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "imagesUn"
    folder.mkdir()
    for name in ("u_0000.tif", "u.json", "other.json"):
        (folder / name).touch()
    found = find(tmp_path, dataset_json={**DESCRIPTION, "file_ending": ".tif"})
    assert [case.files for case in found.cases] == [(folder / "u_0000.tif", folder / "u.json")]
    (warning,) = found.warnings
    assert warning.endswith("do not end in .tif: other.json")


@pytest.mark.parametrize("entry_of", ["folder", "other file", "label of a labeled case"])
def test_imagests_is_never_taken_beside_a_visible_entry_of_imagesun(tmp_path: Path, entry_of: str) -> None:
    touch(tmp_path / "imagesTs", "t")
    touch(tmp_path / "imagesTr", "a", "v")
    touch(tmp_path / "imagesUn" / "patient_1", "u")
    if entry_of == "other file":
        shutil.rmtree(tmp_path / "imagesUn" / "patient_1")
        (tmp_path / "imagesUn" / "u.dcm").touch()
    elif entry_of != "folder":
        shutil.rmtree(tmp_path / "imagesUn" / "patient_1")
        touch(tmp_path / "imagesUn", "a")
    with pytest.raises(MNError, match="imagesUn is not empty, but holds none"):
        find(tmp_path)
    assert names(find(tmp_path, sources=("imagesTs",))) == ["t"]


def test_folders_among_images_are_named_in_a_warning(tmp_path: Path) -> None:
    touch(tmp_path / "imagesUn" / "patient_1", "w")
    touch(tmp_path / "imagesUn", "u")
    found = find(tmp_path)
    assert names(found) == ["u"]
    assert "since they are folders: patient_1" in found.warnings[0]


def test_link_without_target_is_a_case_whose_image_cannot_be_opened(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTs", "t")
    (tmp_path / "imagesUn").mkdir()
    (tmp_path / "imagesUn" / "u_0000.nii.gz").symlink_to("/mnt/archive/u.nii.gz")
    (case,) = find(tmp_path).cases
    assert case.source == "imagesUn"
    assert f"{case.images[0]} is a link to /mnt/archive/u.nii.gz, which does not exist" in str(
        fault_of_path(case.images[0])
    )


def test_folder_that_is_a_link_without_target_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTs", "t")
    (tmp_path / "imagesUn").symlink_to("/mnt/archive")
    with pytest.raises(MNError, match="imagesUn is a link to /mnt/archive, which does not exist here"):
        find(tmp_path)


def test_name_that_is_not_utf_8_can_be_printed(tmp_path: Path) -> None:
    touch(tmp_path / "imagesUn", "u", os.fsdecode(b"M\xfcller"))
    found = find(tmp_path)
    assert names(found) == ["M\\xfcller", "u"]
    assert r"M\xfcller_0000.nii.gz is not UTF-8" in str(fault_of_path(found.cases[0].images[0]))


def test_names_with_spaces_dots_underscores_and_umlauts_are_kept(tmp_path: Path) -> None:
    odd = ["a b", "case.1", "fälle_0000", "x_0001_y"]
    touch(tmp_path / "imagesUn", *odd)
    assert names(find(tmp_path)) == sorted(odd)


def test_cases_labeled_since_the_planning_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr", "a", "new", "u")
    touch(tmp_path / "labelsTr")
    for name in ("a", "new"):
        (tmp_path / "labelsTr" / f"{name}.nii.gz").touch()
    (warning,) = find(tmp_path, splits=[entry(unlabeled=["u"])]).warnings
    assert "1 case(s) in imagesTr have a label but are not preprocessed (new)" in warning


def test_images_without_a_label_in_imagestr_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr", "a", "v", "extra", "u")
    touch(tmp_path / "imagesUn", "w")
    (warning,) = find(tmp_path, splits=[entry(unlabeled=["u"])]).warnings
    assert "1 case(s) in imagesTr have no label (extra). They are not used: move their images to imagesUn" in warning


def test_preprocessed_cases_in_no_list_of_the_fold_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr", "a", "u")
    labeled = tmp_path / "preprocessed"
    labeled.mkdir()
    for name in ("a", "forgotten", "v"):
        (labeled / f"{name}.npz").touch()
        (labeled / f"{name}.pkl").touch()
    (warning,) = find(tmp_path, labeled, splits=[entry(unlabeled=["u"])]).warnings
    assert "1 preprocessed case(s) are in no list of the split (forgotten)" in warning


def test_the_setting_names_the_sources_that_there_are() -> None:
    assert tuple(source.name for source in SOURCES) == UNLABELED_SOURCES


def test_all_folds_together_have_every_listed_case_and_no_validation_case(tmp_path: Path) -> None:
    raw, folds = tmp_path / "raw", [entry(unlabeled=["u"]), entry(["v"], ["a"], ["w"])]
    touch(raw / "imagesTr", "a", "v", "u", "w")
    folders = CaseFolders(raw=raw, labeled=write_splits(tmp_path / "p", folds) / "data", description=DESCRIPTION)
    found = find_unlabeled_of_all_folds(folders, None)
    assert names(found) == ["u", "w"]
    assert "differs" not in "".join(found.warnings)
    write_splits(raw, [entry(unlabeled=["u"])])
    assert "differs" in find_unlabeled_of_all_folds(folders, None).warnings[0]


# ---- one name, two images


def test_one_name_twice_counts_once_if_the_voxels_agree(tmp_path: Path, volume_tools: Any) -> None:
    image, _ = volume_tools.make(0)
    other, _ = volume_tools.make(1)
    for folder in ("imagesTr", "imagesUn"):
        (tmp_path / folder).mkdir()
        volume_tools.write(image[0], tmp_path / folder / "u_0000.nii.gz")
    with (tmp_path / "imagesUn" / "u_0000.nii.gz").open("ab") as file:
        file.write(b"trailing bytes: other file, same voxels")
    splits = [entry(unlabeled=["u"])]
    found = find(tmp_path, splits=splits)
    assert [(case.name, case.source) for case in found.cases] == [("u", "split")]
    volume_tools.write(other[0], tmp_path / "imagesUn" / "u_0000.nii.gz")
    with pytest.raises(MNError) as caught:
        find(tmp_path, splits=splits)
    for folder in ("imagesTr", "imagesUn"):
        assert str(tmp_path / folder / "u_0000.nii.gz") in str(caught.value)


def test_one_name_twice_in_stacks_of_tiff_is_compared_as_a_volume(tmp_path: Path, volume_tools: Any) -> None:
    for folder, compression in (("imagesTr", None), ("imagesUn", "zlib")):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "u_0000.tif"
        tifffile.imwrite(file, volume_tools.make(0)[0][0], photometric="minisblack", compression=compression)
    found = find(tmp_path, splits=[entry(unlabeled=["u"])], dataset_json={**DESCRIPTION, "file_ending": ".tif"})
    assert [(case.name, case.source) for case in found.cases] == [("u", "split")]


@pytest.mark.parametrize("source", ["imagesUn", "imagesTs"])
def test_an_image_called_like_a_validation_case_is_refused(tmp_path: Path, source: str) -> None:
    touch(tmp_path / "imagesTr", "a", "v")
    touch(tmp_path / source, "u", "v")
    with pytest.raises(MNError, match="validation case 'v'"):
        find(tmp_path)


@pytest.fixture
def of_all_folds(tmp_path: Path) -> Callable[..., Any]:
    """Finds the unlabeled cases of all folds of a dataset with these training cases and images in imagesUn."""

    def find_all(training: str, images_un: str, splits: list[Any] | None = None) -> Any:
        touch(tmp_path / "raw" / "imagesTr", *training)
        touch(tmp_path / "raw" / "imagesUn", *images_un)
        labeled = (tmp_path if splits is None else write_splits(tmp_path / "p", splits)) / "data"
        folders = CaseFolders(raw=tmp_path / "raw", labeled=labeled, description=DESCRIPTION)
        return find_unlabeled_of_all_folds(folders, None)

    return find_all


def test_image_called_like_a_validation_case_of_any_fold_is_refused_for_all_of_them(of_all_folds: Any) -> None:
    with pytest.raises(MNError, match="validation case 'b'"):
        of_all_folds("abcd", "ub", [entry("ab", "cd"), entry("cd", "ab")])


def test_without_a_split_file_nnunet_validates_each_of_five_cases(of_all_folds: Any) -> None:
    assert names(of_all_folds("abcd", "ua")) == ["u"]
    with pytest.raises(MNError, match="validation case 'a'"):
        of_all_folds("abcde", "ua")


def test_without_a_split_file_another_image_called_like_a_labeled_case_is_refused(
    of_all_folds: Any, tmp_path: Path, volume_tools: Any
) -> None:
    of_all_folds("a", "ua")
    for seed, folder in enumerate(("imagesTr", "imagesUn")):
        volume_tools.write(volume_tools.make(seed)[0][0], tmp_path / "raw" / folder / "a_0000.nii.gz")
    with pytest.raises(MNError, match="two different images"):
        find_unlabeled_of_all_folds(
            CaseFolders(raw=tmp_path / "raw", labeled=tmp_path / "data", description=DESCRIPTION), None
        )


def test_case_that_one_fold_calls_unlabeled_and_another_validates_is_taken(of_all_folds: Any) -> None:
    assert names(of_all_folds("abu", "w", [entry("a", "b", "u"), entry("a", "u")])) == ["u", "w"]


def test_a_labeled_image_in_imagesun_is_passed_over_but_not_another_of_its_name(
    tmp_path: Path, volume_tools: Any
) -> None:
    touch(tmp_path / "imagesTr", "a", "v")
    touch(tmp_path / "imagesUn", "u", "a")
    assert names(find(tmp_path)) == ["u"]
    assert names(find(tmp_path, val=["a"])) == ["u"]  # too few cases: validation uses the labeled ones
    for seed, folder in enumerate(("imagesTr", "imagesUn")):
        volume_tools.write(volume_tools.make(seed)[0][0], tmp_path / folder / "a_0000.nii.gz")
    with pytest.raises(MNError, match="two different images"):
        find(tmp_path)


# ---- without raw data


def put_preprocessed(folder: Path, *case_names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in case_names:
        for end in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{name}{end}").touch()


def test_without_raw_data_lists_and_preprocessed_cases_count(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    put_preprocessed(tmp_path / "x_unlabeled", "u", "w", "a", "v", "other", "t")
    (tmp_path / "x_unlabeled" / "half.b2nd").touch()
    file = tmp_path / "x_unlabeled.0-of-1.jsonl"
    append(file, Record("t", "imagesTs", (ImageFile("t_0000.nii.gz", 1, 1, 1, ""),), 1, ""))
    splits = [entry(unlabeled=["u"]), entry(unlabeled=["u", "other"])]
    found = find(None, folder, splits=splits)
    assert [(case.name, case.source, case.images) for case in found.cases] == [
        ("u", "split", ()),
        ("w", "imagesUn", ()),
    ]
    assert names(find(None, folder, splits=splits, sources=("imagesTs",))) == ["t"]


def test_without_raw_data_exactly_the_recorded_names_count(tmp_path: Path) -> None:
    raw, folder = tmp_path / "raw", tmp_path / "x"
    put_preprocessed(tmp_path / "x_unlabeled", "u", "w", "removed", "v", "b")
    touch(raw / "imagesTr", "a", "v", "b")
    touch(raw / "imagesUn", "u", "a", "new")
    splits = [entry(), entry(["b"])]
    assert "removed" in names(find(None, folder, splits=splits))  # an older version left no record
    write_wanted(tmp_path / "x_unlabeled", find(raw, folder, splits=splits).names_by_source)
    assert names(find(None, folder, splits=splits)) == names(find(raw, folder, splits=splits)) == ["new", "u"]
    (raw / "imagesUn" / "u_0000.nii.gz").unlink()
    (raw / "imagesUn" / "new_0000.nii.gz").unlink()
    touch(raw / "imagesUn", "w")
    write_wanted(tmp_path / "x_unlabeled", find(raw, folder, splits=splits).names_by_source)
    assert names(find(None, folder, splits=splits)) == ["w"]


def test_recorded_names_of_other_sources_stay(tmp_path: Path) -> None:
    touch(tmp_path / "imagesUn", "u")
    touch(tmp_path / "imagesTs", "t")
    for sources in (("imagesTs",), None):
        write_wanted(tmp_path / "x_unlabeled", find(tmp_path, sources=sources).names_by_source)
    put_preprocessed(tmp_path / "x_unlabeled", "u", "t")
    assert names(find(None, tmp_path / "x")) == ["u"]
    assert names(find(None, tmp_path / "x", sources=("imagesTs",))) == ["t"]


def test_broken_record_of_names_is_named_and_written_anew(tmp_path: Path) -> None:
    touch(tmp_path / "imagesUn", "u")
    (tmp_path / "x_unlabeled.wanted.json").write_text("[1")
    with pytest.raises(MNError, match=r"x_unlabeled.wanted.json cannot be read .*delete it"):
        find(None, tmp_path / "x")
    write_wanted(tmp_path / "x_unlabeled", find(tmp_path).names_by_source)
    assert names(find(None, tmp_path / "x")) == ["u"]


def test_record_of_names_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "imagesUn", "u")
    (tmp_path / "x_unlabeled.wanted.json").mkdir()
    with pytest.raises(MNError, match=r"x_unlabeled.wanted.json cannot be written \(Is a directory\)"):
        write_wanted(tmp_path / "x_unlabeled", find(tmp_path).names_by_source)


def test_the_test_images_do_not_stand_in_for_a_folder_that_is_gone(tmp_path: Path) -> None:
    raw, folder = tmp_path / "raw", tmp_path / "x"
    for name, cases in {"imagesTr": ("a", "v"), "imagesUn": ("u", "w", "new", "b"), "imagesTs": ("t",)}.items():
        touch(raw / name, *cases)
    write_wanted(tmp_path / "x_unlabeled", find(raw, folder).names_by_source)
    put_preprocessed(tmp_path / "x_unlabeled", "u", "w", "b", "other")
    shutil.rmtree(raw / "imagesUn")
    for _ in range(2):
        found = find(raw, folder, labeled=("a", "b"))
        assert names(found) == ["u", "w"]
        assert "imagesUn is gone. Its 2 preprocessed case(s) are used (u, w): put the folder back" in found.warnings[0]
        write_wanted(tmp_path / "x_unlabeled", found.names_by_source)
    shutil.rmtree(tmp_path / "x_unlabeled")
    assert names(find(raw, folder)) == ["t"]


def test_raw_data_without_images_are_as_none(tmp_path: Path) -> None:
    raw, folder = tmp_path / "raw", tmp_path / "x"
    touch(raw / "imagesTr", "a", "v", "u")
    touch(raw / "imagesUn", "w")
    touch(raw / "imagesTs", "t")
    put_preprocessed(tmp_path / "x_unlabeled", "u", "w")
    splits = [entry(unlabeled=["u"])]
    write_wanted(tmp_path / "x_unlabeled", find(raw, folder, splits=splits).names_by_source)
    for gone in ("imagesTr", "imagesUn", "imagesTs"):
        shutil.rmtree(raw / gone)
        assert names(find(raw, folder, splits=splits)) == ["u", "w"]


def test_listed_case_is_taken_from_imagesun_once_imagestr_is_gone(tmp_path: Path) -> None:
    touch(tmp_path / "imagesUn", "u", "w")
    found = find(tmp_path, splits=[entry(unlabeled=["u"])])
    assert [(case.name, case.images[0].parent.name) for case in found.cases] == [("u", "imagesUn"), ("w", "imagesUn")]


# ---- invariants

CASES = [f"c{i}" for i in range(6)]


def _listed(splits: list[dict[str, list[str]]], fold: Any) -> set[str]:
    in_file = fold != "all" and fold < len(splits)
    return {name for fold_entry in ([splits[fold]] if in_file else splits) for name in fold_entry["unlabeled"]}


CHOICES = st.none() | st.lists(st.sampled_from(["split", "imagesUn", "imagesTs"]), min_size=1, unique=True).map(tuple)


@st.composite
def folds(draw: Callable[..., Any]) -> list[dict[str, list[str]]]:
    """Split files in which every case is at most one of labeled, unlabeled and val, or unused, in each fold."""
    roles = st.lists(st.sampled_from(["train", "val", "unlabeled", ""]), min_size=len(CASES), max_size=len(CASES))
    return [
        {role: [c for c, r in zip(CASES, drawn, strict=True) if r == role] for role in ("train", "val", "unlabeled")}
        for drawn in draw(st.lists(roles, min_size=1, max_size=3))
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    splits=folds(),
    fold=st.sampled_from(["all", 0, 1, 2, 5]),
    un=st.sets(st.sampled_from([*CASES, "n0", "n1"])),
    ts=st.sets(st.sampled_from([*CASES, "n1", "n2"])),
    sources=CHOICES,
)
def test_case_lists_never_overlap(
    tmp_path: Path, splits: Any, fold: Any, un: set[str], ts: set[str], sources: Any
) -> None:
    shutil.rmtree(tmp_path)
    touch(tmp_path / "imagesTr", *CASES)
    touch(tmp_path / "imagesUn", *un)
    touch(tmp_path / "imagesTs", *ts)
    read, _ = read_splits(write_splits(tmp_path / "preprocessed", splits), None)
    assert read is not None
    in_file = fold != "all" and fold < len(splits)
    train, val = (splits[fold]["train"], splits[fold]["val"]) if in_file else (CASES, CASES)
    try:
        train, val = split_of(roles_of_fold(read, fold, train=train, val=val))
        found = find(tmp_path, splits=read, fold=fold, labeled=train, val=val, sources=sources)
    except MNError:
        nothing = not ((un or ts) - set(train) or _listed(splits, fold))  # beside imagesUn, imagesTs does not count
        leak = (un | ts) & (set(val) - set(train))
        assert not set(train) - _listed(splits, fold) or nothing or leak or sources is not None
        return
    unlabeled = names(found)
    assert unlabeled == sorted(set(unlabeled))
    assert not set(unlabeled) & (set(train) | set(val))
    assert set(unlabeled) <= set(CASES) | un | ts
    listed = _listed(splits, fold)
    assert not listed & (set(train) | set(val))
    if sources is None or "split" in sources:
        assert listed <= set(unlabeled)
    if any(case.source == "imagesTs" for case in found.cases):
        assert sources is not None or not (listed or un)
        assert any("transductive" in warning for warning in found.warnings)
    for case in found.cases:
        assert all(os.path.exists(image) for image in case.images)


def test_listed_cases_of_a_planned_data_set_are_those_of_its_split(planned_dataset: Callable[..., Any]) -> None:
    dataset = planned_dataset()
    splits, warnings = read_splits(dataset.preprocessed, dataset.raw)
    roles = roles_of_fold(splits, 0, train=dataset.labeled, val=dataset.val)
    folders = CaseFolders(raw=dataset.raw, labeled=Path("nowhere"), description=dataset.dataset_json)
    found = find_unlabeled(folders, roles, None)
    assert (tuple(names(found)), warnings, roles.warnings) == (dataset.unlabeled, [], ())
