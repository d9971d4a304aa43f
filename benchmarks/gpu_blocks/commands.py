"""A training by nnU-Net's own commands: plan, train, SIGTERM, go on, predict. And the search for foreground in it."""

import json
import re
from contextlib import suppress
from pathlib import Path
from signal import Signals
from typing import Any

from gpu_blocks.findings import Findings
from gpu_blocks.site import Site
from nnunet_mn.bridge.registration import trainers_path
from nnunet_mn.bridge.stock_commands import epoch_begun, run_stock
from nnunet_mn.errors import MNError
from nnunet_mn.sandbox.dataset import DATASET_ID, write_dataset
from nnunet_mn.sandbox.small_plans import small_plans
from nnunet_mn.sandbox.workspace import CONFIGURATION, PLANS, Workspace

TRAINER = "nnUNetTrainerMN"
GO_ON = "run the same command with --c"


def commands(site: Site, findings: Findings) -> None:
    """The commands of a user, one after the other."""
    space = Workspace(site.work / "demo")
    space.prepare()
    environment = space.environment(seed=0, epochs=2, iterations=4 if site.tiny else 60, val_iterations=1)
    environment |= {
        "nnUNet_extTrainer": str(trainers_path()),
        "nnUNet_compile": "t" if site.on_card else "f",
        "nnUNet_n_proc_DA": "0" if site.tiny else "8",
        "nnUNet_def_n_proc": "1" if site.tiny else "4",
        "nnUNet_mn_supervised_fraction": "0.25",
    }
    seconds = _plan(site, space, environment | {"nnUNet_n_proc_DA": "1"})
    findings.note("planned", s=seconds)
    which = ("-tr", TRAINER, "-p", PLANS, "-device", site.device.type)
    train = ("nnUNetv2_train", str(DATASET_ID), CONFIGURATION, "0", *which)
    with findings.attempt("SIGTERM"):
        said = _stopped(train, environment, space.logs / "stopped.log")
        findings.note("SIGTERM", in_order=GO_ON in said, last=said.strip().splitlines()[-1])
    with findings.attempt("--c"):
        seconds = run_stock((*train, "--c"), environment=environment, log=space.logs / "go_on.log")
        findings.note("--c", s=seconds, **_said_by_log(space.model(TRAINER)))
    with findings.attempt("prediction"):
        out = space.predictions(TRAINER)
        images = ("-i", str(space.raw / "imagesTs"), "-o", str(out))
        helpers = "0" if site.tiny else "1"
        command = ("nnUNetv2_predict", "-d", str(DATASET_ID), "-c", CONFIGURATION, "-f", "0", *which, *images)
        command += ("-npp", helpers, "-nps", helpers)
        seconds = run_stock(command, environment=environment, log=space.logs / "predict.log")
        findings.note("prediction", s=seconds, cases=len(list(out.glob("*.nii.gz"))))


def _plan(site: Site, space: Workspace, environment: dict[str, str]) -> float:
    write_dataset(space.raw, space.test_labels, seed=0, n_unlabeled=2 if site.tiny else 12, n_test=1)
    command = ("nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", CONFIGURATION, "-np", "1", "-npfp", "1")
    seconds = run_stock(command, environment=environment, log=space.logs / "plan.log")
    stock = json.loads((space.preprocessed / "nnUNetPlans.json").read_text())
    sizes: dict[str, Any] = {"patch_size": (20, 48, 48), "batch_size": 4, "features": (32, 64, 128)}
    if site.tiny:
        sizes = {"patch_size": (8, 32, 32), "batch_size": 2, "features": (4, 8, 8)}
    (space.preprocessed / f"{PLANS}.json").write_text(json.dumps(small_plans(stock, name=PLANS, **sizes)))
    return seconds


def _stopped(command: tuple[str, ...], environment: dict[str, str], log: Path) -> str:
    """Send SIGTERM in the second epoch; what the command said."""
    with suppress(MNError):  # its exit code is not 0
        run_stock(
            command,
            environment=environment,
            log=log,
            on_line=lambda line: Signals.SIGTERM if epoch_begun(line) == 1 else None,
        )
    return log.read_text()


def _said_by_log(fold: Path) -> dict[str, Any]:
    log = "".join(file.read_text() for file in sorted(fold.glob("training_log_*.txt")))
    return {
        "losses": re.findall(r"train_loss (-?[\d.]+|nan)", log),
        "compiled": "Using torch.compile" in log,
        "foreground": re.findall(r"foreground in \d+ of \d+ unlabeled cases[^\n]*", log),
        "warnings": sorted(set(re.findall(r"WARNING: ([^\n]{0,120})", log))),
    }
