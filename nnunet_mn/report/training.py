"""What a training left: its settings, its log, and how far it has come."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_mn.bridge.prediction.fold import TrainedFold
from nnunet_mn.bridge.training.owner import NAME as LOCK

STOCK_ITERATIONS = 250  # an epoch, if no setting says otherwise


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training as its newest checkpoint shows it.

    Args:
        state: in words.
        epochs, planned_epochs: done, and in all.
        cases: numbers of labeled, unlabeled and validation cases.
        settings, versions: as recorded.
        batch_size: samples of a batch.
        skipped: updates that were skipped, of the 3D and of the 2D network.
        seconds: of each epoch.
        log: nnU-Net's and M&N's lists, one value an epoch.
    """

    state: str
    epochs: int
    planned_epochs: int
    cases: Mapping[str, int]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    batch_size: int
    skipped: tuple[int, int]
    seconds: tuple[float, ...]
    log: Mapping[str, Sequence[Any]]


def training_of(found: TrainedFold) -> Training:
    """What the newest checkpoint of a fold says about its training."""
    mn, log = found.checkpoint["mn"], found.checkpoint["logging"]
    epochs = len(log["train_losses"])
    in_settings = mn["schedule"]["total"] / (mn["config"]["iterations_per_epoch"] or STOCK_ITERATIONS)
    planned = mn.get("epochs", round(in_settings))  # checkpoints of 0.1 hold no number of epochs
    return Training(
        state=_state(found, epochs=epochs, planned=planned),
        epochs=epochs,
        planned_epochs=planned,
        cases=dict(mn["cases"]),
        settings=dict(mn["config"]),
        versions=dict(mn["versions"]),
        batch_size=mn["batch_size"],
        skipped=(mn["skipped"][0], mn["skipped"][1]),
        seconds=_seconds(log),
        log={key: [_plain(value) for value in values] for key, values in log.items()},
    )


def _state(found: TrainedFold, *, epochs: int, planned: int) -> str:
    is_owned = (found.folder / LOCK).exists()
    if not found.is_finished:
        how = "running, or was killed" if is_owned else "stopped"
        return f"{how}; the newest checkpoint is of epoch {epochs} of {planned}"
    if not (found.folder / "validation" / "summary.json").is_file():
        how = "is running, or was killed: wait for it, or" if is_owned else "is missing:"
        return f"finished, but nnU-Net's validation {how} run nnUNetv2_train with --val"
    return "finished and validated"


def _seconds(log: Mapping[str, Sequence[Any]]) -> tuple[float, ...]:
    both = zip(log.get("epoch_start_timestamps", ()), log.get("epoch_end_timestamps", ()), strict=False)
    return tuple(float(end) - float(start) for start, end in both)


def _plain(value: Any) -> Any:
    """Plain numbers, for JSON."""
    return [float(one) for one in value] if isinstance(value, (list, tuple)) else float(value)
