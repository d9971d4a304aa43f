"""Self-training: a copy of the dataset with a labeled-only model's predictions as labels of the unlabeled cases."""

import json
from dataclasses import replace
from pathlib import Path

from evidence.methods import BASELINE, METHODS, Method
from evidence.runs import Run, note_settings
from evidence.training import predict, train
from evidence.workspace import Workspace, link, trainings_key

from nnunet_mn.bridge.files import write_whole


def pseudo_labeled(run: Run, space: Workspace, until: float) -> Workspace:
    """A copy of the dataset with the labeled-only model's predictions as the unlabeled cases' labels."""
    folder = space.folder / "self_training" / trainings_key(space.scale) / f"fold{run.fold}_seed{run.seed}"
    dataset = folder / "nnUNet_raw" / space.dataset.name
    teacher = run.other(_teacher(run.method))
    note_settings(folder, teacher.resolved(space.scale))  # its masks stay when its training is deleted
    train(teacher, space, lambda epoch: None, until)
    split, description = space.split(run.fold), space.description
    ending = description["file_ending"]
    space.link_images(split["train"] + split["val"] + split["unlabeled"], dataset / "imagesTr")
    space.link_images(split["unlabeled"], folder / "unlabeled")
    (dataset / "labelsTr").mkdir(exist_ok=True)
    for case in split["train"] + split["val"]:
        link(space.dataset / "labelsTr" / f"{case}{ending}", dataset / "labelsTr")
    predict(teacher, space, folder / "unlabeled", dataset / "labelsTr")
    _remove_extras(dataset / "labelsTr", ending)
    both = {"train": sorted(split["train"] + split["unlabeled"]), "val": split["val"]}
    splits = [both] * (run.fold + 1)  # nnU-Net is asked for the same fold
    write_whole(dataset / "splits_final.json", json.dumps(splits))
    total = sum(map(len, both.values()))
    write_whole(dataset / "dataset.json", json.dumps({**description, "numTraining": total}))
    copied = replace(space, dataset=dataset, folder=folder)
    copied.prepare()
    return copied


def _teacher(method: Method) -> str:
    """The labeled-only method with the same settings."""
    for other in METHODS.values():
        same = (other.trainer, other.settings) == (method.trainer, method.settings)
        if same and not (other.all_labels or other.teaches_itself):
            return other.name
    return BASELINE


def _remove_extras(labels: Path, ending: str) -> None:
    """Remove everything but segmentations from a folder of nnU-Net's predictions."""
    for file in labels.iterdir():
        if not file.name.endswith(ending):
            file.unlink()
