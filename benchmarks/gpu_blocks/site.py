"""The device, the sizes, and networks for the blocks."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memory import architecture, batch_of, build
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from nnunet_mn.config import MNConfig
from nnunet_mn.cotraining import CoTrainer
from nnunet_mn.ranks import ALONE, Ranks

B2 = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}
TINY_B2 = {
    "depths": [1] * 4,
    "hidden_sizes": [8, 16, 16, 16],
    "num_attention_heads": [1] * 4,
    "decoder_hidden_size": 16,
}


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where and how large.

    Args:
        device: of the networks.
        tiny: sizes for a look at the blocks on a CPU.
        work: a folder.
    """

    device: torch.device
    tiny: bool
    work: Path

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    @property
    def patch(self) -> tuple[int, int, int]:
        return (16, 16, 16) if self.tiny else (128, 128, 128)

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("fp32", "bf16", "fp16") if self.on_card else ("fp32", "bf16")

    @property
    def backbones(self) -> dict[str, str]:
        """Names of 2D networks for the settings: no file is fetched, the SegFormer has random weights."""
        folder = self.work / "segformer"
        if not (folder / "config.json").exists():
            config = SegformerConfig(num_labels=150, **(TINY_B2 if self.tiny else B2))
            SegformerForSemanticSegmentation(config).save_pretrained(folder)
        return {"EfficientNet-Lite0": "efficientnet-lite0", "SegFormer-B2": str(folder)}

    def planned(self, kind: str) -> dict[str, Any]:
        """The architecture of nnU-Net's plain U-Net, or of its residual encoder preset L."""
        stages = 3 if self.tiny else 6
        planned = architecture(4 if self.tiny else 32, stages)
        if kind == "resenc":
            del planned["arch_kwargs"]["n_conv_per_stage"]
            planned["arch_kwargs"]["n_blocks_per_stage"] = [1, 3, 4, 6, 6, 6][:stages]
            planned["arch_kwargs"]["n_conv_per_stage_decoder"] = [1] * (stages - 1)
            planned["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        return planned

    def cotrainer(
        self, config: MNConfig, kind: str = "plain", *, ranks: Ranks = ALONE, compiled: bool = False
    ) -> CoTrainer:
        """Both networks; their weights depend on the settings' seed alone."""
        torch.manual_seed(config.seed or 0)
        return build(config, self.planned(kind), self.device, ranks=ranks, compiled=compiled)

    def batch(self, size: int, kind: str = "plain") -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Noise and masks at every scale."""
        torch.manual_seed(1)
        scales = self.planned(kind)["arch_kwargs"]["n_stages"] - 1
        volumes, masks = batch_of(self.patch, size, scales, torch.device("cpu"))
        return volumes.to(self.device), [mask.to(self.device) for mask in masks]

    def wait(self) -> None:
        """Wait for the device."""
        if self.on_card:
            torch.cuda.synchronize()

    def milliseconds(self, run: Callable[[], object]) -> float:
        """The median time of a call, after some that do not count."""
        warm, rounds = (0, 1) if self.tiny else (3, 10)
        times = []
        for _ in range(warm + rounds):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(1000 * (time.perf_counter() - start))
        return sorted(times[warm:])[rounds // 2]
