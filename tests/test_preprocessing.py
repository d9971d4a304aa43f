"""Preprocessing of unlabeled cases: from images alone, resumable, once, and safe against bad input."""

import errno
import fcntl
import os
import pickle
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK
import tifffile
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mn.bridge.cases import images
from nnunet_mn.bridge.cases.dataset import DatasetFolders, unlabeled_folder
from nnunet_mn.bridge.cases.images import BadImageError
from nnunet_mn.bridge.cases.manifest import ImageFile, Manifest, Record, Voxels, append, hash_file
from nnunet_mn.bridge.cases.planned import PlannedDataset
from nnunet_mn.bridge.cases.sources import UnlabeledCase
from nnunet_mn.bridge.preprocessing.leaks import refuse_copies_of_val
from nnunet_mn.bridge.preprocessing.one_case import Job, prepare_case
from nnunet_mn.bridge.preprocessing.run import Preprocessed, preprocess_unlabeled
from nnunet_mn.bridge.processes import map_in_processes
from nnunet_mn.errors import MNError


class Bench:
    """Unlabeled cases of one planned data set, with a folder of their own to preprocess to."""

    def __init__(self, dataset: Any, tmp_path: Path) -> None:
        self.dataset, self.plans = dataset, dataset.plans
        self.labeled_folder = dataset.preprocessed / self.plans["configurations"]["3d_fullres"]["data_identifier"]
        self.folder = unlabeled_folder(tmp_path / self.labeled_folder.name)
        images = tmp_path / "images"
        shutil.copytree(dataset.raw / "imagesTr", images)
        age_files(images)
        channels = len(dataset.dataset_json["channel_names"])
        self.cases = [
            UnlabeledCase(n, tuple(images / f"{n}_{c:04d}.nii.gz" for c in range(channels)), "imagesUn")
            for n in dataset.unlabeled
        ]
        self.messages: list[str] = []

    def run(self, cases: list[UnlabeledCase] | None = None, **options: Any) -> Preprocessed:
        plans = PlansManager(self.plans)
        folders = DatasetFolders(self.dataset.name, self.dataset.raw, self.folder.parent)
        planned = PlannedDataset(
            folders, plans, "3d_fullres", plans.get_configuration("3d_fullres"), self.dataset.dataset_json
        )
        defaults = {"num_processes": 1, "log": self.messages.append}
        return preprocess_unlabeled(self.cases if cases is None else cases, planned, **{**defaults, **options})

    def voxels(self, name: str, folder: Path | None = None) -> np.ndarray:
        return blosc2.open(str((folder or self.folder) / f"{name}.b2nd"))[:]

    def written(self) -> dict[str, int]:
        """When each volume was written."""
        return {file.name: file.stat().st_mtime_ns for file in self.folder.glob("*.b2nd") if "_seg" not in file.name}

    def redone(self, **options: Any) -> set[str]:
        before = self.written()
        self.run(**options)
        return {name.removesuffix(".b2nd") for name, when in self.written().items() if before.get(name) != when}

    def case(self, name: str, *arrays: np.ndarray, ending: str = ".nii.gz") -> UnlabeledCase:
        """A new case with the given channels."""
        images = tuple(self.folder.with_name(f"{name}_{c:04d}{ending}") for c in range(len(arrays)))
        for array, image in zip(arrays, images, strict=True):
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(image))
        return UnlabeledCase(name, images, "imagesUn")


def age_files(folder: Path, *, seconds: int = 3600) -> None:
    """Date files back."""
    for file in folder.iterdir():
        os.utime(file, (time.time() - seconds, time.time() - seconds))


@pytest.fixture
def bench(planned_dataset: Callable[..., Any], tmp_path: Path) -> Bench:
    """One data set's cases; their files are new, so that time stamps alone do not yet prove them unchanged."""
    return Bench(planned_dataset(), tmp_path)


@pytest.fixture
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files for long unchanged, whatever the clock says: their time of change cannot be set back."""
    monkeypatch.setattr("nnunet_mn.bridge.cases.manifest.STAMP_NS", 0)


# ---- what comes out


@pytest.mark.parametrize("labels", ["classes", "regions", "ignore"])
def test_voxels_and_keys_are_those_of_stock_preprocessing(
    planned_dataset: Callable[..., Any], tmp_path: Path, labels: str
) -> None:
    bench = Bench(planned_dataset(labels=labels), tmp_path)
    assert bench.run() == (bench.dataset.unlabeled, {})
    for name in bench.dataset.unlabeled:
        assert np.array_equal(bench.voxels(name), bench.voxels(name, bench.labeled_folder))
        ours, stock = (
            pickle.loads((folder / f"{name}.pkl").read_bytes()) for folder in (bench.folder, bench.labeled_folder)
        )
        assert ours["class_locations"] == {key: [] for key in stock["class_locations"]}
        assert [type(key) for key in ours["class_locations"]] == [type(key) for key in stock["class_locations"]]
        assert {k: v for k, v in ours.items() if k != "class_locations"}.keys() == stock.keys() - {"class_locations"}


def test_two_channels_are_kept_in_order(planned_dataset: Callable[..., Any], tmp_path: Path) -> None:
    bench = Bench(planned_dataset(channels=2), tmp_path)
    bench.run()
    name = bench.dataset.unlabeled[0]
    assert np.array_equal(bench.voxels(name), bench.voxels(name, bench.labeled_folder))


def test_the_folder_holds_nothing_but_cases_that_stock_can_load(bench: Bench) -> None:
    bench.run()
    ends = (".b2nd", "_seg.b2nd", ".pkl")
    assert {f.name for f in bench.folder.iterdir()} == {n + end for n in bench.dataset.unlabeled for end in ends}
    assert not list(bench.folder.parent.glob("*staging*"))
    loaded = infer_dataset_class(str(bench.folder))(str(bench.folder))
    assert loaded.identifiers == sorted(bench.dataset.unlabeled)
    assert set(np.unique(loaded.load_case(loaded.identifiers[0])[1][:])) <= {0, -1}


def test_raw_data_and_labels_are_never_touched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = SimpleITK.ReadImage
    monkeypatch.setattr(SimpleITK, "ReadImage", lambda file: (opened.append(str(file)), read(file))[1])
    before = {f: f.stat().st_mtime_ns for f in bench.dataset.raw.rglob("*")}
    bench.run(
        [UnlabeledCase(c.name, (bench.dataset.raw / "imagesTr" / c.images[0].name,), "split") for c in bench.cases]
    )
    assert {f: f.stat().st_mtime_ns for f in bench.dataset.raw.rglob("*")} == before
    assert len(opened) == len(bench.cases)
    assert not [file for file in opened if "labels" in file]


def test_unlabeled_folder_lies_beside_the_labeled_one() -> None:
    assert unlabeled_folder(Path("/p/D/nnUNetPlans_3d_fullres")) == Path("/p/D/nnUNetPlans_3d_fullres_unlabeled")


# ---- doing it again


@pytest.mark.usefixtures("old_files")
def test_a_second_run_does_nothing_and_needs_no_right_to_write(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench.run()
    monkeypatch.setattr("nnunet_mn.bridge.preprocessing.run.staging_folder", None)
    assert bench.run() == first


@pytest.mark.parametrize("end", [".b2nd", "_seg.b2nd", ".pkl"])
def test_a_case_that_lacks_a_file_is_redone_and_no_other(bench: Bench, end: str) -> None:
    bench.run()
    (bench.folder / f"{bench.cases[1].name}{end}").unlink()
    assert bench.redone() == {bench.cases[1].name}


def test_a_changed_image_is_redone(bench: Bench) -> None:
    bench.run()
    case = bench.cases[0]
    old = bench.voxels(case.name)
    bench.case(
        "x", SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case.images[0]))) * 2 + np.eye(20, 22, dtype="f")
    )
    shutil.move(bench.folder.with_name("x_0000.nii.gz"), case.images[0])
    assert bench.redone() == {case.name}
    assert not np.array_equal(bench.voxels(case.name), old)


def test_an_image_changed_in_place_with_its_time_put_back_is_redone(bench: Bench, volume_tools: Any) -> None:
    images = [bench.case("u", volume_tools.make(seed)[0][0], ending=".mha") for seed in (1, 2)]
    stamp = images[0].images[0].stat()
    bench.cases = [bench.case("u", volume_tools.make(1)[0][0], ending=".mha")]
    bench.run()
    old = bench.voxels("u")
    bench.case("u", volume_tools.make(2)[0][0], ending=".mha")
    os.utime(images[0].images[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert images[0].images[0].stat().st_size == stamp.st_size
    assert bench.redone() == {"u"}
    assert not np.array_equal(bench.voxels("u"), old)


@pytest.fixture
def tiff(bench: Bench, volume_tools: Any) -> Path:
    """The file of spacing beside the only case of the bench, a TIFF stack."""
    bench.plans["image_reader_writer"] = "Tiff3DIO"
    bench.cases = [UnlabeledCase("u", (bench.folder.with_name("u_0000.tif"),), "imagesUn")]
    tifffile.imwrite(bench.cases[0].images[0], volume_tools.make(1)[0][0], photometric="minisblack")
    (file := bench.folder.with_name("u.json")).write_text('{"spacing": [1, 1, 1]}')
    return file


@pytest.mark.usefixtures("old_files")
def test_a_tiff_stack_with_another_spacing_is_redone(bench: Bench, tiff: Path) -> None:
    bench.run()
    old = bench.voxels("u").shape
    assert bench.redone() == set()
    tiff.write_text('{"spacing": [2, 1, 1]}')
    assert bench.redone() == {"u"}
    assert bench.voxels("u").shape != old
    tiff.unlink()  # nnU-Net then takes 1 mm
    assert bench.redone() == {"u"}
    assert bench.voxels("u").shape == old


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"spacing": [1, null, 1]}', '{"spacing": [1, 0, 1]}'])
def test_a_broken_file_of_spacing_is_named(bench: Bench, tiff: Path, content: str) -> None:
    tiff.write_text(content)
    with pytest.raises(MNError, match=rf"{tiff} holds no spacing of its image .*write three positive numbers"):
        bench.run()


def test_new_time_stamps_alone_cost_one_look_at_the_content(bench: Bench) -> None:
    bench.run()
    age_files(bench.cases[0].images[0].parent, seconds=7200)
    manifest = bench.folder.with_name(f"{bench.folder.name}.0-of-1.jsonl")
    lines = len(manifest.read_text().splitlines())
    assert bench.redone() == set()
    assert len(manifest.read_text().splitlines()) == lines + len(bench.cases)


@pytest.mark.parametrize(
    ("key", "value", "redone"),
    [
        ("spacing", [1.0, 1.0, 2.0], True),
        ("normalization_schemes", ["NoNormalization"], True),
        ("patch_size", [16, 16, 16], False),
        ("batch_size", 7, False),
        ("mn", {"seed": 1}, False),
    ],
)
def test_plans_that_change_the_voxels_redo_all_cases(bench: Bench, key: str, value: Any, redone: bool) -> None:
    bench.run()
    bench.plans["configurations"]["3d_fullres"][key] = value
    assert bench.redone() == (set(bench.dataset.unlabeled) if redone else set())


def test_a_manifest_cut_short_by_a_kill_costs_the_last_case_only(bench: Bench) -> None:
    bench.run()
    manifest = bench.folder.with_name(f"{bench.folder.name}.0-of-1.jsonl")
    manifest.write_text(manifest.read_text()[:-40])
    assert bench.redone() == {bench.cases[-1].name}
    assert bench.redone() == set()


def test_staging_folders_of_killed_processes_are_removed(bench: Bench) -> None:
    left = [bench.folder.with_name(f"{bench.folder.name}.{part}.staging-abc") for part in ("0-of-1", "1-of-4")]
    for folder in left:
        folder.mkdir()
        (folder / "u.b2nd").touch()
    bench.run()
    assert not any(folder.exists() for folder in left)


def test_parts_share_the_work(bench: Bench) -> None:
    parts = [bench.run(num_parts=2, part_id=i).names for i in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(bench.dataset.unlabeled)
    assert bench.redone() == set()
    with pytest.raises(MNError, match="part 2 of 2"):
        bench.run(num_parts=2, part_id=2)


@pytest.mark.usefixtures("old_files")
def test_cases_that_other_jobs_finish_meanwhile_stay_as_they_are(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training preprocesses all cases. Two jobs of a divided preprocessing finish them after it has looked."""
    others: list[dict[str, int]] = []

    def after_the_others(job: Job, case: UnlabeledCase) -> Record:
        if not others:
            others.append({})  # those jobs come here, too
            for part_id in range(2):
                bench.run(num_parts=2, part_id=part_id)
            others[0] = bench.written()
        return prepare_case(job, case)

    monkeypatch.setattr("nnunet_mn.bridge.preprocessing.run.prepare_case", after_the_others)
    assert bench.run() == (bench.dataset.unlabeled, {})
    assert len(others[0]) == len(bench.cases)
    assert bench.written() == others[0]
    assert bench.redone() == set()


@pytest.mark.usefixtures("old_files")
def test_of_two_at_once_one_works_and_the_other_waits(bench: Bench) -> None:
    results: list[Preprocessed] = []
    with FileLock(bench.folder.with_name(f"{bench.folder.name}.0-of-1.lock")):
        threads = [threading.Thread(target=lambda: results.append(bench.run())) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(bench.messages) < 2:
            time.sleep(0.01)
        assert not bench.written()
    for thread in threads:
        thread.join()
    assert all("waiting" in message for message in bench.messages)
    assert results == [(bench.dataset.unlabeled, {})] * 2
    assert len(bench.folder.with_name(f"{bench.folder.name}.0-of-1.jsonl").read_text().splitlines()) == len(bench.cases)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A file system without locks, as `flock` shows it."""

    def flock(*_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("no_locks", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], indirect=True)
@pytest.mark.usefixtures("no_locks")
def test_without_locks_one_process_works_with_a_warning(bench: Bench) -> None:
    assert bench.run().names == bench.dataset.unlabeled
    assert "cannot be locked" in bench.messages[0]
    left = bench.folder.with_name(f"{bench.folder.name}.0-of-1.staging-abc")
    left.mkdir()
    (bench.folder / f"{bench.cases[0].name}.pkl").unlink()
    with pytest.raises(MNError, match=f"{left} says that another process .*delete this folder"):
        bench.run()
    assert left.exists()
    left.rmdir()
    assert bench.run().names == bench.dataset.unlabeled
    assert not list(bench.folder.parent.glob("*staging*"))


# ---- without raw data


def test_without_raw_data_complete_cases_are_taken_and_others_asked_for(bench: Bench) -> None:
    absent = [UnlabeledCase(case.name, (), "split") for case in bench.cases]
    with pytest.raises(MNError, match="nnunet-mn preprocess"):
        bench.run(absent)
    bench.run()
    assert bench.run(absent).names == bench.dataset.unlabeled
    bench.folder.with_name(f"{bench.folder.name}.0-of-1.jsonl").unlink()
    assert bench.run(absent).names == bench.dataset.unlabeled
    (bench.folder / f"{absent[0].name}.pkl").unlink()
    with pytest.raises(MNError, match=absent[0].name):
        bench.run(absent)


# ---- bad images


def nan(array: np.ndarray) -> np.ndarray:
    array[3, 4, 5] = np.nan
    return array


def infinite(array: np.ndarray) -> np.ndarray:
    array[3, 4, 5] = -np.inf
    return array


BAD: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "NaN": lambda a: [nan(a)],
    "infinite": lambda a: [infinite(a)],
    "one voxel along an axis": lambda a: [a[:1]],
    "2D": lambda a: [a[0]],
    "constant": lambda a: [np.full_like(a, 7)],
    "zero": lambda a: [np.zeros_like(a)],
    "two channels in one file": lambda a: [np.stack([a, a])],
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_a_bad_image_is_named_and_the_others_are_kept(bench: Bench, volume_tools: Any, make: Any) -> None:
    bad = bench.case("bad", *make(volume_tools.make(9)[0][0]))
    check_bad(bench, bad, "bad_0000.nii.gz")


def test_nan_in_any_channel_of_one_file_is_found() -> None:
    data = np.ones((2, 4, 4, 4))
    data[1, 0, 0, 0] = np.nan
    with pytest.raises(BadImageError, match=r"a\.nrrd has 1 voxels that are NaN or infinite"):
        images._check_voxels(data, {"spacing": (1, 1, 1)}, ["a.nrrd"], 2)


def test_many_bad_images_stop_the_run_and_it_says_so(
    bench: Bench, volume_tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_mn.bridge.preprocessing.run.MOST_BAD", 2)
    bad = [bench.case(f"bad_{i}", nan(volume_tools.make(9)[0][0])) for i in range(2)]
    with pytest.raises(MNError, match=r"^2 .*, the run stops there and keeps finished cases: .*bad_0.*bad_1"):
        bench.run([*bad, *bench.cases])
    assert not bench.written()
    with pytest.raises(MNError, match=r"^1 .*, the others are kept: .*bad_0"):
        bench.run([bad[0], *bench.cases])


CORRUPT: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "text": lambda file: file.write_text("<html>404</html>"),
    "missing": lambda file: file.unlink(),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "dangling link": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("spoil", CORRUPT.values(), ids=CORRUPT.keys())
def test_an_unreadable_image_is_named_and_the_others_are_kept(bench: Bench, volume_tools: Any, spoil: Any) -> None:
    bad = bench.case("bad", volume_tools.make(9)[0][0])
    spoil(bad.images[0])
    check_bad(bench, bad, "bad_0000.nii.gz")


@pytest.mark.parametrize(("spacing", "voxels"), [(1000.0, "24,000"), (0.001, "0")])
def test_spacing_of_another_unit_is_named(bench: Bench, volume_tools: Any, spacing: float, voxels: str) -> None:
    bad = bench.case("bad", volume_tools.make(9)[0][0])
    volume_tools.write(volume_tools.make(9)[0][0], bad.images[0], spacing=(spacing,) * 3)
    sentence = f"bad_0000.nii.gz: spacing {spacing:g} mm against 1 mm of the plans would make {voxels} voxels a side"
    check_bad(bench, bad, sentence)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 20.0), (0.2, 0.2, 0.2), (8.0, 8.0, 8.0)])
def test_odd_spacing_of_the_same_unit_is_taken(bench: Bench, volume_tools: Any, spacing: Any) -> None:
    case = bench.case("odd", volume_tools.make(9)[0][0])
    volume_tools.write(volume_tools.make(9)[0][0], case.images[0], spacing=spacing)
    assert bench.run([case]).names == ("odd",)


@pytest.mark.parametrize("value", [1e10, 1e20, 3e38])
def test_image_that_huge_voxels_flatten_is_named(bench: Bench, volume_tools: Any, value: float) -> None:
    array = volume_tools.make(9)[0][0]
    array[3, 4, 5:8] = value
    bad = bench.case("bad", array)
    reach = re.escape(f"{value:.3g}); clip huge ones")
    check_bad(bench, bad, rf"bad_0000.nii.gz h.* after normalization \(its voxels reach from .* to {reach}")


def test_sparse_image_is_taken(bench: Bench) -> None:
    array = np.full((40, 40, 40), 100, np.float32)
    array[20, 20, 18:21] = (500, 600, 700)
    assert bench.run([bench.case("sparse", array)]).names == ("sparse",)


def other_spacing(image: SimpleITK.Image) -> None:
    image.SetSpacing((1, 1, 3))


def other_direction(image: SimpleITK.Image) -> None:
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))


@pytest.mark.parametrize("change", ["shape", other_spacing, other_direction])
def test_channels_that_do_not_fit_are_named(
    planned_dataset: Callable[..., Any], tmp_path: Path, volume_tools: Any, change: Any
) -> None:
    bench = Bench(planned_dataset(channels=2), tmp_path)
    array = volume_tools.make(9)[0][0]
    bad = bench.case("bad", array, array[1:] if change == "shape" else array)
    if change != "shape":
        image = SimpleITK.ReadImage(str(bad.images[1]))
        change(image)
        SimpleITK.WriteImage(image, str(bad.images[1]))
    check_bad(bench, bad, "bad_0001.nii.gz")


def check_bad(bench: Bench, bad: UnlabeledCase, named: str) -> None:
    cases = [bench.cases[0], bad, bench.cases[1]]
    with pytest.raises(MNError, match=named) as caught:
        bench.run(cases)
    assert "--skip-bad" in str(caught.value)
    assert set(bench.written()) == {f"{bench.cases[0].name}.b2nd", f"{bench.cases[1].name}.b2nd"}
    done = bench.run(cases, skip_bad=True)
    assert done.names == (bench.cases[0].name, bench.cases[1].name)
    assert list(done.skipped) == ["bad"]
    assert any("bad" in message for message in bench.messages)


def not_utf_8(file: Path) -> Path:
    return file.rename(file.with_name(os.fsdecode(b"M\xfcller_0000.nii.gz")))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (not_utf_8, r"M\\xfcller_0000.nii.gz is not UTF-8"),
        (lambda file: (file.unlink(), file.symlink_to("/mnt/gone"), file)[2], "is a link to /mnt/gone, which does not"),
    ],
)
def test_image_that_cannot_be_opened_stays_out(bench: Bench, volume_tools: Any, spoil: Any, sentence: str) -> None:
    bad = bench.case("bad", volume_tools.make(9)[0][0])
    cases = [bench.cases[0], UnlabeledCase("bad", (spoil(bad.images[0]),), "imagesUn")]
    for _ in range(2):
        with pytest.raises(MNError, match=sentence) as caught:
            bench.run(cases)
        str(caught.value).encode()
    bench.run(cases, skip_bad=True)
    assert bench.run(cases).names == (bench.cases[0].name,)
    "".join(bench.messages).encode()


def test_image_on_a_failing_disk_is_named(bench: Bench, volume_tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> str:
        if file == bad.images[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))  # a failing read names no file
        return hash_file(file)

    bad = bench.case("bad", volume_tools.make(9)[0][0])
    monkeypatch.setattr("nnunet_mn.bridge.cases.manifest.hash_file", fail)
    check_bad(bench, bad, r"bad_0000.nii.gz cannot be read \(Input/output error\); restore it or remove the case")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_color_image_is_named(bench: Bench, ending: str) -> None:
    array = np.random.default_rng(0).integers(0, 255, (8, 9, 10, 3), dtype=np.uint8)
    bad = bench.case("bad", array, ending=ending)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=True), str(bad.images[0]))
    with pytest.raises(MNError, match=f"bad_0000{ending} has 3 values per voxel, as a color image"):
        bench.run([bad])


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_nifti_file_with_the_wrong_ending_is_read_as_stock_does(bench: Bench, ending: str) -> None:
    other = ".nii" if ending == ".nii.gz" else ".nii.gz"
    array = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    for name, values in (("good", array), ("bad", nan(array.copy()))):
        case = bench.case(name, values, ending=other)
        image = case.images[0].rename(bench.folder.with_name(f"{name}_0000{ending}"))
        with nullcontext() if name == "good" else pytest.raises(BadImageError, match="1 voxels that are NaN"):
            images.check_nifti(str(image))


def test_what_was_skipped_once_stays_out_until_its_image_changes(bench: Bench, volume_tools: Any) -> None:
    array = volume_tools.make(9)[0][0]
    cases = [bench.cases[0], bench.case("bad", nan(array.copy()))]
    bench.run(cases, skip_bad=True)
    assert bench.run(cases).names == (bench.cases[0].name,)
    bench.case("bad", array)
    assert bench.run(cases) == ((bench.cases[0].name, "bad")[::-1], {})


def test_a_case_that_turns_bad_leaves_no_old_voxels(bench: Bench, volume_tools: Any) -> None:
    array = volume_tools.make(9)[0][0]
    case = bench.case("u", array)
    bench.run([case])
    bench.case("u", nan(array))
    assert bench.run([case], skip_bad=True).names == ()
    assert not bench.written()
    assert list(bench.folder.iterdir()) == []  # nor the rest of the case


# ---- writing


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let every write beyond a size fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [100, 4_000, 30_000])
def test_when_writing_fails_what_is_finished_stays(bench: Bench, size: int) -> None:
    bench.run(bench.cases[:1])
    before = bench.written()
    with file_size_limit(size), pytest.raises(MNError, match="make room") as caught:
        bench.run()
    assert str(bench.folder.parent) in str(caught.value)
    assert bench.written() == before
    assert not list(bench.folder.parent.glob("*staging*"))
    assert bench.run().names == bench.dataset.unlabeled


# ---- processes


def test_several_processes_do_the_same_work_and_name_a_bad_image(bench: Bench, volume_tools: Any) -> None:
    bad = bench.case("bad", nan(volume_tools.make(9)[0][0]))
    with pytest.raises(MNError, match="bad_0000"):
        bench.run([bad, *bench.cases], num_processes=2)
    for name in bench.dataset.unlabeled:
        assert np.array_equal(bench.voxels(name), bench.voxels(name, bench.labeled_folder))


def test_a_killed_process_asks_for_fewer() -> None:
    with pytest.raises(MNError, match=r"one of 2 processes was killed.*; .* fewer of them, by a smaller -np$"):
        list(map_in_processes(signal.raise_signal, [signal.SIGKILL], processes=2, remedy="a smaller -np"))


def test_processes_that_do_not_start_are_no_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess._Popen", refuse)
    with pytest.raises(
        MNError, match=r"^worker processes do not start \(.*Broken pipe\); run again with one, by .* -np"
    ):
        bench.run(num_processes=2)
    assert bench.run(num_processes=1).names == bench.dataset.unlabeled


def test_processes_leave_an_interrupt_to_their_parent() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert list(map_in_processes(signal.getsignal, [signal.SIGINT], processes=2, remedy="")) == [signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) == before


def test_one_process_means_this_one() -> None:
    assert set(map_in_processes(lambda _: os.getpid(), range(3), processes=1, remedy="")) == {os.getpid()}


# ---- copies of validation cases


@pytest.mark.parametrize("manifest", [True, False])
def test_a_copy_of_a_validation_case_is_refused_by_name(bench: Bench, manifest: bool) -> None:
    val = bench.dataset.val
    bench.run()
    refuse_copies_of_val(bench.folder, bench.labeled_folder, val)
    image = bench.cases[0].images[0].with_name(f"{val[1]}_0000.nii.gz")
    bench.run([UnlabeledCase("innocent", (image,), "imagesUn")])
    if not manifest:
        bench.folder.with_name(f"{bench.folder.name}.0-of-1.jsonl").unlink()
    with pytest.raises(MNError, match=f"'innocent' .of '{val[1]}'"):
        refuse_copies_of_val(bench.folder, bench.labeled_folder, val)
    refuse_copies_of_val(bench.folder, bench.labeled_folder, val, unlabeled=bench.dataset.unlabeled)
    refuse_copies_of_val(bench.folder, bench.labeled_folder, bench.dataset.labeled)


def resized(image: SimpleITK.Image) -> SimpleITK.Image:
    image.SetSpacing((1.0, 1.2, 1.0))
    return image


NEAR_COPIES: dict[str, Callable[[SimpleITK.Image], SimpleITK.Image]] = {
    "flipped": lambda image: SimpleITK.Flip(image, [True, True, False]),
    "permuted axes": lambda image: SimpleITK.PermuteAxes(image, [2, 0, 1]),
    "zero-padded": lambda image: SimpleITK.ConstantPad(image, [3, 0, 2], [0, 5, 4]),
    "rescaled": lambda image: image * 100 + 7,
    "stretched": resized,
}


@pytest.mark.parametrize("change", NEAR_COPIES.values(), ids=NEAR_COPIES.keys())
def test_near_copy_of_a_validation_case_is_told(bench: Bench, change: Any) -> None:
    val = bench.dataset.val
    image = SimpleITK.ReadImage(str(bench.cases[0].images[0].with_name(f"{val[1]}_0000.nii.gz")))
    file = bench.folder.with_name("innocent_0000.nii.gz")
    SimpleITK.WriteImage(change(image), str(file))
    bench.run([*bench.cases, UnlabeledCase("innocent", (file,), "imagesUn")])
    try:
        (warning,) = refuse_copies_of_val(bench.folder, bench.labeled_folder, val)
    except MNError as error:
        warning = str(error)  # cropping and normalization made them equal
    assert f"'innocent' ('{val[1]}', correlation" in warning or f"'innocent' (of '{val[1]}')" in warning


def test_validation_case_with_one_other_voxel_is_told(bench: Bench) -> None:
    image = SimpleITK.ReadImage(str(bench.cases[0].images[0].with_name(f"{bench.dataset.val[0]}_0000.nii.gz")))
    image[5, 6, 7] = 0.0
    file = bench.folder.with_name("innocent_0000.nii.gz")
    SimpleITK.WriteImage(image, str(file))
    bench.run([*bench.cases, UnlabeledCase("innocent", (file,), "imagesUn")])
    for _ in range(2):  # the second time without thumbnails in the manifest, as of an older version
        (warning,) = refuse_copies_of_val(bench.folder, bench.labeled_folder, bench.dataset.val)
        assert f"1 unlabeled case(s) look like the scan of a validation case: 'innocent' ('{bench.dataset.val[0]}'" in (
            warning
        )
        bench.folder.with_name(f"{bench.folder.name}.0-of-1.jsonl").unlink(missing_ok=True)


def test_a_corrupt_preprocessed_case_is_named(bench: Bench, tmp_path: Path) -> None:
    bench.run()
    bench.folder.with_name(f"{bench.folder.name}.0-of-1.jsonl").unlink()
    os.truncate(bench.folder / f"{bench.cases[0].name}.b2nd", 50)
    with pytest.raises(MNError, match=bench.cases[0].name):
        refuse_copies_of_val(bench.folder, bench.labeled_folder, bench.dataset.val)
    shutil.copytree(bench.labeled_folder, tmp_path / "labeled")
    os.truncate(tmp_path / "labeled" / f"{bench.dataset.val[0]}.b2nd", 50)
    with pytest.raises(MNError, match=bench.dataset.val[0]):
        refuse_copies_of_val(
            bench.folder, tmp_path / "labeled", bench.dataset.val, unlabeled=bench.dataset.unlabeled[1:]
        )


@pytest.mark.parametrize("size", [0, 20])
def test_validation_case_with_damaged_properties_is_named_with_the_command(
    bench: Bench, tmp_path: Path, size: int
) -> None:
    bench.run()
    shutil.copytree(bench.labeled_folder, tmp_path / "labeled")
    os.truncate(tmp_path / "labeled" / f"{bench.dataset.val[0]}.pkl", size)
    with pytest.raises(
        MNError, match=f"'{bench.dataset.val[0]}' in .* cannot be read .*: delete .*nnUNetv2_preprocess"
    ):
        refuse_copies_of_val(bench.folder, tmp_path / "labeled", bench.dataset.val)


# ---- the manifest


@pytest.mark.usefixtures("old_files")
def test_plans_with_brackets_in_their_name_find_their_records(bench: Bench) -> None:
    bench.folder = bench.folder.with_name("pl[a]_3d_fullres_unlabeled")
    bench.plans["configurations"]["3d_fullres"]["data_identifier"] = "pl[a]_3d_fullres"
    bench.run()
    assert bench.redone() == set()


HEX = st.text("0123456789abcdef", min_size=1)
FILES = st.lists(st.builds(ImageFile, st.text(), st.integers(0), st.integers(), st.integers(), HEX), max_size=3)
RECORDS = st.builds(
    Record,
    name=st.sampled_from(["a", "b", "ü\n"]),
    source=st.just("split"),
    files=FILES.map(tuple),
    checked_ns=st.integers(0),
    settings=HEX,
    voxels=st.none() | st.builds(Voxels, st.lists(st.integers(1), min_size=4, max_size=4).map(tuple), HEX, HEX),
    skipped=st.none() | st.text(),
)


@given(records=st.lists(RECORDS, max_size=5), cut=st.integers(0, 200))
def test_the_latest_whole_record_of_each_case_is_read(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("manifest") / "x_unlabeled"
    file = folder.with_name("x_unlabeled.0-of-1.jsonl")
    for record in records:
        append(file, record)
    if records:
        last = len(records[-1].to_line().encode())
        os.truncate(file, file.stat().st_size - min(cut, last))  # a kill inside the last writing
    whole = records if cut < 2 else records[:-1]  # without its newline a record is still whole
    for again in (False, True):
        if again:
            extra = Record("z", "split", (), 0, "0")
            append(file, extra)
            assert Manifest.read(folder).get("z") == extra
        for name in {record.name for record in whole}:
            mine = [record for record in whole if record.name == name]
            assert Manifest.read(folder).get(name) == max(reversed(mine), key=lambda record: record.checked_ns)


@given(
    line=st.text()
    | st.sampled_from(["{}", "[]", "null", '{"name": 1, "checked_ns": 2}', '{"name": [], "checked_ns": 0}'])
)
def test_no_line_breaks_the_manifest(tmp_path_factory: pytest.TempPathFactory, line: str) -> None:
    folder = tmp_path_factory.mktemp("manifest") / "x_unlabeled"
    folder.with_name("x_unlabeled.0-of-1.jsonl").write_text(line + "\n", encoding="utf-8", errors="replace")
    assert Manifest.read(folder).get("a") is None
