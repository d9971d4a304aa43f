"""Runs nnU-Net's commands again and again in forks of one process, which saves the seconds that its imports take.

Every line of standard input is a JSON object: the command, its arguments, its environment and the file for its output.
The answer is the number of the process in one line and, when it has ended, its exit code in another.

Processes that nnU-Net spawns import this file as their main module. Nothing heavy is imported on its top for them.
"""

import gc
import json
import os
import sys
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import entry_points
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
        request: dict[str, Any] = json.loads(line)
        process = os.fork()
        if process == 0:
            return request
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    return None


def _import_what_forks_share() -> None:
    os.environ |= FIXED
    for module in SHARED:
        import_module(module)
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_mn.bridge.registration import trainers_path
    from nnunet_mn.config import MNConfig
    from nnunet_mn.networks import build_network_2d

    os.environ |= {"nnUNet_extTrainer": str(trainers_path())}
    with redirect_stdout(sys.stderr):  # the look-up tells where it looks, which would be taken for answers
        recursive_find_trainer_class_by_name("nnUNetTrainerMN")
        build_network_2d(MNConfig(backbone="efficientnet-lite0"), in_channels=1, num_classes=2)


def run(request: dict[str, Any]) -> None:
    """Run the command. Whatever is raised ends this process as it would end the command."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    sys.argv = request["command"]
    if request["validate"]:
        (script,) = entry_points(group="console_scripts", name=sys.argv[0])
        script.load()()
    else:
        train_alone()


def train_alone() -> None:
    """What `nnUNetv2_train` does, but for the validation that follows the training."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    dataset, configuration, trainer_name = sys.argv[1], sys.argv[2], sys.argv[sys.argv.index("-tr") + 1]
    go_on = "--c" in sys.argv
    trainer = get_trainer_from_args(
        dataset, configuration, 0, trainer_name, continue_training=go_on, device=torch.device("cpu")
    )
    maybe_load_checkpoint(trainer, go_on, False)
    trainer.run_training()


if __name__ == "__main__":
    wanted = serve()
    if wanted is not None:
        run(wanted)
