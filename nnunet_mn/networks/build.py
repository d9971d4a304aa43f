"""From the settings to a 2D network."""

from pathlib import Path

import torch
from torch import nn

from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks.adaptation import BatchStatistics, adapt
from nnunet_mn.networks.adapter import ChannelAdapter
from nnunet_mn.networks.backbone import Backbone, Measured, measure, probe_image
from nnunet_mn.networks.folding import fold_norms
from nnunet_mn.networks.heads import FeatureHead, FusedHead
from nnunet_mn.networks.network_2d import Network2D
from nnunet_mn.networks.registry import ENTRIES, find


def build_network_2d(
    config: MNConfig, *, in_channels: int, num_classes: int, batch_statistics: BatchStatistics = "frozen"
) -> Network2D:
    """Build the 2D network of the settings, with its pretrained weights.

    Args:
        config: its backbone and adaptation.
        in_channels: C of the slices.
        num_classes: K of the logits.
        batch_statistics: whether the backbone's batch norms keep their statistics or adapt them in training.

    Raises:
        MNError: when the backbone is unknown, or its weights are not here, damaged or do not fit.
    """
    backbone = load_backbone(config)
    fold_norms(backbone.eval(), probe_image(backbone.facts))
    measured = measure(backbone)
    adaptation = adapt(backbone, config)
    adapter = ChannelAdapter(in_channels, mean=backbone.facts.mean, std=backbone.facts.std)
    # A trained adapter before a frozen encoder would need the encoder's activations for its gradient.
    adapter.requires_grad_(adaptation != "frozen")
    head = _build_head(backbone, measured, in_channels=in_channels, num_classes=num_classes)
    network = Network2D(
        adapter,
        backbone,
        head,
        geometry=measured.geometry,
        adaptation=adaptation,
        batch_statistics=batch_statistics,
    )
    _freeze_unused(network, in_channels)
    return network.train()


def load_backbone(config: MNConfig) -> Backbone:
    """The backbone of the settings, with its pretrained weights."""
    name = config.backbone
    entry = find(name)
    source = entry.source if entry is not None else name
    # Each of the two libraries takes seconds to import, so only the one in use is.
    if source.startswith(("timm:", "pypi:")):
        from nnunet_mn.networks.timm_backbones import load_timm

        return load_timm(name)
    if entry is None and not Path(name).is_dir() and name.count("/") != 1:
        raise MNError(
            f"backbone is '{name}': no local folder, no Hugging Face id (owner/name) and none of "
            f"{', '.join(known.name for known in ENTRIES)}; use one of these or timm:<name>"
        )
    from nnunet_mn.networks.huggingface import load_huggingface

    return load_huggingface(name, dropout=config.dropout_2d > 0)


def _build_head(backbone: Backbone, measured: Measured, *, in_channels: int, num_classes: int) -> nn.Module:
    if backbone.is_decoded:
        return FusedHead(
            measured.channels[0],
            stride=measured.geometry.stride,
            in_channels=in_channels,
            num_classes=num_classes,
        )
    return FeatureHead(measured.channels, in_channels=in_channels, num_classes=num_classes)


def _freeze_unused(network: Network2D, in_channels: int) -> None:
    """Freeze parameters without effect on any logit, such as a last norm: distributed training refuses them."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    with torch.enable_grad():
        probed = network(torch.zeros(1, in_channels, 64, 64)).sum()
        gradients = torch.autograd.grad(probed, trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
