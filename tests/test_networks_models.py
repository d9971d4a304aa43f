"""Every kind of backbone through the code that users run: tiny models that the libraries save and ours loads."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2Model,
    DPTConfig,
    DPTForSemanticSegmentation,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
    SwinConfig,
    SwinForImageClassification,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
    VitDetConfig,
    VitDetModel,
    ViTForImageClassification,
)

from nnunet_mn.bridge.planning.measure import measure_cost, slice_cost
from nnunet_mn.config import Layer, MNConfig, resolve
from nnunet_mn.errors import MNError
from nnunet_mn.networks import Network2D, build_network_2d
from nnunet_mn.networks.build import rebuild_network_2d
from nnunet_mn.networks.lora import is_projection
from nnunet_mn.networks.precision import hold_frozen_weights
from nnunet_mn.networks.recipes import recipe_of
from nnunet_mn.networks.weights import frozen_hash, pretrained_hash
from nnunet_mn.teaching import same_in_eval

pytestmark = pytest.mark.slow

transformers.utils.logging.disable_progress_bar()

LABELS = 5
PLAIN = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64, "num_labels": LABELS}
STAGES = [f"stage{number}" for number in range(1, 5)]


def segformer(model_class: Any = SegformerForSemanticSegmentation) -> PreTrainedModel:
    config = SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=32,
        num_labels=LABELS,
    )
    model: PreTrainedModel = model_class(config)
    return model


def swin_config() -> SwinConfig:
    sizes = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64}
    return SwinConfig(**sizes, out_features=STAGES)


def convnext_config() -> ConvNextConfig:
    return ConvNextConfig(depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], out_features=STAGES)


def upernet(backbone: Any) -> PreTrainedModel:
    config = UperNetConfig(backbone_config=backbone, hidden_size=16, num_labels=LABELS, auxiliary_channels=8)
    return UperNetForSemanticSegmentation(config)


def beit() -> PreTrainedModel:
    return BeitForSemanticSegmentation(
        BeitConfig(**PLAIN, num_hidden_layers=4, out_indices=[1, 2, 3, 4], use_relative_position_bias=True)
    )


def dpt() -> PreTrainedModel:
    sizes = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16, "backbone_out_indices": [0, 1, 2, 3]}
    return DPTForSemanticSegmentation(DPTConfig(**PLAIN, **sizes, num_hidden_layers=4))


def dinov2() -> PreTrainedModel:
    return Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=8, num_attention_heads=2, image_size=56))


def vitdet() -> PreTrainedModel:
    sizes = {"image_size": 64, "pretrain_image_size": 64}
    return VitDetModel(VitDetConfig(hidden_size=32, num_hidden_layers=8, num_attention_heads=2, **sizes))


def mobilenet() -> PreTrainedModel:
    return MobileNetV2ForSemanticSegmentation(MobileNetV2Config(depth_multiplier=0.25, num_labels=LABELS))


def resnet() -> PreTrainedModel:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4)
    return ResNetForImageClassification(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "segformer": segformer,
    "segformer-encoder": lambda: segformer(SegformerModel),
    "segformer-classifier": lambda: segformer(SegformerForImageClassification),
    "upernet-swin": lambda: upernet(swin_config()),
    "upernet-convnext": lambda: upernet(convnext_config()),
    "beit": beit,
    "dpt": dpt,
    "dinov2": dinov2,
    "vitdet": vitdet,
    "swin": lambda: SwinForImageClassification(swin_config()),
    "convnext": lambda: ConvNextForImageClassification(convnext_config()),
    "resnet": resnet,
    "mobilenet": mobilenet,
}
TIMM = ("test_vit", "test_resnet", "test_convnext", "test_efficientnet")
WITH_DECODER = ("segformer", "upernet-swin", "upernet-convnext", "beit", "dpt")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection may be opened for weights that are local."""

    def refuse(*_: object) -> None:
        raise AssertionError("a network connection was opened")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Each model is saved once, when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    def save(name: str) -> str:
        if name in TIMM:
            from nnunet_mn.networks.timm_backbones import timm  # which imports it without its warnings

            torch.manual_seed(0)
            file = root / f"{name}.safetensors"
            if not file.exists():
                safetensors.torch.save_file(timm.create_model(name).state_dict(), file)
            return f"timm:{name}@{file}"
        if not (root / name).exists():
            torch.manual_seed(0)
            MODELS[name]().save_pretrained(root / name)
        return str(root / name)

    return save


def build(backbone: str, **fields: Any) -> Network2D:
    torch.manual_seed(0)
    config = MNConfig(**{"backbone": backbone, "lora_rank": 4, **fields})
    return build_network_2d(config, in_channels=2, num_classes=3)


def gradients_of(network: Network2D, slices: Tensor) -> set[str]:
    """The names of all parameters that a backward pass reaches."""
    network(slices).square().mean().backward()
    return {name for name, parameter in network.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("adaptation", ["lora", "full", "frozen"])
@pytest.mark.parametrize("name", [*MODELS, *TIMM])
def test_every_backbone_trains_offline(saved: Callable[[str], str], name: str, adaptation: str) -> None:
    network = build(saved(name), adaptation=adaptation)
    slices = torch.randn(2, 2, 37, 41)
    logits = network(slices)
    assert logits.shape == (2, 3, 37, 41)
    assert same_in_eval(network)
    with torch.no_grad():
        assert torch.allclose(logits, network.eval()(slices), atol=1e-5)
    # Distributed training refuses a trained parameter without a gradient.
    assert gradients_of(network.train(), slices) == {n for n, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", [*MODELS, *TIMM])
def test_every_backbone_is_built_again_from_its_description(
    saved: Callable[[str], str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(saved(name), adaptation="lora").eval()
    description = json.dumps(network.spec.to_json())
    slices = torch.randn(2, 2, 37, 41)
    with torch.no_grad():
        expected = network(slices)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was read")

    for reader in (transformers.PreTrainedModel, transformers.PreTrainedConfig):
        monkeypatch.setattr(reader, "from_pretrained", refuse)
    monkeypatch.setattr("nnunet_mn.networks.timm_backbones.read_tensors", refuse)
    rebuilt = rebuild_network_2d(json.loads(description))
    rebuilt.load_state_dict(network.state_dict())
    assert rebuilt.spec.to_json() == network.spec.to_json()
    with torch.no_grad():
        assert torch.allclose(rebuilt(slices), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["segformer", "dinov2", "upernet-convnext", "test_efficientnet"])
@pytest.mark.parametrize("size", [(20, 20), (70, 30)])
def test_slices_of_any_size(saved: Callable[[str], str], name: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert build(saved(name))(torch.randn(1, 2, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("name", ["segformer", "swin", "resnet", "test_vit"])
def test_lora_updates_every_projection_of_the_encoder(saved: Callable[[str], str], name: str) -> None:
    original = build(saved(name), adaptation="frozen").backbone.encoder
    adapted = build(saved(name), adaptation="lora").backbone.encoder
    projections = {n for n, module in original.named_modules() if is_projection(module)}
    updated = {n.partition(".lora_A")[0] for n, _ in adapted.named_parameters() if ".lora_A" in n}
    assert updated == projections != set()


@pytest.mark.parametrize(
    ("name", "adaptation"),
    [("segformer", "lora"), ("swin", "lora"), ("test_vit", "lora"), ("convnext", "full"), ("test_convnext", "full"),
     ("resnet", "full")],
)  # fmt: skip
def test_all_weights_of_a_convolutional_network_are_trained_also_if_it_has_linear_layers(
    saved: Callable[[str], str], name: str, adaptation: str
) -> None:
    assert build(saved(name), adaptation="auto").spec.adaptation == adaptation


@pytest.mark.parametrize("name", WITH_DECODER)
def test_under_lora_a_pretrained_decode_head_trains_its_biases_alone(saved: Callable[[str], str], name: str) -> None:
    backbone = build(saved(name), adaptation="lora").backbone
    encoder = {id(parameter) for parameter in backbone.encoder.parameters()}
    decoder = [(n, p.requires_grad) for n, p in backbone.named_parameters() if id(p) not in encoder]
    assert decoder
    assert not any(trained for n, trained in decoder if not n.endswith("bias"))
    assert any(trained for _, trained in decoder)


def test_the_fused_features_are_what_the_classifier_would_have_seen(saved: Callable[[str], str]) -> None:
    model = SegformerForSemanticSegmentation.from_pretrained(saved("segformer")).eval()
    images = torch.randn(2, 3, 64, 96)
    backbone = build(saved("segformer"), adaptation="frozen").eval().backbone
    with torch.no_grad():
        (fused,) = backbone(images)
        assert torch.allclose(model.decode_head.classifier(fused), model(images).logits, atol=1e-5)


def test_resnets_features_are_the_librarys(saved: Callable[[str], str]) -> None:
    model = ResNetForImageClassification.from_pretrained(saved("resnet")).eval()
    images = torch.randn(2, 3, 64, 96)
    backbone = build(saved("resnet"), adaptation="frozen").eval().backbone
    with torch.no_grad():
        expected = model(images, output_hidden_states=True).hidden_states[1:]
        for ours, theirs in zip(backbone(images), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_segformer_encoder_has_the_maps_of_its_four_stages(saved: Callable[[str], str]) -> None:
    model = SegformerForImageClassification.from_pretrained(saved("segformer-classifier")).eval()
    images = torch.randn(2, 3, 64, 96)
    backbone = build(saved("segformer-classifier"), adaptation="frozen").eval().backbone
    with torch.no_grad():
        maps = backbone(images)
        expected = model.segformer(images, output_hidden_states=True).hidden_states
    assert [tuple(map_.shape[1:]) for map_ in maps] == [(8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 2, 3)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["segformer", "resnet", "test_resnet"])
def test_weights_of_any_precision_run_in_fp32(
    saved: Callable[[str], str], tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    file = Path(saved(name).rpartition("@")[2])
    if file.is_dir():
        shutil.copytree(file, tmp_path, dirs_exist_ok=True)
        config = json.loads((file / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
        file, backbone = file / "model.safetensors", str(tmp_path)
    else:
        backbone = f"timm:{name}@{tmp_path / 'model.safetensors'}"
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in load_file(file).items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    network = build(backbone, adaptation="frozen")
    assert {value.dtype for value in network.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert network(torch.randn(1, 2, 40, 40)).isfinite().all()


@pytest.mark.skipif(not hasattr(peft.helpers, "disable_input_dtype_casting"), reason="this peft always casts")
def test_inputs_of_lora_are_not_cast_back_and_forth(saved: Callable[[str], str]) -> None:
    network = build(saved("segformer"), adaptation="lora").eval()
    slices = torch.randn(1, 2, 40, 40)
    layers = [module for module in network.modules() if hasattr(module, "cast_input_dtype_enabled")]
    assert layers
    outputs = []
    for is_cast in (False, True):
        assert not any(layer.cast_input_dtype_enabled for layer in layers) or is_cast
        for layer in layers:
            layer.cast_input_dtype_enabled = is_cast
            torch.nn.init.ones_(layer.lora_B["default"].weight)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            outputs.append(network(slices))
    assert torch.equal(*outputs)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With two threads torch 2.14 crashes in the bf16 gradient of ResNet's LoRA on a CPU with avx512_bf16."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "adaptation"), [("segformer", "lora"), ("resnet", "lora"), ("dinov2", "frozen")])
def test_frozen_weights_held_in_bf16_change_neither_outputs_nor_hashes(
    saved: Callable[[str], str], name: str, adaptation: str
) -> None:
    network, held = (build(saved(name), adaptation=adaptation) for _ in range(2))
    held.load_state_dict(network.state_dict())
    hold_frozen_weights(held, torch.bfloat16)
    assert any(p.dtype == torch.bfloat16 for p in held.parameters())
    assert {p.dtype for p in held.parameters() if p.requires_grad} == {torch.float32}
    slices = torch.randn(1, 2, 40, 40)
    gradients = []
    for each in (network, held):
        with torch.autocast("cpu", torch.bfloat16):
            loss = each(slices).float().square().mean()
        gradients.append(torch.autograd.grad(loss, [p for p in each.parameters() if p.requires_grad]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))
    assert frozen_hash(held) == frozen_hash(network)
    assert pretrained_hash(held.backbone) == pretrained_hash(network.backbone)


@pytest.mark.parametrize("name", ["segformer", "upernet-swin", "test_efficientnet"])
def test_a_backbone_is_measured_without_computing(saved: Callable[[str], str], name: str) -> None:
    network = build(saved(name))
    with sdpa_kernel(SDPBackend.MATH):  # torch does not count the arithmetic of the CPU's own attention
        real = measure_cost(lambda: network(torch.zeros(1, 2, 40, 40)).sum(), network)
    cost, fixed = slice_cost(network, (2, 40, 40), precision=None)
    assert (cost.forward, cost.backward) == (real.forward, real.backward)
    assert cost.saved + fixed == pytest.approx(real.saved, rel=0.05)
    half, _ = slice_cost(network, (2, 40, 40), precision=torch.bfloat16)
    assert 0.5 < half.saved / cost.saved < 0.8  # norms stay in fp32


def test_the_papers_preset_keeps_the_models_dropout(saved: Callable[[str], str]) -> None:
    for preset, is_same in (("paper", False), ("nnunet", True)):
        config = resolve(Layer("the test", {"backbone": saved("segformer"), "preset": preset}))
        assert same_in_eval(build_network_2d(config, in_channels=2, num_classes=3)) == is_same


def test_auto_means_lora_for_transformers_and_full_for_convolutional_networks(saved: Callable[[str], str]) -> None:
    def names(backbone: str) -> str:
        return build(saved(backbone)).description

    assert "(lora)" in names("segformer")
    assert "(full)" in names("resnet")


def test_a_model_without_feature_maps_is_refused(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(MNError, match="neither a model for semantic segmentation nor a backbone"):
        build(str(tmp_path))


def test_a_model_of_gray_images_is_refused(tmp_path: Path) -> None:
    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(MNError, match="takes 1-channel images; name a model that was trained on color images"):
        build(str(tmp_path))


@pytest.mark.parametrize("name", ["levit_128s", "mixer_s32_224"])
def test_a_timm_model_for_images_of_one_size_is_refused(name: str, tmp_path: Path) -> None:
    from nnunet_mn.networks.timm_backbones import timm

    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(timm.create_model(name).state_dict(), file)
    with pytest.raises(MNError, match=rf"'timm:{name}@.*' cannot take images of any size \(.*\d.*\); name another"):
        build(f"timm:{name}@{file}")


@pytest.mark.parametrize(
    ("name", "adaptation"),
    [("eva02_tiny_patch14_224", "lora"), ("swin_tiny_patch4_window7_224", "lora"), ("xcit_nano_12_p16_224", "lora")],
)
def test_timms_transformers_take_slices_of_any_size(name: str, adaptation: str, tmp_path: Path) -> None:
    from nnunet_mn.networks.timm_backbones import timm

    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(timm.create_model(name).state_dict(), file)
    network = build(f"timm:{name}@{file}", adaptation="auto")
    assert network.spec.adaptation == adaptation
    assert same_in_eval(network)
    slices = torch.randn(2, 2, 37, 91)
    with torch.no_grad():
        logits = network(slices)
        assert logits.shape == (2, 3, 37, 91)
        rebuilt = rebuild_network_2d(json.loads(json.dumps(network.spec.to_json())))
        rebuilt.load_state_dict(network.state_dict())
        assert torch.allclose(rebuilt(slices), logits, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_timms_own_dropout_is_off_unless_asked_for(dropout: float, tmp_path: Path) -> None:
    from nnunet_mn.networks.timm_backbones import timm

    file = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model("focalnet_tiny_srf").state_dict(), file)
    backbone = build(f"timm:focalnet_tiny_srf@{file}", dropout_2d=dropout, adaptation="full").backbone
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (*_, first), (*_, second) = backbone(images), backbone(images)
    assert torch.equal(first, second) is same_in_eval(backbone) is (dropout == 0)


def test_a_timm_model_that_does_not_give_its_maps_alone_is_refused(tmp_path: Path) -> None:
    from nnunet_mn.networks.timm_backbones import timm

    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("efficientvit_b0").state_dict(), file)
    with pytest.raises(MNError, match=r"does not give its feature maps alone \(Cannot disable pooling\); name another"):
        build(f"timm:efficientvit_b0@{file}")


def test_weights_that_timm_does_not_have_are_named() -> None:
    with pytest.raises(MNError, match=r"no weights 'resnet18\.bogus'; `timm.list_pretrained\('resnet18\.\*'\)` lists"):
        build("timm:resnet18.bogus")


def test_a_timm_model_without_a_tag_is_described(saved: Callable[[str], str]) -> None:
    backbone = build(saved("test_vit")).backbone
    del backbone.model.pretrained_cfg["tag"]
    assert recipe_of(backbone)["model"] == "test_vit"


def test_a_folder_of_timm_names_the_way_that_works(saved: Callable[[str], str], tmp_path: Path) -> None:
    shutil.copy(saved("test_resnet").partition("@")[2], tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet", "num_classes": 5}')
    with pytest.raises(MNError, match="was saved by timm and has no class in transformers; use timm:") as refused:
        build(str(tmp_path))
    assert build(str(refused.value).rpartition("use ")[2])


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/some/folder"])
def test_other_ways_of_timm_to_name_a_model_are_refused(name: str) -> None:
    with pytest.raises(MNError, match="use timm:NAME@FILE, with the 'architecture'"):
        build(f"timm:{name}")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", r"config\.json cannot be read as JSON"),
        ("[]", r"config\.json holds no JSON object"),
        ('{"model_type": "segformer", "hidden_sizes": "x"}', r"transformers cannot (read|load)"),
        ('{"model_type": "of-nobody"}', "transformers cannot read the configuration"),
        ('{"model_type": "segformer", "depths": [1]}', "transformers cannot (read|load)"),
    ],
)
def test_a_broken_configuration_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    segformer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(MNError, match=sentence):
        build(str(tmp_path))


def test_the_default_needs_neither_a_network_nor_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    network = build_network_2d(resolve(), in_channels=1, num_classes=2)
    assert "efficientnet-lite0 (full)" in network.description
    assert network.description.endswith("license of the weights: Apache-2.0")


def test_the_license_of_the_papers_network_is_said_when_it_is_loaded(
    saved: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = resolve(Layer("the test", {"preset": "paper"}))
    with pytest.raises(
        MNError, match=r"run `nnunet-mn weights fetch nvidia/segformer-b2\S+` .* 'efficientnet-lite0' .Apache"
    ):
        build_network_2d(config, in_channels=1, num_classes=2)
    model = tmp_path / "models--nvidia--segformer-b2-finetuned-ade-512-512"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved("segformer"), model / "snapshots" / ("0" * 40))
    description = build_network_2d(config, in_channels=1, num_classes=2).description
    assert "license of the weights: NVIDIA Source Code License: non-commercial use only" in description


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    segformer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    dropped = next(name for name in tensors if name.startswith("segformer."))
    del tensors[dropped]
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(MNError, match="lack 1 tensors"):
        build(str(tmp_path))


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    segformer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(MNError, match="is damaged"):
        build(str(tmp_path))


def test_a_folder_with_pickled_weights_alone_is_read_safely(tmp_path: Path) -> None:
    model = segformer()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({**model.state_dict(), "payload": nn.Linear(1, 1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MNError, match="could run code"):
        build(str(tmp_path))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert frozen_hash(build(str(tmp_path)))
