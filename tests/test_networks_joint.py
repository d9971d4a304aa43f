"""The joint network: its probabilities are the mean of both networks'."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks import build_network_2d
from nnunet_mn.networks.build import rebuild_network_2d
from nnunet_mn.networks.joint import Joint

UNET = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    """Of a 2D network for two channels and three classes."""
    network = build_network_2d(MNConfig(adaptation="frozen"), in_channels=2, num_classes=3)
    plain: dict[str, Any] = json.loads(json.dumps(network.spec.to_json()))
    return plain


@pytest.fixture
def make(description: dict[str, Any]) -> Callable[..., Joint]:
    def build(**options: Any) -> Joint:
        torch.manual_seed(0)
        arguments = {"network_3d": UNET, "network_2d": description, "axes": [0, 1, 2], "regions": False}
        return Joint(2, 3, **{**arguments, **options}).eval()

    return build


def mean_by_hand(joint: Joint, volume: Tensor, *, weight: float = 0.5, axes: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """The mean of both networks' probabilities, with the 2D network's slices cut one by one."""
    to_probabilities: Callable[[Tensor], Tensor] = torch.sigmoid if joint.regions else lambda x: x.softmax(1)
    network_2d = joint.network_2d.network
    of_2d = torch.zeros(())
    for axis in axes:
        slices = volume.transpose(2, 2 + axis).unbind(2)
        probabilities = torch.stack([to_probabilities(network_2d(one)) for one in slices], dim=2)
        of_2d = of_2d + probabilities.transpose(2, 2 + axis) / len(axes)
    return (1 - weight) * to_probabilities(joint.network_3d(volume)) + weight * of_2d


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize(("axes", "weight"), [((0, 1, 2), 0.5), ((0,), 0.25)])
def test_softmax_or_sigmoid_gives_the_mean_of_the_probabilities(
    make: Callable[..., Joint], regions: bool, axes: tuple[int, ...], weight: float
) -> None:
    joint = make(regions=regions, axes=axes, weight_2d=weight)
    volume = torch.randn(2, 2, 8, 10, 12)
    with torch.no_grad():
        logits = joint(volume)
        expected = mean_by_hand(joint, volume, weight=weight, axes=axes)
    assert logits.shape == (2, 3, 8, 10, 12)
    found = logits.sigmoid() if regions else logits.softmax(1)
    assert torch.allclose(found, expected, atol=1e-5)


class Sure(nn.Module):
    """Logits too large for the log of a probability in fp16 or fp32."""

    def forward(self, volume: Tensor) -> list[Tensor]:
        logits = torch.full((len(volume), 3, *volume.shape[2:]), -3e4, dtype=volume.dtype)
        logits[:, 1] = 3e4
        return [logits]


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sure_networks_give_finite_logits(make: Callable[..., Joint], regions: bool, dtype: torch.dtype) -> None:
    joint = make(regions=regions)
    joint.network_3d, joint.network_2d = Sure(), Sure()
    logits = joint(torch.zeros(1, 2, 4, 4, 4, dtype=dtype))
    assert (logits.half() * 1000).isfinite().all()
    assert (logits.argmax(1) == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_probabilities_by_little(make: Callable[..., Joint], dtype: torch.dtype) -> None:
    joint, volume = make(), torch.randn(1, 2, 8, 8, 8)
    with torch.no_grad():
        expected = joint(volume).softmax(1)
        with torch.autocast("cpu", dtype=dtype):
            found = joint(volume)
    assert found.dtype == torch.float32
    assert torch.allclose(found.softmax(1), expected, atol=0.05)


def test_deep_supervision_of_the_decoder_does_not_matter(make: Callable[..., Joint]) -> None:
    joint, volume = make(deep_supervision=True), torch.randn(1, 2, 8, 8, 8)
    with torch.no_grad():
        expected = joint(volume)
        joint.decoder.deep_supervision = True
        assert joint.network_3d.decoder.deep_supervision
        assert torch.equal(joint(volume), expected)


def test_it_can_be_compiled(make: Callable[..., Joint]) -> None:
    joint, volume = make(axes=(0, 2)), torch.randn(1, 2, 8, 8, 8)
    with torch.no_grad():
        expected = joint(volume)
        assert torch.allclose(torch.compile(joint, backend="eager")(volume), expected, atol=1e-4)


def test_the_2d_network_is_left_out_of_compiled_code(make: Callable[..., Joint]) -> None:
    graphs: list[str] = []

    def note(graph: Any, _: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    with torch.no_grad():
        torch.compile(make(axes=(0, 1, 2)), backend=note)(torch.randn(1, 2, 8, 8, 8))
    assert any("conv3d" in code for code in graphs)
    assert not any("conv2d" in code for code in graphs)


def test_a_missing_class_of_the_3d_network_is_named(make: Callable[..., Joint]) -> None:
    with pytest.raises(MNError, match=r"'no_such_package\.Net' as a part of the 3D network"):
        make(network_3d={**UNET, "network_class_name": "no_such_package.Net"})


@pytest.mark.parametrize(
    "recipe",
    [{"module": "of_nobody"}, {"kind": "import_module"}, {"kind": "OfNobody"}, {"module": "huggingface"}],
)
def test_an_unknown_backbone_is_refused(description: dict[str, Any], recipe: dict[str, str]) -> None:
    with pytest.raises(MNError, match=r"cannot build the backbone .* of 'efficientnet-lite0' without its pretrained"):
        rebuild_network_2d({**description, "recipe": {**description["recipe"], **recipe}})


def test_only_the_3d_network_lets_cudnn_search_for_convolutions(
    make: Callable[..., Joint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as nnU-Net's predictor does on a card
    joint, seen = make(), set()
    for name, network in (("3D", joint.network_3d), ("2D", joint.network_2d)):
        network.register_forward_hook(lambda *_, name=name: seen.add((name, torch.backends.cudnn.benchmark)))
    with torch.no_grad():
        joint(torch.randn(1, 2, 8, 10, 12))
    assert seen == {("3D", True), ("2D", False)}
    assert torch.backends.cudnn.benchmark
