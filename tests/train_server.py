"""Runs `nnUNetv2_train` again and again in forks of one process, which saves the seconds that its imports take.

Every line of standard input is a JSON object: the command's arguments, its environment and the file for its output.
The answer is the number of the process in one line and, when it has ended, its exit code in another.
"""

import json
import os
import sys
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: its threads would not survive a fork

import nnunetv2.run.run_training
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_mn.bridge.registration import trainers_path
from nnunet_mn.config import MNConfig
from nnunet_mn.networks import build_network_2d


def serve() -> dict[str, Any] | None:
    """Answer every request; only in a fork return, with the request."""
    os.environ |= {"nnUNet_extTrainer": str(trainers_path())}
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


if __name__ == "__main__":
    wanted = serve()
    if wanted is not None:  # whatever is raised from here on ends this process as it would end the command
        output = os.open(wanted["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(wanted["environment"])
        sys.argv = ["nnUNetv2_train", *wanted["arguments"]]
        nnunetv2.run.run_training.run_training_entry()
