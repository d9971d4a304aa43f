"""M&N for nnU-Net v2: a pretrained 2D network and a 3D network teach each other with pseudo-masks."""

from importlib.metadata import version

__version__ = version("nnunet-mn")
