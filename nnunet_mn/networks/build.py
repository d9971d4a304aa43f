"""From the settings, or from a description, to a 2D network."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nnunet_mn.config import MNConfig
from nnunet_mn.networks.adaptation import BatchStatistics, adapt, chosen_adaptation
from nnunet_mn.networks.adapter import ChannelAdapter, Intensities
from nnunet_mn.networks.backbone import Backbone, measure, probe_image
from nnunet_mn.networks.folding import fold_norms
from nnunet_mn.networks.heads import FeatureHead, FusedHead
from nnunet_mn.networks.network_2d import Network2D
from nnunet_mn.networks.recipes import empty_backbone, recipe_of
from nnunet_mn.networks.registry import PYPI, TIMM, find, refuse_unknown
from nnunet_mn.networks.spec import Spec


def build_network_2d(
    config: MNConfig,
    *,
    in_channels: int,
    num_classes: int,
    intensities: Intensities | None = None,
    batch_statistics: BatchStatistics = "frozen",
) -> Network2D:
    """Build the 2D network of the settings, with its pretrained weights.

    >>> build_network_2d(MNConfig(), in_channels=1, num_classes=2)(torch.zeros(3, 1, 40, 48)).shape
    torch.Size([3, 2, 40, 48])

    Args:
        config: its backbone and adaptation.
        in_channels: C of the slices.
        num_classes: K of the logits.
        intensities: center and spread of each channel; None: about 0 and 1, as nnU-Net's z-score leaves them.
        batch_statistics: whether the backbone's batch norms keep their statistics or adapt them in training.

    Raises:
        MNError: when the backbone is unknown, or its weights are not here, damaged or do not fit.
    """
    backbone = load_backbone(config)
    fold_norms(backbone.eval(), probe_image(backbone.facts))
    spec = Spec(
        recipe=recipe_of(backbone),
        facts=backbone.facts,
        measured=measure(backbone),
        adaptation=chosen_adaptation(config, backbone),
        lora_rank=config.lora_rank,
        dropout=config.dropout_2d,
        in_channels=in_channels,
        num_classes=num_classes,
        intensities=intensities,
    )
    network = _assemble(backbone, spec, batch_statistics)
    _freeze_unused(network, in_channels)
    return network.train()


def rebuild_network_2d(description: Mapping[str, Any]) -> Network2D:
    """Build the modules of a described 2D network, for its state dict. It reads no file and opens no connection.

    Args:
        description: `Network2D.spec.to_json()`.

    Raises:
        MNError: when a library has no such model.
    """
    spec = Spec.from_json(description)
    backbone = empty_backbone(spec.recipe, spec.facts)
    fold_norms(backbone.eval(), probe_image(spec.facts))
    return _assemble(backbone, spec, "frozen").eval()


def _assemble(backbone: Backbone, spec: Spec, batch_statistics: BatchStatistics) -> Network2D:
    """Adapt a backbone with folded norms, and put an adapter before it and a head behind it."""
    adapt(backbone, spec.config)
    adapter = ChannelAdapter(spec.in_channels, mean=spec.facts.mean, std=spec.facts.std)
    # A trained adapter before a frozen encoder would need the encoder's activations for its gradient.
    adapter.requires_grad_(spec.adaptation != "frozen")
    return Network2D(adapter, backbone, _build_head(backbone, spec), spec=spec, batch_statistics=batch_statistics)


def load_backbone(config: MNConfig) -> Backbone:
    """The backbone of the settings, with its pretrained weights."""
    name = config.backbone
    entry = find(name)
    source = entry.source if entry is not None else name
    # Each of the two libraries takes seconds to import, so only the one in use is.
    if source.startswith((TIMM, PYPI)):
        from nnunet_mn.networks.timm_backbones import load_timm

        return load_timm(name, dropout=config.dropout_2d > 0)
    refuse_unknown(name)
    from nnunet_mn.networks.huggingface import load_huggingface

    return load_huggingface(name, dropout=config.dropout_2d > 0)


def _build_head(backbone: Backbone, spec: Spec) -> nn.Module:
    sizes = {"in_channels": spec.in_channels, "num_classes": spec.num_classes}
    if backbone.is_decoded:
        return FusedHead(spec.measured.channels[0], stride=spec.measured.geometry.stride, **sizes)
    return FeatureHead(spec.measured.channels, **sizes)


def _freeze_unused(network: Network2D, in_channels: int) -> None:
    """Freeze parameters without effect on any logit, such as a last norm. They would count as trained."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    with torch.enable_grad():
        probed = network(torch.zeros(1, in_channels, 64, 64)).sum()
        gradients = torch.autograd.grad(probed, trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
