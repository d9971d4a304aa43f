"""Run the main flow (register, plan, train, be stopped, resume, predict) against several versions of nnunetv2.

Each version is laid over this environment without its dependencies, in a folder that PYTHONPATH puts first.
Usage: python versions.py SCRATCH_FOLDER VERSION ...
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.stock_commands import run_stock
from nnunet_mn.sandbox.dataset import DATASET_ID, write_dataset
from nnunet_mn.sandbox.small_plans import small_plans
from nnunet_mn.sandbox.workspace import CONFIGURATION, PLANS, Workspace

EPOCHS = 3
TRAINER = "nnUNetTrainerMN"
WHICH = ("-tr", TRAINER, "-p", PLANS, "-device", "cpu")
TRAIN = ("nnUNetv2_train", str(DATASET_ID), CONFIGURATION, "0", *WHICH)


def main() -> None:
    scratch, *versions = sys.argv[1:]
    for version in versions:
        overlay = Path(scratch, version, "site")
        install = ["pip", "install", "--quiet", "--no-deps", "--target", str(overlay), f"nnunetv2=={version}"]
        subprocess.run([sys.executable, "-m", *install], check=True)
        check_version(version, overlay, Workspace(Path(scratch, version, "work")))
        print(f"nnunetv2 {version}: register, plan, train, stop, resume, predict, unregister work", flush=True)


def check_version(version: str, overlay: Path, space: Workspace) -> None:
    space.out.mkdir(parents=True)
    space.prepare()
    settings = space.environment(seed=0, epochs=EPOCHS, iterations=2, val_iterations=1)
    environment = {**settings, "PYTHONPATH": str(overlay), "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    environment["COLUMNS"] = "1000"  # the doctor's lines whole
    environment.pop("nnUNet_extTrainer", None)

    def run(*command: str) -> str:
        log = space.logs / f"{len(list(space.logs.iterdir()))}.log"
        run_stock(command, environment=environment, log=log)
        return log.read_text(encoding="utf-8")

    registered = run("nnunet-mn", "register")
    expect(str(overlay) in registered, f"registered outside of the overlay: {registered}")
    write_dataset(space.raw, space.test_labels, seed=0, n_unlabeled=4, n_test=1)
    run("nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", CONFIGURATION, "-np", "1", "-npfp", "1")
    run("nnUNetv2_plan_experiment", "-d", str(DATASET_ID), "-pl", "MNPlanner")
    expect((space.preprocessed / "nnUNetMNPlans.json").exists(), "MNPlanner wrote no plans")
    stock = json.loads((space.preprocessed / "nnUNetPlans.json").read_bytes())
    plans = small_plans(stock, name=PLANS, patch_size=(16, 32, 32), batch_size=2, features=(4, 8, 8))
    write_whole(space.preprocessed / f"{PLANS}.json", json.dumps(plans))
    space.results.mkdir(parents=True)
    page = run("nnunet-mn", "doctor", "-d", str(DATASET_ID), "-p", PLANS)
    expect(f"nnunetv2 {version} in {overlay}" in page, f"the doctor sees another version:\n{page}")
    stop_in_epoch(1, environment, space.logs / "stopped.log")
    run(*TRAIN, "--c")
    log = "".join(file.read_text() for file in sorted(space.model(TRAINER).glob("training_log_*.txt")))
    epochs = [int(epoch) for epoch in re.findall(r"Epoch (\d+)\s*$", log, re.MULTILINE)]
    expect(sorted(set(epochs)) == list(range(EPOCHS)) and epochs.count(0) == 1, f"epochs trained: {epochs}")
    predicted = space.predictions(TRAINER)
    run(
        "nnUNetv2_predict", "-d", str(DATASET_ID), "-c", CONFIGURATION, "-f", "0", *WHICH, "-npp", "1", "-nps", "1",
        "-i", str(space.raw / "imagesTs"), "-o", str(predicted), "--disable_tta",
    )  # fmt: skip
    expect(len(list(predicted.glob("test_*"))) == 1, "nothing was predicted")
    expect("removed" in run("nnunet-mn", "unregister"), "nothing was unregistered")


def stop_in_epoch(epoch: int, environment: dict[str, str], log: Path) -> None:
    """Start the training and send it SIGTERM once this epoch has begun."""
    script = Path(sys.executable).with_name(TRAIN[0])
    with (
        log.open("w") as file,
        subprocess.Popen(
            [str(script), *TRAIN[1:]],
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as child,
    ):
        for line in child.stdout or ():
            file.write(line)
            if re.search(rf"Epoch {epoch}\s*$", line):
                os.kill(child.pid, signal.SIGTERM)
    expect("with --c to go on" in log.read_text(), f"training did not stop in order:\n{log.read_text()[-2000:]}")


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(message)


if __name__ == "__main__":
    main()
