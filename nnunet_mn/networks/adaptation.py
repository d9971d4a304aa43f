"""The adaptation of a backbone: its trained weights, and its layers in evaluation mode."""

from collections.abc import Iterator
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet_mn.config import MNConfig
from nnunet_mn.networks.backbone import Backbone

Adaptation = Literal["lora", "full", "frozen"]
BatchStatistics = Literal["frozen", "adapt"]

_NORMS = ("Norm", "GRN")
_ATTENTIONS = ("Attention", "Attn", "XCA")  # in the names of classes


def is_convolutional(backbone: Backbone) -> bool:
    """Whether a backbone is a convolutional network: the registry says so, or it has no linear layer or no attention.

    ConvNeXt has linear layers. Under its name in the registry and as a folder it must be the same.
    """
    if backbone.facts.kind is not None:
        return backbone.facts.kind == "convolutional"
    modules = list(backbone.encoder.modules())
    is_linear = any(isinstance(module, nn.Linear) for module in modules)
    return not (is_linear and any(word in type(module).__name__ for module in modules for word in _ATTENTIONS))


def chosen_adaptation(config: MNConfig, backbone: Backbone) -> Adaptation:
    """The meaning of `auto` for a backbone: LoRA for transformers, all weights for convolutional networks."""
    if config.adaptation != "auto":
        return config.adaptation
    return "full" if is_convolutional(backbone) else "lora"


def adapt(backbone: Backbone, config: MNConfig) -> Adaptation:
    """Freeze the untrained weights of a backbone, and insert LoRA if the settings ask for it.

    Under `lora` the encoder's norms and biases are also trained. Of a pretrained decode head only the biases are
    trained, as in the paper's code. Under `frozen` a decode head is trained, as every head is.
    """
    adaptation = chosen_adaptation(config, backbone)
    if adaptation == "lora":
        from nnunet_mn.networks.lora import insert_lora  # peft takes seconds to import

        beside = list(_trained_beside_lora(backbone))
        backbone.requires_grad_(False)
        insert_lora(backbone.encoder, config)
        for parameter in beside:  # afterwards, since peft freezes all but its own
            parameter.requires_grad_(True)
    elif adaptation == "frozen":
        backbone.encoder.requires_grad_(False)
    return adaptation


def _trained_beside_lora(backbone: Backbone) -> Iterator[nn.Parameter]:
    encoder = {id(parameter) for parameter in backbone.encoder.parameters()}
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias") or (id(parameter) in encoder and _is_of_norm(backbone, name)):
            yield parameter


def _is_of_norm(module: nn.Module, parameter: str) -> bool:
    """Whether a parameter belongs to a normalization layer, of whatever library."""
    return any(word in type(module.get_submodule(parameter.rpartition(".")[0])).__name__ for word in _NORMS)


def keep_still(backbone: Backbone, adaptation: Adaptation, *, batch_statistics: BatchStatistics = "frozen") -> None:
    """After `train()`: put frozen layers back into evaluation mode."""
    if adaptation == "frozen":
        backbone.encoder.eval()
    if batch_statistics == "frozen":
        for module in backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
