"""Plans for a small network, derived from nnU-Net's own, for machines without a GPU."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from nnunet_mn.errors import MNError

MIN_EDGE = 4  # voxels of a feature map along each axis, at least, as in nnU-Net's planner


def small_plans(
    plans: dict[str, Any],
    *,
    name: str,
    patch_size: Sequence[int],
    batch_size: int,
    features: Sequence[int],
    configuration: str = "3d_fullres",
) -> dict[str, Any]:
    """Derive plans with another patch, batch and network for one configuration; everything else stays as planned.

    The new plans use the same preprocessed data: they keep the `data_identifier`.

    Args:
        plans: of a U-Net with plain or residual encoder, as nnU-Net's planners write them; left as they are.
        name: of the new plans, and of their file without `.json`.
        patch_size: voxels along each axis, in the order of the plans' `transpose_forward`.
        batch_size: samples per update.
        features: channels of each resolution stage; their number is the number of stages.
        configuration: the only one in the new plans.

    Raises:
        MNError: when the configuration is missing, or the patch is too small or odd for so many stages.
    """
    if configuration not in plans["configurations"]:
        raise MNError(
            f"The plans '{plans['plans_name']}' have no configuration '{configuration}'; "
            f"choose one of {', '.join(plans['configurations'])}"
        )
    chosen = deepcopy(plans["configurations"][configuration])
    strides, kernels = topology(chosen["spacing"], patch_size, n_stages=len(features))
    chosen.update(batch_size=batch_size, patch_size=list(patch_size))
    chosen["architecture"]["arch_kwargs"].update(
        n_stages=len(features), features_per_stage=list(features), strides=strides, kernel_sizes=kernels
    )
    _fit_depth(chosen["architecture"]["arch_kwargs"], n_stages=len(features))
    return {**deepcopy(plans), "plans_name": name, "configurations": {configuration: chosen}}


def topology(
    spacing: Sequence[float], patch_size: Sequence[int], *, n_stages: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Strides and kernel sizes of each stage: an axis takes part once its voxels are near the finest axis's in size.

    Args:
        spacing: mm along each axis.
        patch_size: voxels along each axis.
        n_stages: resolution stages; the first one has stride 1.

    Raises:
        MNError: when the patch does not allow so many stages.
    """
    spacing, size = list(spacing), list(patch_size)
    strides, kernels = [[1] * len(size)], []
    for _ in range(n_stages - 1):
        kernels.append([3 if s < 2 * min(spacing) else 1 for s in spacing])
        free = [n % 2 == 0 and n >= 2 * MIN_EDGE for n in size]
        finest = min((s for s, f in zip(spacing, free, strict=True) if f), default=0.0)
        strides.append([2 if f and s < 2 * finest else 1 for s, f in zip(spacing, free, strict=True)])
        if max(strides[-1]) == 1:
            raise MNError(
                f"A patch of {list(patch_size)} voxels cannot be halved {n_stages - 1} times; take fewer stages "
                f"than {n_stages}, or a patch with axes in multiples of {2 ** (n_stages - 1)}"
            )
        size = [n // f for n, f in zip(size, strides[-1], strict=True)]
        spacing = [s * f for s, f in zip(spacing, strides[-1], strict=True)]
    return strides, [*kernels, [3] * len(size)]


def _fit_depth(arch_kwargs: dict[str, Any], *, n_stages: int) -> None:
    """Shorten the per-stage counts of blocks to the new number of stages, or repeat the last one."""
    lengths = {"n_conv_per_stage": n_stages, "n_blocks_per_stage": n_stages, "n_conv_per_stage_decoder": n_stages - 1}
    for key, length in lengths.items():
        if key in arch_kwargs:
            planned = list(arch_kwargs[key])
            arch_kwargs[key] = (planned + [planned[-1]] * length)[:length]
