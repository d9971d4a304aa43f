"""Run the main flow (register, plan, train, be stopped, resume, predict) against several versions of nnunetv2.

Each version is laid over this environment without its dependencies, in a folder at the front of PYTHONPATH. The oldest
and the newest run the whole flow. Those between train a few updates on what the oldest preprocessed, as after an update
of nnU-Net. Two run at once. A version is registered and first trained by processes of their own. Its other commands are
forks of one process, which saves the seconds that their imports take.
Usage: python versions.py SCRATCH_FOLDER OLDEST ... NEWEST
"""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from signal import Signals

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.stock_commands import epoch_begun, run_stock
from nnunet_mn.errors import MNError
from nnunet_mn.sandbox.dataset import DATASET_ID, write_dataset
from nnunet_mn.sandbox.small_plans import small_plans
from nnunet_mn.sandbox.workspace import CONFIGURATION, PLANS, Workspace

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
from training_site import Server  # noqa: E402

QUICK_START = TESTS / "quick_start"
EPOCHS = 3
TRAINER = "nnUNetTrainerMN"
WHICH = ("-tr", TRAINER, "-p", PLANS, "-device", "cpu")
DATASET = str(DATASET_ID)
TRAIN = ("nnUNetv2_train", DATASET, CONFIGURATION, "0", *WHICH)


def main() -> None:
    scratch, *versions = sys.argv[1:]
    flows = [Flow(version, Path(scratch, version)) for version in versions]
    oldest, *between, newest = flows
    with ThreadPoolExecutor(2) as pool:
        compiled = pool.submit(compile_what_is_imported, newest.environment)
        for flow in flows:
            flow.install_and_register()
        compiled.result()
        whole = [pool.submit(flow.whole) for flow in (oldest, newest)]
        updated = [pool.submit(flow.updated, oldest.space, whole[0]) for flow in between]
        for line in (*whole, *updated):
            print(line.result(), flush=True)


def compile_what_is_imported(environment: dict[str, str]) -> None:
    """Import once what all versions share. In a fresh environment both flows would compile the same files at once."""
    Server({**environment, "PYTHONPATH": str(QUICK_START)}).close()


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
        settings["MATPLOTLIBRC"] = str(TESTS / "matplotlibrc")  # nnU-Net's picture of 16 megapixels small
        settings.pop("nnUNet_extTrainer", None)
        self.environment = settings

    def whole(self) -> str:
        """All that a user does. Return a line about it."""
        server = Server(self.environment)
        self.plan(server)
        self.doctor(server)
        self.stop_and_resume(server)
        self.predict(server)
        server.close()
        self.unregister()
        return f"nnunetv2 {self.version}: register, plan, doctor, train, stop, resume, predict, unregister work"

    def updated(self, planned: Workspace, ended: Future[str]) -> str:
        """Train on what another version preprocessed, be stopped. Return a line about it."""
        ended.result()
        for its, own in ((planned.raw, self.space.raw), (planned.preprocessed, self.space.preprocessed)):
            shutil.copytree(its, own)
        self.stop_in_second_epoch()
        return f"nnunetv2 {self.version}: register, train, stop work"

    def run(self, *command: str) -> str:
        """Run a command in a process of its own, and return its output."""
        log = self.log()
        run_stock(command, environment=self.environment, log=log)
        return log.read_text(encoding="utf-8")

    def fork(self, server: Server, *command: str) -> str:
        """Run a command in a fork, and return its output."""
        code, output = server.command(command, self.environment, self.log())
        expect(code == 0, f"{' '.join(command)} failed:\n{output[-2000:]}")
        return output

    def log(self) -> Path:
        """The file for the output of the next command."""
        return self.space.logs / f"{len(list(self.space.logs.iterdir()))}.log"

    def install_and_register(self) -> None:
        """Lay the version over this environment, and register the plug-in in it."""
        install = ["pip", "install", "--quiet", "--no-deps", "--target", str(self.overlay)]
        subprocess.run([sys.executable, "-m", *install, f"nnunetv2=={self.version}"], check=True)
        registered = self.run("nnunet-mn", "register")
        expect(str(self.overlay) in registered, f"registered outside of the overlay: {registered}")
        self.space.results.mkdir(parents=True)

    def plan(self, server: Server) -> None:
        """Plan with both planners, and derive plans for a small network."""
        space = self.space
        write_dataset(space.raw, space.test_labels, seed=0, n_unlabeled=4, n_test=1)
        self.fork(server, "nnUNetv2_plan_and_preprocess", "-d", DATASET, "-c", CONFIGURATION, "-np", "1", "-npfp", "1")
        self.fork(server, "nnUNetv2_plan_experiment", "-d", DATASET, "-pl", "MNPlanner")
        expect((space.preprocessed / "nnUNetMNPlans.json").exists(), "MNPlanner wrote no plans")
        stock = json.loads((space.preprocessed / "nnUNetPlans.json").read_bytes())
        plans = small_plans(stock, name=PLANS, patch_size=(16, 32, 32), batch_size=2, features=(4, 8, 8))
        write_whole(space.preprocessed / f"{PLANS}.json", json.dumps(plans))

    def doctor(self, server: Server) -> None:
        """Check the version on the doctor's page."""
        page = self.fork(server, "nnunet-mn", "doctor", "-d", DATASET, "-p", PLANS)
        expect(f"nnunetv2 {self.version} in {self.overlay}" in page, f"the doctor sees another version:\n{page}")

    def stop_and_resume(self, server: Server) -> None:
        """Stop a training in its second epoch and resume it to the end."""
        self.stop_in_second_epoch()
        self.fork(server, *TRAIN, "--c")
        log = "".join(file.read_text() for file in sorted(self.space.model(TRAINER).glob("training_log_*.txt")))
        epochs = [int(epoch) for epoch in re.findall(r"Epoch (\d+)\s*$", log, re.MULTILINE)]
        expect(sorted(set(epochs)) == list(range(EPOCHS)) and epochs.count(0) == 1, f"epochs trained: {epochs}")

    def stop_in_second_epoch(self) -> None:
        """Start the training and send it SIGTERM once its second epoch has begun."""
        log = self.log()
        with suppress(MNError):  # its exit code is not 0
            run_stock(
                TRAIN,
                environment=self.environment,
                log=log,
                on_line=lambda line: Signals.SIGTERM if epoch_begun(line) == 1 else None,
            )
        said = log.read_text(encoding="utf-8")
        expect("with --c to go on" in said, f"training did not stop in order:\n{said[-2000:]}")

    def predict(self, server: Server) -> None:
        """Predict with the stock command."""
        predicted = self.space.predictions(TRAINER)
        which = ("-d", DATASET, "-c", CONFIGURATION, "-f", "0", *WHICH)
        fast = ("--disable_tta", "-npp", "0", "-nps", "0")  # helpers would take longer to start than to work
        folders = ("-i", str(self.space.raw / "imagesTs"), "-o", str(predicted))
        self.fork(server, "nnUNetv2_predict", *which, *folders, *fast)
        expect(len(list(predicted.glob("test_*"))) == 1, "nothing was predicted")

    def unregister(self) -> None:
        """Remove the registered files."""
        expect("removed" in self.run("nnunet-mn", "unregister"), "nothing was unregistered")


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(message)


if __name__ == "__main__":
    main()
