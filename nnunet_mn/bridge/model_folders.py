"""The folders of a training in nnUNet_results, and the JSON files of a model."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_mn.bridge.files import read_object
from nnunet_mn.errors import MNError

MN_TRAINER, STUDENT_TRAINER, JOINT_TRAINER = "nnUNetTrainerMN", "nnUNetTrainerMNStudent", "nnUNetTrainerMNJoint"
BASELINE_TRAINER = "nnUNetTrainerMNLabeledOnly"
STOCK_TRAINER = "nnUNetTrainer"
# nnU-Net's checkpoints of a fold, the newest first. With `--c` it goes on from the first one that is there.
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
FINAL, LATEST = CHECKPOINTS[:2]
PUT_BACK = "put back the file that the training wrote"


@dataclass(frozen=True, kw_only=True)
class ModelFolders:
    """The folders of a training and of its joint model.

    Args:
        dataset: nnUNet_results/DATASET.
        trainer, plans, configuration: their names.
    """

    dataset: Path
    trainer: str
    plans: str
    configuration: str

    @classmethod
    def of(cls, folder: Path) -> "ModelFolders":
        """Those of a training by its own folder. Raises an MNError if it is none."""
        folder = Path(os.path.abspath(folder))  # a link keeps its name
        parts = folder.name.split("__")
        if not folder.is_dir() or len(parts) != 3 or not folder.parent.name.startswith("Dataset"):
            raise MNError(f"{folder} is no model folder; give nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION")
        return cls(dataset=folder.parent, trainer=parts[0], plans=parts[1], configuration=parts[2])

    @property
    def trained(self) -> Path:
        """The folder of the training."""
        return self.dataset / f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def joint(self) -> Path:
        """The folder of the joint model, beside it."""
        return self.dataset / f"{JOINT_TRAINER}__{self.plans}__{self.configuration}"

    def others_with(self, part: str) -> str:
        """Words for a message: trainings of two networks under other names that hold this part, such as `fold_0`."""
        of_one = (JOINT_TRAINER, STUDENT_TRAINER, BASELINE_TRAINER)
        folders = (f for f in self.dataset.glob(f"{MN_TRAINER}*__*__*") if f.name.split("__")[0] not in of_one)
        names = sorted(folder.name for folder in folders if (folder / part).exists())
        return f" (it is there in {', '.join(names)})" if names else ""

    def finished(self, fold: str) -> Path:
        """The final checkpoint of a fold. Raises an MNError when its training has not ended."""
        file = self.trained / f"fold_{fold}" / FINAL
        if file.is_file():
            return file
        begun = " --c" if file.parent.is_dir() else ""
        raise MNError(
            f"fold {fold} has no finished training: there is no {file}{self.others_with(f'fold_{fold}/{FINAL}')}; "
            f"run 'nnUNetv2_train {self.dataset.name} "
            f"{self.configuration} {fold} -tr {self.trainer} -p {self.plans}{begun}' to its end"
        )


def read_json(file: Path, *needed: str) -> dict[str, Any]:
    """The content of a model's file. Raises an MNError when it is no object with these keys."""
    return read_object(file, *needed, remedy=PUT_BACK)
