"""2D networks: pretrained backbones, their adaptation, and the parts for making segmenters of them."""

from nnunet_mn.networks.build import build_network_2d
from nnunet_mn.networks.network_2d import Network2D

__all__ = ["Network2D", "build_network_2d"]
