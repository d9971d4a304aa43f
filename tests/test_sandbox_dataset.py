import json

import numpy as np
import pytest
import SimpleITK

from nnunet_mn.sandbox.dataset import N_LABELED, labeled_names, read_volume, write_dataset
from nnunet_mn.sandbox.phantoms import LABELS
from nnunet_mn.sandbox.volumes import SHAPE, SPACING


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    write_dataset(root / "raw", root / "test_labels", seed=1, n_unlabeled=3, n_test=2)
    return root / "raw", root / "test_labels"


def _stems(folder, ending):
    return sorted(file.name.removesuffix(ending) for file in folder.iterdir())


def test_every_training_image_has_a_label_and_no_other_image_has_one(folders):
    raw, test_labels = folders
    assert _stems(raw / "labelsTr", ".nii.gz") == _stems(raw / "imagesTr", "_0000.nii.gz") == labeled_names()
    assert _stems(test_labels, ".nii.gz") == _stems(raw / "imagesTs", "_0000.nii.gz")
    assert len(_stems(raw / "imagesUn", "_0000.nii.gz")) == 3
    assert {path.name for path in raw.iterdir()} == {"imagesTr", "labelsTr", "imagesUn", "imagesTs", "dataset.json"}


def test_all_volumes_differ(folders):
    raw, _ = folders
    files = [*raw.glob("images*/*.nii.gz")]
    assert len({read_volume(file).tobytes() for file in files}) == len(files) == N_LABELED + 3 + 2


def test_files_keep_shape_and_spacing(folders):
    raw, _ = folders
    image = SimpleITK.ReadImage(str(raw / "imagesUn" / "unlabeled_00_0000.nii.gz"))
    assert image.GetSize() == SHAPE[::-1]
    assert image.GetSpacing() == pytest.approx(SPACING[::-1])


def test_dataset_json_counts_labeled_cases_alone(folders):
    raw, _ = folders
    content = json.loads((raw / "dataset.json").read_text())
    assert content["numTraining"] == N_LABELED
    assert content["labels"] == LABELS


def test_case_depends_on_the_seed_but_not_on_the_number_of_cases(folders, tmp_path):
    raw, test_labels = folders
    write_dataset(tmp_path / "same", tmp_path / "a", seed=1, n_unlabeled=1, n_test=1)
    write_dataset(tmp_path / "other", tmp_path / "b", seed=2, n_unlabeled=1, n_test=1)
    name = "imagesUn/unlabeled_00_0000.nii.gz"
    assert np.array_equal(read_volume(raw / name), read_volume(tmp_path / "same" / name))
    assert not np.array_equal(read_volume(raw / name), read_volume(tmp_path / "other" / name))
    label = "test_00.nii.gz"
    assert np.array_equal(read_volume(test_labels / label), read_volume(tmp_path / "a" / label))
