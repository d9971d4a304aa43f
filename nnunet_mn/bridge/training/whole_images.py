"""Whole images through a network in the middle of a training, by nnU-Net's own sliding window."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_mn.memory import free_bytes

SHARE_OF_FREE_MEMORY = 0.5  # for a whole image; the windows and other processes take their part


def sliding_window(trainer: Any, network: nn.Module) -> Callable[[Tensor], Tensor]:
    """nnU-Net's own prediction of a whole image by the network in training, without mirroring.

    A large image is kept in main memory. nnU-Net would try the card first, and its thread that cuts windows would then
    hold the image on the card until the end of the training.
    """
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=trainer.device, allow_tqdm=False
    )
    predictor.manual_initialization(
        network, trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json,
        type(trainer).__name__, None,
    )  # fmt: skip
    heads: int = predictor.label_manager.num_segmentation_heads

    def predict(image: Tensor) -> Tensor:
        predictor.perform_everything_on_device = fits_on_card(
            image.shape, trainer.configuration_manager.patch_size, heads=heads, device=trainer.device
        )
        logits: Tensor = predictor.predict_sliding_window_return_logits(image)
        return logits

    return predict


def fits_on_card(shape: Sequence[int], patch_size: Sequence[int], *, heads: int, device: torch.device) -> bool:
    """Whether a CUDA card has room for all that nnU-Net keeps of an image while it predicts it.

    Args:
        shape: `(C, Z, Y, X)`.
        patch_size: a smaller image is padded to it.
        heads: channels of the logits.
        device: where the network is.
    """
    free = free_bytes(device)
    if free is None:
        return False
    image, sums, weights, labels = 4 * shape[0], 2 * heads, 2, 8  # bytes of a voxel
    needed = int(np.maximum(shape[1:], patch_size).prod()) * (image + sums + weights + labels)
    return needed <= SHARE_OF_FREE_MEMORY * free
