"""The doctor's checks of the environment: nnU-Net and its look-up of the plug-in, folders, weights, machine."""

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from nnunet_mn import __version__
from nnunet_mn.bridge import registration
from nnunet_mn.bridge.cases.dataset import FOLDERS
from nnunet_mn.bridge.doctor.page import Row, examine
from nnunet_mn.bridge.versions import check_nnunet_version, supported_range
from nnunet_mn.config import MNConfig, environment_layer, resolve
from nnunet_mn.device import cpu_count
from nnunet_mn.errors import MNError
from nnunet_mn.memory import GIB


def check_environment() -> Iterator[Row]:
    """Rows about everything outside of a dataset and its plans."""
    checks = {
        "nnU-Net": check_nnunet,
        "look-up": check_look_up,
        "folders": check_folders,
        "settings": check_settings,
        "CPUs": check_cpus,
        "GPU": check_gpu,
    }
    for topic, check in checks.items():
        yield from examine(topic, check)


def check_nnunet() -> list[Row]:
    """The version and the folder of nnunetv2; it must be supported."""
    package = registration.nnunet_package()
    found = f"nnunetv2 {check_nnunet_version()} in {package} (supported: {supported_range()})"
    return [Row("good", "nnU-Net", found), Row("good", "plug-in", f"nnunet-mn {__version__}")]


def check_look_up() -> list[Row]:
    """Whether nnU-Net's own commands find trainers and planners, and whether the registered files are up to date."""
    package = registration.nnunet_package()
    registered = registration.registered_files(package)
    rows = []
    for hook in registration.HOOKS:
        file = package / hook.file
        if file in registered and file.read_text(encoding="utf-8") != registration.hook_source(hook):
            rows.append(Row("note", "look-up", f"{file} is of another version; run 'nnunet-mn register'"))
    found = _find_trainer(registration.TRAINERS[0])
    trainers, planners = (package / hook.file in registered for hook in registration.HOOKS)
    rows.append(Row("good", "look-up", f"-tr {found} is found ({'registered' if trainers else 'nnUNet_extTrainer'})"))
    return [*rows, _planner_row(registration.PLANNERS[0], registered=planners)]


def _planner_row(name: str, *, registered: bool) -> Row:
    if not registered:  # nnU-Net looks for planners in its own package alone
        return Row("note", "look-up", f"-pl {name} is not found; only planning needs it; run 'nnunet-mn register'")
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _look_up_planner(name)
    except (ImportError, ValueError, TypeError, OSError) as error:
        raise MNError(f"the planners do not load ({error!r}); reinstall nnunet-mn in this environment") from error
    return Row("good", "look-up", f"-pl {found.__name__} is found")


def _look_up_planner(name: str) -> type:
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = registration.nnunet_package() / "experiment_planning"
    found: type = recursive_find_python_class(str(folder), name, "nnunetv2.experiment_planning")
    return found


def _find_trainer(name: str) -> str:
    """Ask nnU-Net for a trainer as the commands of its version do.

    Raises:
        MNError: when it does not find it, or the plug-in does not load.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nnU-Net's imports: no finding
            found = _look_up(name)
    except (ImportError, ValueError, TypeError, OSError) as error:
        raise MNError(f"the plug-in does not load ({error!r}); reinstall nnunet-mn in this environment") from error
    except RuntimeError as error:
        raise MNError(f"nnU-Net does not find -tr {name}; run 'nnunet-mn register' in this environment") from error
    if found is None:
        raise MNError(f"nnU-Net does not find -tr {name}; run 'nnunet-mn register' in this environment")
    return str(found.__name__)


def _look_up(name: str) -> type | None:
    from nnunetv2.run import run_training
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    if hasattr(run_training, "recursive_find_trainer_class_by_name"):  # nnunetv2 >= 2.8
        trainer: type | None = run_training.recursive_find_trainer_class_by_name(name)
        return trainer

    folder = registration.nnunet_package() / "training" / "nnUNetTrainer"
    found: type | None = recursive_find_python_class(str(folder), name, "nnunetv2.training.nnUNetTrainer")
    return found


def check_folders() -> list[Row]:
    """Whether nnU-Net's three folders exist and, if need be, can be written to."""
    return [row for variable in FOLDERS for row in examine(variable, functools.partial(_check_folder, variable))]


def _check_folder(variable: str) -> list[Row]:
    value, needed = os.environ.get(variable), variable != "nnUNet_raw"
    if not value:
        # a training node may do without raw data
        missing = f"is not set; run 'export {variable}=...'" + ("" if needed else " where data are planned")
        return [Row("bad" if needed else "note", variable, missing)]
    if not Path(value).is_dir():
        is_there = Path(value).exists()
        finding = f"{value} {'is not a folder; ' if is_there else 'does not exist; make it or '}correct the variable"
        return [Row("bad" if needed else "note", variable, finding)]
    return check_rights(variable, Path(value), write=needed) or [Row("good", variable, value)]


def check_rights(topic: str, folder: Path, *, write: bool = True) -> list[Row]:
    """Whether a folder, if it is there, can be read and, if need be, written to. There is only a bad row."""
    for rights, verb in ((os.R_OK | os.X_OK, "read"), (os.W_OK if write else os.F_OK, "written to")):
        if folder.is_dir() and not os.access(folder, rights):
            return [Row("bad", topic, f"{folder} cannot be {verb}; change its permissions or the variable")]
    return []


def check_results(dataset: str) -> list[Row]:
    """Whether a training can write to a dataset's folder in nnUNet_results, if it is there. There is only a bad row."""
    variable = FOLDERS[-1]
    root = os.environ.get(variable)
    return check_rights(variable, Path(root, dataset)) if root else []


def check_settings() -> list[Row]:
    """Whether the settings in the environment are valid."""
    layer = environment_layer()
    resolve(layer)
    stated = ", ".join(f"{name}={value}" for name, value in sorted(layer.values.items()))
    return [Row("good", "settings", stated or "defaults (no nnUNet_mn_... is set)")]


def check_weights(config: MNConfig) -> list[Row]:
    """Whether the 2D network's weights are on this machine, the network runs with them, and their license."""
    from nnunet_mn.networks.inventory import can_be_fetched, try_out, weights_are_here
    from nnunet_mn.networks.registry import license_of

    backbone = config.backbone
    if weights_are_here(backbone):
        network, _ = try_out(config)
        found = f"{backbone} is on this machine and runs (license: {network.backbone.facts.license})"
        return [Row("good", "2D weights", found)]
    missing = f"{backbone} is not on this machine"
    if not can_be_fetched(backbone):
        fix = "name an existing file or folder, a Hugging Face id, or one that 'nnunet-mn weights list' shows as here"
        return [Row("bad", "2D weights", f"{missing} and cannot be downloaded; {fix}")]
    fix = f"for a node without internet run 'nnunet-mn weights fetch {backbone}' on a machine with internet"
    return [Row("note", "2D weights", f"{missing} (license: {license_of(backbone)}): training will download it; {fix}")]


def check_cpus() -> list[Row]:
    """Whether the loader's workers fit the CPUs of this process."""
    from nnunet_mn.bridge.training.workers import worker_count

    workers = worker_count()
    cpus = cpu_count()
    found = f"loader workers: {workers}, on {cpus} CPUs that this process may use"
    if workers > cpus:
        return [Row("note", "CPUs", f"{found}; lower nnUNet_n_proc_DA or ask for more CPUs")]
    return [Row("good", "CPUs", found)]


def check_gpu() -> list[Row]:
    """The GPUs and their free memory."""
    import torch

    if not torch.cuda.is_available():
        return [Row("note", "GPU", "none that torch can use here: train with -device cpu (slow) or on another machine")]
    return [_describe_gpu(index) for index in range(torch.cuda.device_count())]


def _describe_gpu(index: int) -> Row:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return Row("good", "GPU", f"{index}: {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
