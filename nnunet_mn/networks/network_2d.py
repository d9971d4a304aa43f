"""The 2D network of M&N: slices in, logits of the same size out."""

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_mn.networks.adaptation import BatchStatistics, is_convolutional, keep_still
from nnunet_mn.networks.adapter import ChannelAdapter, Standardized
from nnunet_mn.networks.backbone import Backbone
from nnunet_mn.networks.geometry import crop_slices, pad_slices
from nnunet_mn.networks.heads import resize
from nnunet_mn.networks.spec import Spec

_ENCODER_RATE = 0.1  # of the learning rate, for pretrained weights under `full`: they need less of a change


class Network2D(nn.Module):
    """Slices (N, C, H, W) of any size -> logits (N, K, H, W).

    Args:
        adapter: channels and intensities -> images.
        backbone: images -> feature maps; already adapted.
        head: feature maps and slices -> logits.
        spec: describes these modules.
        batch_statistics: whether the backbone's batch norms keep their statistics or adapt them in training.
    """

    def __init__(
        self,
        adapter: ChannelAdapter,
        backbone: Backbone,
        head: nn.Module,
        *,
        spec: Spec,
        batch_statistics: BatchStatistics = "frozen",
    ) -> None:
        super().__init__()
        self.standardized = nn.Identity() if spec.intensities is None else Standardized(spec.intensities)
        self.adapter = adapter
        self.backbone = backbone
        self.head = head
        self.spec = spec
        self.geometry = spec.measured.geometry
        self.batch_statistics = batch_statistics
        self._adaptation = spec.adaptation
        # Twice as fast on the CPU for convolutional networks; transformers would copy back and forth.
        self._channels_last = is_convolutional(backbone)
        if self._channels_last:
            self.to(memory_format=torch.channels_last)

    def forward(self, slices: Tensor) -> Tensor:
        height, width = slices.shape[-2:]
        padded_size, input_size = self.geometry.sizes(height, width)
        padded = pad_slices(self.standardized(slices), size=padded_size)  # (N, C, H', W')
        images = resize(self.adapter(padded), input_size)  # (N, 3, f H', f W')
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.head(self.backbone(images), padded)  # (N, K, H', W')
        return crop_slices(logits, size=(height, width))

    def train(self, mode: bool = True) -> "Network2D":
        super().train(mode)
        keep_still(self.backbone, self._adaptation, batch_statistics=self.batch_statistics)
        return self

    @property
    def description(self) -> str:
        """One line: name, size, trained share, license."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        facts = self.backbone.facts
        return (
            f"2D network {facts.name} ({self._adaptation}): {total / 1e6:.1f} M parameters, "
            f"{trained / 1e6:.2f} M of them trained ({trained / total:.1%}); license of the weights: {facts.license}"
        )

    def parameter_groups(self, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Trained parameters in groups for an optimizer of torch.

        New weights (adapter, head, LoRA) get the full learning rate, and so do norms and biases beside LoRA.
        Pretrained weights under `full` get a tenth. Norms and biases get no weight decay.

        Args:
            lr: peak learning rate of new weights.
            weight_decay: of parameters with more than one axis.
        """
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                pretrained = self._adaptation == "full" and name.startswith("backbone.")
                groups.setdefault((pretrained, parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": lr * _ENCODER_RATE if pretrained else lr,
                "weight_decay": weight_decay if decayed else 0.0,
                "name": f"{'pretrained' if pretrained else 'new'}{'' if decayed else ', norms and biases'}",
            }
            for (pretrained, decayed), parameters in groups.items()
        ]

    def input_pixels(self, height: int, width: int) -> int:
        """Pixels at the backbone's input for one slice of height x width voxels."""
        _, (rows, columns) = self.geometry.sizes(height, width)
        return rows * columns
