"""Backbones from transformers: segmentation models with their decode head, and encoders as AutoBackbone loads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    SegformerConfig,
    SegformerModel,
)
from transformers.utils import logging

from nnunet_mn.errors import MNError
from nnunet_mn.networks.backbone import Backbone, Facts, accepted_shape, probe_image
from nnunet_mn.networks.files import read_json
from nnunet_mn.networks.hub import CONFIG, image_statistics, model_folder, weight_files
from nnunet_mn.networks.registry import TIMM, find, license_of

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PLAIN_STAGES = 6  # more stages than this are the layers of a plain transformer; four of them are taken
_SEGMENTER = "ForSemanticSegmentation"
# AutoBackbone adds norms to the outputs of its stages; no checkpoint of a classifier has them.
_NEW_IN_BACKBONES = "hidden_states_norms."


class Encoder(Backbone):
    """A backbone of transformers: images -> the feature maps of its stages."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.model(images).feature_maps)

    @property
    def encoder(self) -> nn.Module:
        model: nn.Module = self.model
        return model


class StageEncoder(Encoder):
    """A SegFormer without its decode head, which AutoBackbone does not know: images -> the maps of its four stages."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.model(images, output_hidden_states=True).hidden_states)


class Segmenter(Backbone):
    """A segmentation model of transformers: images -> the input of its classifier, made by its decode head."""

    def __init__(self, model: nn.Module, facts: Facts) -> None:
        super().__init__(model, facts)
        self._tap = _replace_classifier(model, facts)

    def forward(self, images: Tensor) -> list[Tensor]:
        self.model(images)
        return [self._tap.take()]

    @property
    def encoder(self) -> nn.Module:
        # UperNet has a `backbone`; the other models name their encoder by `base_model_prefix`.
        found = getattr(self.model, "backbone", None)
        encoder: nn.Module = found if isinstance(found, nn.Module) else self.model.base_model
        return encoder

    @property
    def is_decoded(self) -> bool:
        return True


class _Tap(nn.Module):
    """Takes the place of a classifier and keeps its input."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        for size in ("stride", "kernel_size", "dilation"):  # MobileNet pads by them
            setattr(self, size, getattr(classifier, size, None))
        self._seen: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        self._seen = features
        return features[:, :1]  # the model goes on with one channel, nearly for free

    def take(self) -> Tensor:
        """The features; this object forgets them."""
        features, self._seen = self._seen, None
        if features is None:
            raise RuntimeError("the segmentation model did not reach its classifier")
        return features


def load_huggingface(name: str, *, dropout: bool) -> Backbone:
    """Load a model of the hub, of its cache or of a local folder.

    Args:
        name: of the registry, a Hugging Face id, or a folder written by save_pretrained.
        dropout: whether the model's own dropout and drop path stay on in training.

    Raises:
        MNError: when its files are missing or damaged, or its kind of model has no feature maps.
    """
    entry = find(name)
    source = entry.source if entry is not None else name
    folder = model_folder(source, name=name)
    _refuse_timm(folder, name)
    mean, std = image_statistics(folder) or _IMAGENET
    config = _read_config(folder)
    if not dropout:
        _switch_off_dropout(config)
    _refuse_other_channels(config, name)
    kind, model_class = _classes(config, name)
    model = _load(model_class, folder, config).float().eval()  # transformers 5 keeps the precision of the file
    patch = _size(config, "patch_size") or 1
    facts = Facts(
        name=name,
        license=license_of(source),
        kind=entry.kind if entry is not None else None,
        mean=mean,
        std=std,
        patch=patch,
        shape=accepted_shape(model, patch=patch, image_size=_size(config, "image_size")),
    )
    return kind(model, facts)


def _refuse_timm(folder: Path, name: str) -> None:
    content = read_json(folder / CONFIG)
    if "architecture" in content and "model_type" not in content:
        raise MNError(
            f"'{name}' was saved by timm and has no class in transformers; use "
            f"{TIMM}{content['architecture']}@{weight_files(folder)[0]}"
        )


def _read_config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers may raise anything about a broken configuration
        raise MNError(
            f"transformers cannot read the configuration in {folder / CONFIG} ({_first_line(error)}); "
            "name a model of transformers itself, one without code of others"
        ) from error


def _refuse_other_channels(config: Any, name: str) -> None:
    channels = _size(config, "num_channels")
    if channels not in (None, 3):
        raise MNError(f"'{name}' takes {channels}-channel images; name a model that was trained on color images")


def _first_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__


def _classes(config: Any, name: str) -> tuple[type[Backbone], Any]:
    """Our class and transformers' class for a configuration; ask it for the feature maps in use."""
    architectures = list(config.architectures or ())
    # The mappings behind transformers' auto classes: AutoBackbone itself asks the hub even about a local folder.
    if any(_SEGMENTER in architecture for architecture in architectures):
        if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            config.use_auxiliary_head = False  # it serves the pretraining only
            return Segmenter, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[type(config)]
    elif type(config) is SegformerConfig:
        config.reshape_last_stage = True
        return StageEncoder, SegformerModel
    elif type(config) in MODEL_FOR_BACKBONE_MAPPING:
        _ask_for_stages(config)
        return Encoder, MODEL_FOR_BACKBONE_MAPPING[type(config)]
    raise MNError(
        f"'{name}' is a '{config.model_type}' ({', '.join(architectures) or 'no architecture is named'}), neither a "
        "model for semantic segmentation nor a backbone with feature maps in transformers: AutoBackbone has no class "
        "for it; use one such as SegFormer, UperNet, DINOv2, Swin or ConvNeXt, or weights of timm by timm:NAME@FILE"
    )


def _ask_for_stages(config: Any) -> None:
    """Ask for all stages of a hierarchical encoder, or four layers of a plain transformer at equal distances."""
    stages = list(config.stage_names)[1:]  # the first is the stem
    if len(stages) > _PLAIN_STAGES:
        stages = [stages[round(len(stages) * quarter / 4) - 1] for quarter in (1, 2, 3, 4)]
    config.out_features = stages


def _load(model_class: Any, folder: Path, config: Any) -> nn.Module:
    """Let transformers load weights from checked files; every tensor must come from them.

    Its own reading is restricted to tensors too: `weights_only` is its default since 4.41, but no argument there.
    """
    try:
        with _quietly():
            model, report = model_class.from_pretrained(
                str(folder),
                config=config,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers may raise anything about a broken model
        raise MNError(
            f"transformers cannot load the model in {folder} ({_first_line(error)}); "
            "name another model or fetch it again"
        ) from error
    missing = [key for key in sorted(report["missing_keys"]) if _NEW_IN_BACKBONES not in key]
    if missing:
        raise MNError(
            f"The weights in {folder} lack {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]}; "
            "name a model with complete weights"
        )
    loaded: nn.Module = model
    return loaded


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers silent about the classifier and auxiliary head: they are left out on purpose."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _switch_off_dropout(config: Any) -> None:
    """Set every dropout and drop-path rate to 0: a student's pass is then the teacher's too."""
    for key, value in list(vars(config).items()):
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    if hasattr(getattr(config, "backbone_config", None), "to_dict"):
        _switch_off_dropout(config.backbone_config)


def _size(config: Any, field: str) -> int | None:
    """A size, in pixels or channels, from the configuration of a model or of its backbone; None if neither has it."""
    size = getattr(config, field, None) or getattr(getattr(config, "backbone_config", None), field, None)
    return max(size) if isinstance(size, (tuple, list)) else size


def _replace_classifier(model: nn.Module, facts: Facts) -> _Tap:
    """Put a tap in place of the last layer to run: in every segmentation model, the classifier."""
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        model(probe_image(facts))
    for hook in hooks:
        hook.remove()
    name = next(name for name, module in model.named_modules() if module is ran[-1])
    parent, _, child = name.rpartition(".")
    tap = _Tap(ran[-1])
    setattr(model.get_submodule(parent), child, tap)
    return tap
