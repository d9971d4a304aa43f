"""Tiny raw nnU-Net datasets. nnU-Net itself plans and preprocesses them."""

import gc
import importlib.util
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes share the CPUs; torch reads this when it is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
import pytest
import SimpleITK

SHAPE = (24, 20, 22)  # z, y, x in voxels
LABELS: dict[str, dict[str, Any]] = {
    "classes": {"background": 0, "front": 1, "back": 2},
    "regions": {"background": 0, "whole": [1, 2], "back": 2},
    "ignore": {"background": 0, "front": 1, "back": 2, "ignore": 3},
}

# Commands start more quickly.
_quick_start = str(Path(__file__).with_name("quick_start"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_quick_start, os.environ.get("PYTHONPATH"))))

# nnU-Net draws a picture of 16 megapixels after each epoch. Here it is small. matplotlib reads this when imported.
os.environ["MATPLOTLIBRC"] = str(Path(__file__).with_name("matplotlibrc"))

# Older nnU-Net reads its three variables when it is imported. They are set here, before any test module is collected.
# Each data set gets its own number below the one root.
_ROOT = Path(tempfile.mkdtemp(prefix="nnunet-mn-tests-"))
RAW, PREPROCESSED, RESULTS = (_ROOT / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"))
for _folder in (RAW, PREPROCESSED, RESULTS):
    _folder.mkdir()
    os.environ[_folder.name] = str(_folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files: the two processes then end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what is imported by now stays; the garbage collector need not look at it again and again


def pytest_unconfigure() -> None:
    shutil.rmtree(_ROOT, ignore_errors=True)


@dataclass(frozen=True)
class TinyDataset:
    """A raw data set; `preprocessed` is filled once it is planned."""

    name: str
    number: int
    raw: Path
    preprocessed: Path
    labeled: tuple[str, ...]
    val: tuple[str, ...]
    unlabeled: tuple[str, ...]

    @property
    def dataset_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.raw / "dataset.json").read_text())
        return found

    @property
    def plans(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.preprocessed / "nnUNetPlans.json").read_text())
        return found


def make_volume(seed: int, *, shape: tuple[int, int, int] = SHAPE, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A noisy volume (C, Z, Y, X) with an ellipsoid of two halves in random pose, and its labels 0, 1, 2 (Z, Y, X)."""
    rng = np.random.default_rng(seed)
    center = np.array(shape) * rng.uniform(0.4, 0.6, 3)
    radii = np.array(shape) * rng.uniform(0.2, 0.35, 3)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    inside = (((grid - center) / radii) ** 2).sum(-1) < 1
    labels = (inside * np.where(grid[..., 0] < center[0], 1, 2)).astype(np.uint8)
    image = np.stack([100 * (c + 1) + 60.0 * labels + rng.normal(0, 10, shape) for c in range(channels)])
    return image.astype(np.float32), labels


def write_volume(array: np.ndarray, path: Path, *, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
    """Write an array (Z, Y, X) with a spacing in mm, x first as in ITK."""
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def write_case(name: str, images: Path, labels: Path | None, *, seed: int, channels: int, ending: str) -> None:
    image, label = make_volume(seed, channels=channels)
    for c in range(channels):
        write_volume(image[c], images / f"{name}_{c:04d}{ending}")
    if labels is not None:
        write_volume(label, labels / f"{name}{ending}")


class _DatasetMaker:
    """Makes data sets under numbers of their own."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(
        self,
        *,
        n_labeled: int = 3,
        n_val: int = 2,
        n_unlabeled: int = 3,
        channels: int = 1,
        normalized: bool = True,
        layout: Literal["split", "imagesUn", "imagesTs"] = "split",
        labels: Literal["classes", "regions", "ignore"] = "classes",
        split_file: bool = True,
        ending: str = ".nii.gz",
    ) -> TinyDataset:
        """Write images, labels, dataset.json and (unless told otherwise) a split of one fold.

        Args:
            n_labeled, n_val, n_unlabeled: cases of each kind; labeled and val lie in imagesTr.
            channels: image files per case.
            normalized: nnU-Net z-scores them; else they stay as they are (`noNorm`).
            layout: folder of the unlabeled images. "split": in imagesTr, with labels, and listed in splits_final.json.
            labels: the form of the label dictionary.
            split_file: whether to write splits_final.json.
            ending: of every image file.
        """
        self.count += 1
        number, name = 100 + self.count, f"Dataset{100 + self.count}_Tiny"
        raw = RAW / name
        for folder in ("imagesTr", "labelsTr", "imagesUn", "imagesTs"):
            (raw / folder).mkdir(parents=True)
        kinds = {"labeled": n_labeled, "val": n_val, "unlabeled": n_unlabeled}
        names = {kind: tuple(f"{kind}_{i:02d}" for i in range(n)) for kind, n in kinds.items()}
        inside = [*names["labeled"], *names["val"], *(names["unlabeled"] if layout == "split" else ())]
        for seed, case in enumerate(sum(names.values(), ())):
            folder, label_folder = (raw / "imagesTr", raw / "labelsTr") if case in inside else (raw / layout, None)
            write_case(case, folder, label_folder, seed=seed, channels=channels, ending=ending)
        for folder in ("imagesUn", "imagesTs"):
            if not any((raw / folder).iterdir()):
                (raw / folder).rmdir()
        modalities = {str(c): f"MR{c}" if normalized else "noNorm" for c in range(channels)}
        self._write_json(raw, modalities, labels, ending, len(inside))
        if split_file:
            entry = {"train": names["labeled"], "val": names["val"]}
            entry |= {"unlabeled": names["unlabeled"]} if layout == "split" else {}
            (raw / "splits_final.json").write_text(json.dumps([entry]))
        preprocessed = PREPROCESSED / name
        return TinyDataset(name, number, raw, preprocessed, **names)

    @staticmethod
    def _write_json(raw: Path, modalities: dict[str, str], labels: str, ending: str, n_training: int) -> None:
        content: dict[str, Any] = {
            "channel_names": modalities,
            "labels": LABELS[labels],
            "numTraining": n_training,
            "file_ending": ending,
        }
        if labels == "regions":
            content["regions_class_order"] = [1, 2]
        (raw / "dataset.json").write_text(json.dumps(content))


def plan_and_preprocess(dataset: TinyDataset, *, max_features: int = 8) -> TinyDataset:
    """Run nnU-Net's own planning and preprocessing of `3d_fullres`, in threads: processes take seconds to start.

    Args:
        dataset: a raw one.
        max_features: cap on the features of every stage of the planned network, to keep tests fast.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    class FewVoxels(DatasetFingerprintExtractor):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.num_foreground_voxels_for_intensitystats = 1e4  # stock draws 1e8, whatever the size of the images

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # nnU-Net imports distutils
        patch.setattr(multiprocessing, "get_context", lambda *_: SimpleNamespace(Pool=ThreadPool))
        patch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
        extract_fingerprint_dataset(dataset.number, FewVoxels, num_processes=1)
        plan_experiment_dataset(dataset.number)
        _cap_features(dataset.preprocessed / "nnUNetPlans.json", max_features)
        preprocess_dataset(dataset.number, configurations=("3d_fullres",), num_processes=(2,))
    return dataset


def _cap_features(plans_file: Path, most: int) -> None:
    plans = json.loads(plans_file.read_text())
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = [min(f, most) for f in kwargs["features_per_stage"]]
    plans_file.write_text(json.dumps(plans))


@pytest.fixture(scope="session")
def tiny_dataset() -> Callable[..., TinyDataset]:
    """Makes a new raw data set by the options of `_DatasetMaker.__call__`. The test may change it."""
    return _DatasetMaker()


@pytest.fixture(scope="session")
def fresh_planned_dataset(
    tiny_dataset: Callable[..., TinyDataset], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TinyDataset]:
    """Makes a new planned and preprocessed data set by the same options. The test may change it."""
    planned: dict[tuple[tuple[str, Any], ...], tuple[str, Path]] = {}

    def make(**options: Any) -> TinyDataset:
        key, dataset = tuple(sorted(options.items())), tiny_dataset(**options)
        if key in planned:  # nnU-Net would write the same files again but for the name
            name, kept = planned[key]
            shutil.copytree(kept, dataset.preprocessed, copy_function=shutil.copy)
            plans = dataset.preprocessed / "nnUNetPlans.json"
            plans.write_text(plans.read_text().replace(name, dataset.name))
        else:
            planned[key] = dataset.name, tmp_path_factory.mktemp("planned") / dataset.name
            shutil.copytree(plan_and_preprocess(dataset).preprocessed, planned[key][1])
        return dataset

    return make


@pytest.fixture(scope="session")
def planned_dataset(fresh_planned_dataset: Callable[..., TinyDataset]) -> Callable[..., TinyDataset]:
    """Returns a planned data set by the same options. Tests share it and must not change it."""
    made: dict[tuple[tuple[str, Any], ...], TinyDataset] = {}

    def get(**options: Any) -> TinyDataset:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = fresh_planned_dataset(**options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def volume_tools() -> SimpleNamespace:
    """`make(seed, shape, channels)`, `write(array, path, spacing)` and `read(path)` of images."""

    def read(path: Path) -> np.ndarray:
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))

    return SimpleNamespace(make=make_volume, write=write_volume, read=read)


def load_helper(name: str) -> ModuleType:
    """Import a helper module of this folder. The folder is not on Python's path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def train() -> Iterator[Any]:
    """Runs `nnUNetv2_train` on a site, another command or Python files: exit code and output."""
    helper = load_helper("training_site")
    server = helper.Server({**os.environ, "nnUNet_extTrainer": str(helper.trainers_path())})
    yield server
    server.close()


@pytest.fixture(scope="session")
def copy_site() -> Any:
    """Copies a planned dataset to a folder: `copy_site(dataset, root)`."""
    return load_helper("training_site").copy_of


@pytest.fixture
def site_of(planned_dataset: Callable[..., TinyDataset], tmp_path: Path) -> Callable[..., Any]:
    """Copies a planned dataset by the same options. The test may change the copy."""
    copies = itertools.count()

    def make(**options: Any) -> Any:
        return load_helper("training_site").copy_of(
            planned_dataset(**options), tmp_path / f"site_{next(copies)}" / "root"
        )

    return make


@pytest.fixture(scope="session")
def report_content() -> ModuleType:
    """Generated results for the report's page: `case(name)` and `content(cases)`."""
    return load_helper("report_content")
