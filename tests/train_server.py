"""Runs `nnUNetv2_train` again and again in forks of one process, which saves the seconds that its imports take.

Every line of standard input is a JSON object: the command's arguments, its environment and the file for its output.
The answer is the number of the process in one line and, when it has ended, its exit code in another.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: its threads would not survive a fork

import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint, run_training_entry
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_mn.bridge.registration import trainers_path
from nnunet_mn.config import MNConfig
from nnunet_mn.networks import build_network_2d


def serve() -> dict[str, Any] | None:
    """Answer every request; only in a fork return, with the request."""
    os.environ |= {"nnUNet_extTrainer": str(trainers_path())}
    with redirect_stdout(sys.stderr):  # the look-up tells where it looks, which would be taken for answers
        recursive_find_trainer_class_by_name("nnUNetTrainerMN")  # this and the next for imports that forks then share
        build_network_2d(MNConfig(backbone="efficientnet-lite0"), in_channels=1, num_classes=2)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        process = os.fork()
        if process == 0:
            return request
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    return None


def train_alone() -> None:
    """What the command does, but for the validation that follows the training."""
    dataset, configuration, trainer_name = sys.argv[1], sys.argv[2], sys.argv[sys.argv.index("-tr") + 1]
    go_on = "--c" in sys.argv
    trainer = get_trainer_from_args(
        dataset, configuration, 0, trainer_name, continue_training=go_on, device=torch.device("cpu")
    )
    maybe_load_checkpoint(trainer, go_on, False)
    trainer.run_training()


if __name__ == "__main__":
    wanted = serve()
    if wanted is not None:  # whatever is raised from here on ends this process as it would end the command
        output = os.open(wanted["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(wanted["environment"])
        sys.argv = ["nnUNetv2_train", *wanted["arguments"]]
        if wanted["validate"]:
            run_training_entry()
        else:
            train_alone()
