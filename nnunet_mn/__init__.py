"""M&N: a pretrained 2D network and a 3D network teach each other with pseudo-masks.

The names below make up the method. They work with any 3D network of torch (docs/library.md). With nnU-Net you need none
of them: pass `-tr nnUNetTrainerMN`.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_mn.config import MNConfig
    from nnunet_mn.cotraining import CoTrainer, Student
    from nnunet_mn.errors import MNError
    from nnunet_mn.losses import DeepSupervisionLoss, SoftTargetLoss
    from nnunet_mn.networks import Network2D, build_network_2d
    from nnunet_mn.schedule import Schedule, UnlabeledCounts, scale_learning_rates
    from nnunet_mn.slices import SliceSampler, SliceWise
    from nnunet_mn.targets import LabelSpace, SoftTarget
    from nnunet_mn.teaching import FrozenPair, MeanOfBoth, MovingAverage, OtherNetwork, PseudoMasks, Teacher

__all__ = [
    "CoTrainer",
    "DeepSupervisionLoss",
    "FrozenPair",
    "LabelSpace",
    "MNConfig",
    "MNError",
    "MeanOfBoth",
    "MovingAverage",
    "Network2D",
    "OtherNetwork",
    "PseudoMasks",
    "Schedule",
    "SliceSampler",
    "SliceWise",
    "SoftTarget",
    "SoftTargetLoss",
    "Student",
    "Teacher",
    "UnlabeledCounts",
    "build_network_2d",
    "scale_learning_rates",
]
__version__ = version("nnunet-mn")

_MODULES = ("config", "cotraining", "errors", "losses", "networks", "schedule", "slices", "targets", "teaching")


def __getattr__(name: str) -> Any:
    """Import a name's module when it is asked for: the command line must not wait for torch (PEP 562)."""
    if name in __all__:
        modules = (import_module(f"nnunet_mn.{module}") for module in _MODULES)
        return next(getattr(module, name) for module in modules if hasattr(module, name))
    raise AttributeError(f"module 'nnunet_mn' has no attribute '{name}'")
