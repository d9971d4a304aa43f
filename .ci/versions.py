"""Run the main flow (register, plan, train, be stopped, resume, predict) against several versions of nnunetv2.

Each version is laid over this environment without its dependencies, in a folder at the front of PYTHONPATH. The oldest
and the newest run the whole flow; those between plan and train one update. Two run at once.
Usage: python versions.py SCRATCH_FOLDER OLDEST ... NEWEST
"""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.stock_commands import run_stock
from nnunet_mn.sandbox.dataset import DATASET_ID, write_dataset
from nnunet_mn.sandbox.small_plans import small_plans
from nnunet_mn.sandbox.workspace import CONFIGURATION, PLANS, Workspace

EPOCHS = 3
QUICK_START = Path(__file__).parents[1] / "tests" / "quick_start"
TRAINER = "nnUNetTrainerMN"
WHICH = ("-tr", TRAINER, "-p", PLANS, "-device", "cpu")
DATASET = str(DATASET_ID)
TRAIN = ("nnUNetv2_train", DATASET, CONFIGURATION, "0", *WHICH)


def main() -> None:
    scratch, *versions = sys.argv[1:]
    oldest, *between, newest = versions
    flows = [(oldest, True), (newest, True), *((version, False) for version in between)]  # the long ones first
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(lambda flow: check_version(flow[0], Path(scratch, flow[0]), whole=flow[1]), flows):
            print(line, flush=True)


def check_version(version: str, folder: Path, *, whole: bool) -> str:
    """Install a version and run its flow. Return a line about it.

    Args:
        version: of nnU-Net.
        folder: for the version and its data.
        whole: run the whole flow, not one update alone.
    """
    overlay = folder / "site"
    install = ["pip", "install", "--quiet", "--no-deps", "--target", str(overlay), f"nnunetv2=={version}"]
    subprocess.run([sys.executable, "-m", *install], check=True)
    flow = Flow(Workspace(folder / "work"), overlay)
    flow.plan()
    if whole:
        flow.doctor(version)
        flow.stop_and_resume()
        flow.predict()
        flow.unregister()
        return f"nnunetv2 {version}: register, plan, doctor, train, stop, resume, predict, unregister work"
    flow.train_once()
    return f"nnunetv2 {version}: register, plan, train one update work"


class Flow:
    """The commands on a generated dataset with one version of nnU-Net.

    Args:
        space: folders.
        overlay: folder of the installed version.
    """

    def __init__(self, space: Workspace, overlay: Path) -> None:
        self.space, self.overlay = space, overlay
        space.out.mkdir(parents=True)
        space.prepare()
        settings = space.environment(seed=0, epochs=EPOCHS, iterations=2, val_iterations=1)
        path = os.pathsep.join((str(overlay), str(QUICK_START)))
        settings |= {"PYTHONPATH": path, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
        settings["OMP_NUM_THREADS"] = "1"  # two versions at once
        settings["COLUMNS"] = "1000"  # the doctor's lines whole
        settings.pop("nnUNet_extTrainer", None)
        self.environment = settings

    def run(self, *command: str, **settings: str) -> str:
        """Run a command and return its output."""
        log = self.space.logs / f"{len(list(self.space.logs.iterdir()))}.log"
        run_stock(command, environment={**self.environment, **settings}, log=log)
        return log.read_text(encoding="utf-8")

    def plan(self) -> None:
        """Register the plug-in, plan with both planners and derive plans for a small network."""
        space = self.space
        registered = self.run("nnunet-mn", "register")
        expect(str(self.overlay) in registered, f"registered outside of the overlay: {registered}")
        write_dataset(space.raw, space.test_labels, seed=0, n_unlabeled=4, n_test=1)
        self.run("nnUNetv2_plan_and_preprocess", "-d", DATASET, "-c", CONFIGURATION, "-np", "1", "-npfp", "1")
        self.run("nnUNetv2_plan_experiment", "-d", DATASET, "-pl", "MNPlanner")
        expect((space.preprocessed / "nnUNetMNPlans.json").exists(), "MNPlanner wrote no plans")
        stock = json.loads((space.preprocessed / "nnUNetPlans.json").read_bytes())
        plans = small_plans(stock, name=PLANS, patch_size=(16, 32, 32), batch_size=2, features=(4, 8, 8))
        write_whole(space.preprocessed / f"{PLANS}.json", json.dumps(plans))
        space.results.mkdir(parents=True)

    def doctor(self, version: str) -> None:
        """Check the version on the doctor's page."""
        page = self.run("nnunet-mn", "doctor", "-d", DATASET, "-p", PLANS)
        expect(f"nnunetv2 {version} in {self.overlay}" in page, f"the doctor sees another version:\n{page}")

    def train_once(self) -> None:
        """Train one update."""
        self.run(*TRAIN, nnUNet_mn_epochs="1", nnUNet_mn_iterations_per_epoch="1")

    def stop_and_resume(self) -> None:
        """Stop a training in its second epoch and resume it to the end."""
        stop_in_epoch(1, self.environment, self.space.logs / "stopped.log")
        self.run(*TRAIN, "--c")
        log = "".join(file.read_text() for file in sorted(self.space.model(TRAINER).glob("training_log_*.txt")))
        epochs = [int(epoch) for epoch in re.findall(r"Epoch (\d+)\s*$", log, re.MULTILINE)]
        expect(sorted(set(epochs)) == list(range(EPOCHS)) and epochs.count(0) == 1, f"epochs trained: {epochs}")

    def predict(self) -> None:
        """Predict with the stock command."""
        predicted = self.space.predictions(TRAINER)
        which = ("-d", DATASET, "-c", CONFIGURATION, "-f", "0", *WHICH, "-npp", "1", "-nps", "1", "--disable_tta")
        self.run("nnUNetv2_predict", *which, "-i", str(self.space.raw / "imagesTs"), "-o", str(predicted))
        expect(len(list(predicted.glob("test_*"))) == 1, "nothing was predicted")

    def unregister(self) -> None:
        """Remove the registered files."""
        expect("removed" in self.run("nnunet-mn", "unregister"), "nothing was unregistered")


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
