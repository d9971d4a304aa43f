"""Low-rank updates of an encoder's projections, through peft."""

from collections.abc import Iterator
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError


def insert_lora(encoder: nn.Module, config: MNConfig) -> None:
    """Add trainable low-rank updates to every projection of an encoder (Hu et al., ICLR 2022).

    Raises:
        MNError: when the encoder has no projection.
    """
    targets = [name for name, module in encoder.named_modules() if is_projection(module)]
    if not targets:
        raise MNError(
            f"adaptation is 'lora', but the encoder of '{config.backbone}' has no linear or 1x1 projection; use 'full'"
        )
    inject_adapter_in_model(
        LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_rank, lora_dropout=config.dropout_2d, target_modules=targets
        ),
        encoder,
    )
    layers: Iterator[Any] = encoder.modules()
    for layer in layers:
        if hasattr(layer, "cast_input_dtype_enabled"):  # in newer versions of peft
            layer.cast_input_dtype_enabled = False  # autocast would undo the cast of an input to fp32


def is_projection(module: nn.Module) -> bool:
    """Whether a layer is linear in the channels alone, whatever its name: names differ between library versions."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    # torch's own attention reads the weights of its output projection without calling it.
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
