"""The joint model: a folder in nnUNet_results from which stock nnU-Net predicts with both networks."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from nnunet_mn.bridge.files import why_no_lock
from nnunet_mn.bridge.model_folders import FINAL, JOINT_TRAINER, STOCK_TRAINER, ModelFolders, read_json
from nnunet_mn.bridge.reading import mn_part, read_by_environment
from nnunet_mn.bridge.staging import save_tensors, staging_beside, take_place
from nnunet_mn.bridge.training import joint_model, teacher_model
from nnunet_mn.bridge.training.joint_plans import trainer_of
from nnunet_mn.errors import MNError

_OF_MODEL = ("dataset.json", "dataset_fingerprint.json")
_KEPT = ("init_args", "inference_allowed_mirroring_axes", "logging", "_best_ema", "current_epoch")


def join(
    folders: ModelFolders, folds: Sequence[str], *, weight_2d: float = 0.5, force: bool = False, keep: bool = False
) -> Path:
    """Write the joint model of trained folds, whole or not at all.

    Args:
        folders: of an M&N training. Or of its student: the 2D network is then its teacher's.
        folds: their names, such as `0` or `all`.
        weight_2d: of the 2D network's probabilities in the mean, between 0 and 1.
        force: replace an existing joint model, with its validation.
        keep: add the folds to those of an existing joint model, or replace these folds in it. Two trainings may do so
            at once.

    Returns:
        Its folder.

    Raises:
        MNError: when a training is not finished or its 2D network cannot be built here; when the folds have different
            2D networks or trainers; when there is a joint model already.
    """
    if not 0 < weight_2d < 1:
        raise MNError(f"--weight-2d is {weight_2d}, but must lie between 0 and 1, both excluded: give 0.5 for the mean")
    files = [folders.finished(fold) for fold in dict.fromkeys(folds)]
    lock = folders.joint.with_name(f".{folders.joint.name}.lock")
    replace = force or keep
    with (
        FileLock(lock) if keep and why_no_lock(lock) is None else nullcontext(),
        _staged(folders.joint, replace=replace) as staging,
    ):
        if folders.joint.exists() and not replace:
            raise FileExistsError(str(folders.joint))
        for name in _OF_MODEL:
            if (folders.trained / name).is_file():
                shutil.copyfile(folders.trained / name, staging / name)
        for file in files:
            _join_fold(file, staging, folders, weight_2d=weight_2d)
        if keep and folders.joint.exists():
            _keep_other_folds(folders, staging)
    return folders.joint


def _keep_other_folds(folders: ModelFolders, staging: Path) -> None:
    """Bring the other folds of a joint model into the new one. Trainer and plans must be the same."""
    there, new = (read_json(folder / "plans.json", "configurations") for folder in (folders.joint, staging))
    before, now = (trainer_of(plans, folders.configuration) for plans in (there, new))
    if before != now:
        raise MNError(
            f"{folders.joint} holds folds of {before}, but this one is of {now}; replace them by 'nnunet-mn join "
            f"--force' with all folds that it is to hold"
        )
    if there != new:
        raise MNError(
            f"{folders.joint} holds folds with another 2D network or weight; replace them by 'nnunet-mn join --force' "
            f"with all folds that it is to hold"
        )
    for fold in folders.joint.glob("fold_*"):
        if not (staging / fold.name).exists():
            shutil.copytree(fold, staging / fold.name)


def _join_fold(file: Path, staging: Path, folders: ModelFolders, *, weight_2d: float) -> None:
    checkpoint = read_by_environment(file)
    if "teacher_hash" in mn_part(checkpoint, file):
        model = teacher_model.joined_with_student(file, checkpoint, folders, weight_2d=weight_2d)
    else:
        joint_model.check_has_2d_network(checkpoint, file)
        model = joint_model.joint_model(file, checkpoint, folders.configuration, weight_2d=weight_2d)
    _write_plans(model.plans.plans, staging, file)
    fold = staging / file.parent.name
    fold.mkdir()
    save_tensors(_checkpoint(checkpoint, model.plans.plans, model.network.state_dict()), fold / FINAL)
    if (file.parent / "progress.png").is_file():  # nnU-Net's export insists on it
        shutil.copyfile(file.parent / "progress.png", fold / "progress.png")


def _write_plans(plans: dict[str, Any], staging: Path, file: Path) -> None:
    """Write the plans of the first fold. Those of the others must equal them."""
    written, text = staging / "plans.json", json.dumps(plans, indent=4)
    if written.exists() and written.read_text(encoding="utf-8") != text:
        raise MNError(
            f"{file} has another 2D network than the first fold (its settings or its trainer differ); join only folds "
            f"with the same 2D network"
        )
    written.write_text(text, encoding="utf-8")


def _checkpoint(source: Mapping[str, Any], plans: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint for stock prediction and validation."""
    kept = {key: source[key] for key in _KEPT if key in source}
    return {
        **kept,
        "trained_on": source["mn"].get("trained_on", []),
        "init_args": {**source["init_args"], "plans": plans},
        "network_weights": weights,
        "trainer_name": STOCK_TRAINER,  # it builds what the plans name
        "optimizer_state": None,
        "grad_scaler_state": None,
    }


@contextmanager
def _staged(target: Path, *, replace: bool) -> Iterator[Path]:
    """A folder beside the target. It takes the target's place at the end, unless something was raised."""
    try:
        with staging_beside(target) as staging:
            yield staging
            take_place(staging, target, replace=replace)  # another process may have finished meanwhile
    except FileExistsError as error:
        raise MNError(
            f"{target} exists; give --force to replace it, and -f with all folds that it is to hold"
        ) from error
    except OSError as error:
        raise MNError(f"{target} cannot be written ({error}); free some space, or look at its rights") from error


def joined_plans(plans: Mapping[str, Any], folders: ModelFolders, fold: int | str) -> dict[str, Any]:
    """The plans of a training, but with the architecture of its joint model.

    Raises:
        MNError: when there is no joint model of this fold.
    """
    if not (folders.joint / f"fold_{fold}" / FINAL).is_file():
        raise MNError(
            f"{JOINT_TRAINER} trains nothing, and {folders.joint} holds no fold_{fold} to validate; run "
            f"'nnunet-mn join -d {folders.dataset.name} -c {folders.configuration} -f {fold} -p {folders.plans}'"
        )
    return {**plans, "configurations": read_json(folders.joint / "plans.json", "configurations")["configurations"]}
