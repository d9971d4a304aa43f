"""Frozen weights in the precision of the forward passes."""

import torch
from torch import nn

from nnunet_mn.networks.folding import NormedConv
from nnunet_mn.networks.network_2d import Network2D
from nnunet_mn.networks.weights import with_the_same_hashes

_CAST_BY_AUTOCAST = (nn.Linear, nn.Conv2d)


def hold_frozen_weights(network: Network2D, precision: torch.dtype) -> None:
    """Hold frozen weights of projections and convolutions as autocast casts them, in place.

    Autocast would cast them anew in every pass: it keeps only the casts of trained weights. Outputs under autocast stay
    the same bit for bit, and so do the hashes in checkpoints.
    """
    folded = {module.conv for module in network.modules() if isinstance(module, NormedConv)}  # they fold in fp32
    with with_the_same_hashes(network, network.backbone):
        for layer in network.modules():
            if type(layer) in _CAST_BY_AUTOCAST and layer not in folded and not layer.weight.requires_grad:
                layer.weight.data = layer.weight.data.to(precision)
