"""Run the main flow (register, plan, train, be stopped, resume, predict) against several versions of nnunetv2.

Each version is laid over this environment without its dependencies, in a folder at the front of PYTHONPATH. The oldest
and the newest run the whole flow. Those between train one update on what the oldest preprocessed, as after an update of
nnU-Net. Two run at once.
Usage: python versions.py SCRATCH_FOLDER OLDEST ... NEWEST
"""

import json
import os
import re
import shutil
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
    oldest, *between, newest = (Flow(version, Path(scratch, version)) for version in versions)
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(Flow.whole, (oldest, newest)):
            print(line, flush=True)
        for line in pool.map(lambda flow: flow.one_update(oldest.space), between):
            print(line, flush=True)


class Flow:
    """The commands on a generated dataset with one version of nnU-Net.

    Args:
        version: of nnU-Net.
        folder: for the version and its data.
    """

    def __init__(self, version: str, folder: Path) -> None:
        self.version, self.overlay, self.space = version, folder / "site", Workspace(folder / "work")
        self.space.out.mkdir(parents=True)
        self.space.prepare()
        settings = self.space.environment(seed=0, epochs=EPOCHS, iterations=2, val_iterations=1)
        path = os.pathsep.join((str(self.overlay), str(QUICK_START)))
        settings |= {"PYTHONPATH": path, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
        settings["OMP_NUM_THREADS"] = "1"  # two versions at once
        settings["COLUMNS"] = "1000"  # the doctor's lines whole
        settings.pop("nnUNet_extTrainer", None)
        self.environment = settings

    def whole(self) -> str:
        """All that a user does. Return a line about it."""
        self.install_and_register()
        self.plan()
        self.doctor()
        self.stop_and_resume()
        self.predict()
        self.unregister()
        return f"nnunetv2 {self.version}: register, plan, doctor, train, stop, resume, predict, unregister work"

    def one_update(self, planned: Workspace) -> str:
        """Train one update on what another version has planned and preprocessed. Return a line about it."""
        self.install_and_register()
        for its, own in ((planned.raw, self.space.raw), (planned.preprocessed, self.space.preprocessed)):
            shutil.copytree(its, own)
        self.run(*TRAIN, nnUNet_mn_epochs="1", nnUNet_mn_iterations_per_epoch="1")
        return f"nnunetv2 {self.version}: register, train one update work"

    def run(self, *command: str, **settings: str) -> str:
        """Run a command and return its output."""
        log = self.space.logs / f"{len(list(self.space.logs.iterdir()))}.log"
        run_stock(command, environment={**self.environment, **settings}, log=log)
        return log.read_text(encoding="utf-8")

    def install_and_register(self) -> None:
        """Lay the version over this environment, and register the plug-in in it."""
        install = ["pip", "install", "--quiet", "--no-deps", "--target", str(self.overlay)]
        subprocess.run([sys.executable, "-m", *install, f"nnunetv2=={self.version}"], check=True)
        registered = self.run("nnunet-mn", "register")
        expect(str(self.overlay) in registered, f"registered outside of the overlay: {registered}")
        self.space.results.mkdir(parents=True)

    def plan(self) -> None:
        """Plan with both planners, and derive plans for a small network."""
        space = self.space
        write_dataset(space.raw, space.test_labels, seed=0, n_unlabeled=4, n_test=1)
        self.run("nnUNetv2_plan_and_preprocess", "-d", DATASET, "-c", CONFIGURATION, "-np", "1", "-npfp", "1")
        self.run("nnUNetv2_plan_experiment", "-d", DATASET, "-pl", "MNPlanner")
        expect((space.preprocessed / "nnUNetMNPlans.json").exists(), "MNPlanner wrote no plans")
        stock = json.loads((space.preprocessed / "nnUNetPlans.json").read_bytes())
        plans = small_plans(stock, name=PLANS, patch_size=(16, 32, 32), batch_size=2, features=(4, 8, 8))
        write_whole(space.preprocessed / f"{PLANS}.json", json.dumps(plans))

    def doctor(self) -> None:
        """Check the version on the doctor's page."""
        page = self.run("nnunet-mn", "doctor", "-d", DATASET, "-p", PLANS)
        expect(f"nnunetv2 {self.version} in {self.overlay}" in page, f"the doctor sees another version:\n{page}")

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
        which = ("-d", DATASET, "-c", CONFIGURATION, "-f", "0", *WHICH)
        fast = ("--disable_tta", "-npp", "0", "-nps", "0")  # helpers would take longer to start than to work
        self.run("nnUNetv2_predict", *which, *fast, "-i", str(self.space.raw / "imagesTs"), "-o", str(predicted))
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
