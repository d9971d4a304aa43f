from copy import deepcopy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_mn.errors import MNError
from nnunet_mn.sandbox.small_plans import small_plans, topology

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 1.5, 1.5), (5.0, 0.7, 0.7)]


def _plans(spacing, residual=False):
    blocks = {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6]} if residual else {"n_conv_per_stage": [2] * 6}
    arch_kwargs = {"n_stages": 6, "features_per_stage": [32, 64, 128, 256, 320, 320], **blocks}
    arch_kwargs |= {"n_conv_per_stage_decoder": [1] * 5 if residual else [2] * 5, "conv_bias": True}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "batch_size": 2,
        "patch_size": [64, 128, 128],
        "spacing": list(spacing),
        "architecture": {"network_class_name": "…", "arch_kwargs": arch_kwargs},
    }
    return {"plans_name": "nnUNetPlans", "configurations": {"2d": {}, "3d_fullres": configuration}}


def _small(plans, patch_size=(16, 32, 32), features=(4, 8, 8)):
    return small_plans(plans, name="Small", patch_size=patch_size, batch_size=3, features=features)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("network", [PlainConvUNet, ResidualEncoderUNet])
def test_network_of_the_plans_segments_their_patch(network, spacing):
    plans = _small(_plans(spacing, residual=network is ResidualEncoderUNet))
    chosen = plans["configurations"]["3d_fullres"]
    net = network(
        1, num_classes=2, conv_op=nn.Conv3d, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU, **chosen["architecture"]["arch_kwargs"],
    )  # fmt: skip
    shape = (chosen["batch_size"], 1, *chosen["patch_size"])
    assert net(torch.zeros(shape)).shape == (3, 2, 16, 32, 32)


def test_only_patch_batch_and_network_differ_from_the_plans_given():
    plans = _plans((1.0, 1.0, 1.0))
    before = deepcopy(plans)
    small = _small(plans)
    assert plans == before
    assert small["plans_name"] == "Small"
    kept, planned = small["configurations"]["3d_fullres"], before["configurations"]["3d_fullres"]
    changed = {key for key in planned if kept[key] != planned[key]}
    assert changed == {"batch_size", "patch_size", "architecture"}


@pytest.mark.parametrize("spacing", SPACINGS)
def test_patch_stays_whole_at_every_stage_and_anisotropy_shrinks(spacing):
    strides, kernels = topology(spacing, (16, 64, 64), n_stages=4)
    assert len(strides) == len(kernels) == 4
    size, voxel, ratios = [16, 64, 64], list(spacing), []
    for stride in strides:
        assert all(n % s == 0 for n, s in zip(size, stride, strict=True))
        size = [n // s for n, s in zip(size, stride, strict=True)]
        voxel = [v * s for v, s in zip(voxel, stride, strict=True)]
        ratios.append(max(voxel) / min(voxel))
    assert min(size) >= 4
    assert max(ratios) <= max(2, ratios[0])
    assert ratios[-1] < ratios[0] or ratios[0] == 1


def test_kernels_do_not_reach_over_thick_slices():
    _, kernels = topology((5.0, 0.7, 0.7), (16, 64, 64), n_stages=3)
    assert kernels[0] == [1, 3, 3]


def test_too_many_stages_for_the_patch_are_refused_with_the_patch():
    with pytest.raises(MNError, match=r"\[16, 32, 32\].*fewer stages than 8"):
        _small(_plans((1.0, 1.0, 1.0)), features=(4,) * 8)


def test_missing_configuration_is_refused_with_those_that_exist():
    with pytest.raises(MNError, match=r"'3d_lowres'.*2d, 3d_fullres"):
        small_plans(
            _plans((1.0, 1.0, 1.0)),
            name="Small",
            patch_size=(8, 8, 8),
            batch_size=2,
            features=(4, 8),
            configuration="3d_lowres",
        )
