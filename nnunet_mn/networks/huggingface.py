"""Backbones from transformers: segmentation models with their decode head, and encoders as AutoBackbone loads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, AutoConfig
from transformers.utils import logging

from nnunet_mn.errors import MNError
from nnunet_mn.networks.backbone import Backbone, Facts, accepted_shape, probe_image
from nnunet_mn.networks.hub import image_statistics, model_folder
from nnunet_mn.networks.registry import find, license_of

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

    def __init__(self) -> None:
        super().__init__()
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
    config = _read_config(folder)
    if not dropout:
        _switch_off_dropout(config)
    is_segmenter = any(_SEGMENTER in architecture for architecture in config.architectures or ())
    # The mappings behind transformers' auto classes: AutoBackbone itself asks the hub even about a local folder.
    mapping = MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING if is_segmenter else MODEL_FOR_BACKBONE_MAPPING
    if type(config) not in mapping:
        raise MNError(
            f"'{name}' is a '{config.model_type}', neither a model for semantic segmentation nor a backbone with "
            "feature maps in transformers; use one such as SegFormer, UperNet, DINOv2, Swin or ConvNeXt"
        )
    if is_segmenter:
        config.use_auxiliary_head = False  # it serves the pretraining only
    else:
        _ask_for_stages(config)
    model = _load(mapping[type(config)], folder, config).eval()
    mean, std = image_statistics(folder) or _IMAGENET
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
    return Segmenter(model, facts) if is_segmenter else Encoder(model, facts)


def _read_config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise MNError(
            f"transformers cannot read the configuration in {folder} ({str(error).partition(chr(10))[0]}); "
            "name a model of transformers itself, one without code of others"
        ) from error


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
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise MNError(
            f"transformers cannot load the model in {folder} ({str(error).partition(chr(10))[0]}); "
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
    """A size in pixels from the configuration of a model or of its backbone; None if neither has it."""
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
    tap = _Tap()
    setattr(model.get_submodule(parent), child, tap)
    return tap
