"""Runs commands and scripts in forks of one process, which saves the seconds that the imports of nnU-Net take.

Every line of standard input is a JSON list of what runs at once. Each is an object: what kind of command it is, the
command with its arguments, its environment and the file for its output. The answer is the number of each process in a
line and, when they have ended, the exit code of each in another.

Processes that nnU-Net spawns import this file as their main module. Nothing heavy is imported on its top for them.
"""

import gc
import json
import os
import runpy
import sys
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

# Read when nnU-Net and torch are imported. Threads of torch would not survive a fork.
FIXED = {"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}
SHARED = (
    "nnunetv2.ensembling.ensemble",
    "nnunetv2.evaluation.find_best_configuration",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.run.run_training",
    "nnunet_mn.networks.huggingface",
)


def serve() -> dict[str, Any] | None:
    """Answer every request; only in a fork return, with the request."""
    _import_what_forks_share()
    gc.collect()
    gc.freeze()  # a fork's garbage collector would else write to all that is shared, and each page would be copied
    for line in sys.stdin:
        processes = []
        for request in json.loads(line):
            process = os.fork()
            if process == 0:
                return request  # type: ignore[no-any-return]
            processes.append(process)
        for process in processes:
            print(process, flush=True)
        for process in processes:
            print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    return None


def _import_what_forks_share() -> None:
    os.environ |= FIXED
    for module in SHARED:
        import_module(module)
    from nnunet_mn.config import MNConfig
    from nnunet_mn.networks import build_network_2d

    with redirect_stdout(sys.stderr):  # the look-up tells where it looks, which would be taken for answers
        build_network_2d(MNConfig(backbone="efficientnet-lite0"), in_channels=1, num_classes=2)
        if "nnUNet_extTrainer" in os.environ:  # nnU-Net 2.8 and later
            find_objects = import_module("nnunetv2.utilities.find_objects")
            find_objects.recursive_find_trainer_class_by_name("nnUNetTrainerMN")


def run(request: dict[str, Any]) -> None:
    """Run the command. Whatever is raised ends this process as it would end the command."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    sys.argv = request["command"]
    KINDS[request["kind"]]()


def command() -> None:
    """A command of this Python environment."""
    (script,) = entry_points(group="console_scripts", name=sys.argv[0])
    sys.exit(script.load()())


def python() -> None:
    """A file, as Python runs it."""
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


def train_alone(*, draw: bool = False) -> None:
    """What `nnUNetv2_train` does, but for the validation that follows the training, and for the plots of each epoch."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    dataset, configuration, trainer_name = sys.argv[1], sys.argv[2], sys.argv[sys.argv.index("-tr") + 1]
    go_on = "--c" in sys.argv
    trainer = get_trainer_from_args(
        dataset, configuration, 0, trainer_name, continue_training=go_on, device=torch.device("cpu")
    )
    maybe_load_checkpoint(trainer, go_on, False)
    if not draw:  # it takes longer than an epoch of two updates
        trainer.logger.plot_progress_png = lambda folder: None
        type(trainer).on_epoch_end.__globals__["plot_progress"] = lambda *_: None
    trainer.run_training()


KINDS = {
    "command": command,
    "python": python,
    "train": train_alone,
    "train and draw": partial(train_alone, draw=True),
}

if __name__ == "__main__":
    wanted = serve()
    if wanted is not None:
        run(wanted)
