"""Kill trainings at random instants and check the files that they leave.

Usage: python benchmarks/kills.py [--kills N] [--seed S] [--dataset ID]

Every training runs in a process of its own, by the functions behind `nnUNetv2_train`. It is killed with SIGKILL: every
second time while it writes a checkpoint, else at a random instant of its start or its epochs. The same command with
--c goes on until the training ends. Then the next one begins, until there were enough kills. After every kill each
checkpoint must be whole and at most `checkpoint_every` epochs may be lost. Each finished training must equal, to the
bit, one without a kill.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVERY, EPOCHS = 2, 6
os.environ |= {
    "OMP_NUM_THREADS": "1",  # before torch is imported: its threads would not survive the fork
    "nnUNet_mn_backbone": "efficientnet-lite0",
    "nnUNet_mn_adaptation": "frozen",
    "nnUNet_mn_seed": "3",
    "nnUNet_mn_epochs": str(EPOCHS),
    "nnUNet_mn_iterations_per_epoch": "1",
    "nnUNet_mn_val_iterations_per_epoch": "1",
    "nnUNet_mn_checkpoint_every": str(EVERY),
}
NAMES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
SCRATCH = Path(tempfile.mkdtemp(prefix="kills-"))
for _name in NAMES:
    os.environ.setdefault(_name, str(SCRATCH / _name))  # nnU-Net may read them when it is imported
RAW, PREPROCESSED = (Path(os.environ[name]) for name in NAMES[:2])

import torch  # noqa: E402
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint  # noqa: E402
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name  # noqa: E402

from nnunet_mn.bridge.reading import read  # noqa: E402
from nnunet_mn.bridge.registration import trainers_path  # noqa: E402
from nnunet_mn.bridge.stock_commands import run_stock  # noqa: E402
from nnunet_mn.config import environment_layer, resolve  # noqa: E402
from nnunet_mn.networks import build_network_2d  # noqa: E402
from nnunet_mn.sandbox.dataset import DATASET_ID, write_dataset  # noqa: E402
from nnunet_mn.sandbox.small_plans import small_plans  # noqa: E402
from nnunet_mn.sandbox.workspace import CONFIGURATION, PLANS  # noqa: E402

LONGEST = 300  # seconds of one training process; a longer one is stuck


@dataclass
class Figures:
    """All counts."""

    kills: int = 0
    in_writing: int = 0
    before_a_checkpoint: int = 0
    trainings: int = 0
    epochs_lost: list[int] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Training:
    """The files of one training."""

    dataset: int
    plans: str
    results: Path

    @property
    def fold(self) -> Path:
        """The folder of its checkpoints."""
        return next(iter(self.results.glob("*/*/fold_0")), self.results / "nothing-yet")

    def log(self) -> Path:
        """The output of its last process."""
        return self.results.with_suffix(".log")


def train(training: Training, *, go_on: bool) -> None:
    """One process of a training, as `nnUNetv2_train` runs it, without the final validation."""
    os.environ |= {
        "nnUNet_results": str(training.results),
        "nnUNet_n_proc_DA": "0",
    }
    torch.set_num_threads(1)
    trainer = get_trainer_from_args(
        str(training.dataset), CONFIGURATION, 0, "nnUNetTrainerMN", training.plans, go_on, torch.device("cpu")
    )
    maybe_load_checkpoint(trainer, go_on, False)
    trainer.logger.plot_progress_png = lambda folder: None  # plots would take four fifths of epochs this short
    type(trainer).on_epoch_end.__globals__["plot_progress"] = lambda *_: None
    trainer.run_training()


def start(training: Training, *, go_on: bool) -> int:
    """Fork a process that trains; a fork saves the seconds of the imports."""
    process = os.fork()
    if process:
        return process
    with training.log().open("w", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            train(training, go_on=go_on)
        except BaseException:
            traceback.print_exc()
            log.flush()
            sys.stdout.flush()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)


def wait(process: int, until: Callable[[], bool]) -> int | None:
    """Wait for a condition; the exit status of a process that ended before, else None."""
    deadline = time.monotonic() + LONGEST
    while not until():
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        expect(time.monotonic() < deadline, "a training is stuck")
        time.sleep(0.0005)
    return None


def kill_once(training: Training, rng: random.Random, figures: Figures, *, duration: float) -> bool:
    """Start or continue a training and kill it; False: it ended first."""
    go_on = training.fold.is_dir()
    whole_before = epochs_in_checkpoint(training)
    begun, in_writing = time.monotonic(), rng.random() < 0.5
    process = start(training, go_on=go_on)
    if in_writing:  # of a later checkpoint too, not always of the first
        skip, delay = rng.randrange(3), rng.uniform(0, 0.02)
        status = wait(process, seen_writing(training, skip))
        time.sleep(delay)
    else:
        instant = rng.uniform(0, duration)
        status = wait(process, lambda: time.monotonic() - begun > instant)
    if status is not None:
        expect(status == 0, f"a training failed:\n{training.log().read_text()[-3000:]}")
        return False
    left = list(training.fold.glob("*.tmp"))
    os.kill(process, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != -signal.SIGKILL:
        return False  # it ended in this instant
    figures.kills += 1
    figures.in_writing += bool(left)
    look(training, figures, whole_before)
    return True


def seen_writing(training: Training, skip: int) -> Callable[[], bool]:
    """A condition: a checkpoint is being written, after `skip` others."""
    seen: list[bool] = [False]
    left = [skip]

    def now() -> bool:
        writing = any(training.fold.glob("*.tmp"))
        if seen[-1] and not writing:
            left[0] -= 1
        seen[-1] = writing
        return writing and left[0] <= 0

    return now


def look(training: Training, figures: Figures, whole_before: int) -> None:
    """Check the files after a kill."""
    whole = epochs_in_checkpoint(training)
    expect(whole >= whole_before, f"a checkpoint was lost: {whole_before} epochs, then {whole}")
    figures.before_a_checkpoint += whole == 0
    text = training.log().read_text()
    begun = [int(epoch) for epoch in re.findall(r"Epoch (\d+)\s*$", text, re.MULTILINE)]
    if begun:
        expect(begun[0] == whole_before, f"it went on with epoch {begun[0]}, not {whole_before}")
        lost = begun[-1] + 1 - whole if whole < EPOCHS else 0
        expect(lost <= EVERY, f"{lost} epochs must be repeated: checkpoint {whole}, epoch {begun[-1]}")
        figures.epochs_lost.append(lost)
    leftovers = [file.name for file in training.fold.glob("*") if file.name.endswith(".tmp")]
    expect(len(leftovers) <= 1, f"temporary files pile up: {leftovers}")


def epochs_in_checkpoint(training: Training) -> int:
    """The number of epochs that --c would not repeat; every checkpoint must be whole."""
    epochs = {}
    for file in training.fold.glob("checkpoint_*.pth"):
        stored = read(file)
        expect({"network_weights", "mn", "current_epoch"} <= set(stored), f"{file} is not whole")
        epochs[file.stem] = int(stored["current_epoch"])
    for name in ("checkpoint_final", "checkpoint_latest", "checkpoint_best"):  # in the order of --c
        if name in epochs:
            return epochs[name]
    return 0


def compare(training: Training, undisturbed: Training) -> None:
    """The final and the best checkpoints of two trainings must be equal to the bit, timestamps aside."""
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        one, other = (read(t.fold / name) for t in (training, undisturbed))
        for stored in (one, other):
            stored["logging"] = {k: v for k, v in stored["logging"].items() if "timestamps" not in k}
            del stored["init_args"]
        different = [key for key in one if not same(one[key], other[key])]
        expect(not different, f"{name} differs from that of a training without kills in {different}")
    left = [file.name for file in training.fold.iterdir() if file.name.endswith(".tmp")]
    expect(not left, f"{left} were left behind")


def same(one: Any, other: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other) or (one != one and other != other)


def forget_preprocessing(preprocessed: Path) -> None:
    """Have the next training preprocess the unlabeled cases again."""
    for found in preprocessed.glob("*_unlabeled*"):
        shutil.rmtree(found) if found.is_dir() else found.unlink()


def expect(condition: bool, message: str) -> None:
    """End with a message unless the condition holds."""
    if not condition:
        raise SystemExit(message)


def make_dataset() -> tuple[int, str]:
    """Write, plan and preprocess a few small volumes."""
    raw = RAW / f"Dataset{DATASET_ID:03d}_Demo"
    write_dataset(raw, SCRATCH / "test_labels", seed=0, n_unlabeled=3, n_test=1)
    command = ["nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", CONFIGURATION, "-np", "1", "-npfp", "1"]
    run_stock(command, environment=dict(os.environ), log=SCRATCH / "plan.log")
    folder = PREPROCESSED / raw.name
    stock = json.loads((folder / "nnUNetPlans.json").read_bytes())
    plans = small_plans(stock, name=PLANS, patch_size=(16, 16, 16), batch_size=2, features=(4, 8, 8))
    (folder / f"{PLANS}.json").write_text(json.dumps(plans))
    return DATASET_ID, PLANS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset", type=int, help="a planned dataset to train on (default: a generated one)")
    parser.add_argument("--plans", default="nnUNetPlans", help="the name of its plans")
    arguments = parser.parse_args()
    try:
        dataset, plans = (arguments.dataset, arguments.plans) if arguments.dataset else make_dataset()
        figures = run(dataset, plans, kills=arguments.kills, rng=random.Random(arguments.seed))
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    print(f"kills                                    {figures.kills}")
    print(f"  while a checkpoint was being written   {figures.in_writing}")
    print(f"  before there was a checkpoint          {figures.before_a_checkpoint}")
    print(f"trainings that ended                     {figures.trainings}, all equal to the bit")
    print(f"epochs repeated after a kill             at most {max(figures.epochs_lost)} (checkpoint_every {EVERY})")
    print(f"a training that is not killed            {figures.seconds:.1f} s")


def run(dataset: int, plans: str, *, kills: int, rng: random.Random) -> Figures:
    """Kill trainings until there were enough kills and all trainings have ended."""
    figures = Figures()
    os.environ |= {"nnUNet_extTrainer": str(trainers_path())}
    recursive_find_trainer_class_by_name("nnUNetTrainerMN")  # this and the next line import for all forks
    build_network_2d(resolve(environment_layer()), in_channels=1, num_classes=2)
    undisturbed = Training(dataset, plans, SCRATCH / "undisturbed")
    begun = time.monotonic()
    status = wait(start(undisturbed, go_on=False), lambda: False)
    figures.seconds = time.monotonic() - begun
    expect(status == 0, f"the first training failed:\n{undisturbed.log().read_text()[-3000:]}")
    preprocessed = next(PREPROCESSED.glob(f"Dataset{dataset:03d}_*"))
    while figures.kills < kills:
        training = Training(dataset, plans, SCRATCH / f"training_{figures.trainings}")
        forget_preprocessing(preprocessed)
        while figures.kills < kills and kill_once(training, rng, figures, duration=figures.seconds):
            pass
        status = wait(start(training, go_on=training.fold.is_dir()), lambda: False)
        expect(status == 0, f"a training failed:\n{training.log().read_text()[-3000:]}")
        compare(training, undisturbed)
        expect(not list(preprocessed.glob("*.staging-*")), "staging folders of the preprocessing pile up")
        figures.trainings += 1
        print(f"# {figures.kills} kills of {figures.trainings} trainings so far", flush=True)
        shutil.rmtree(training.results)
    return figures


if __name__ == "__main__":
    main()
