"""A backbone without its weights: the facts of its library that build it again."""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from nnunet_mn.errors import MNError
from nnunet_mn.networks.backbone import Backbone, Facts

Recipe = dict[str, Any]

_TIMM = "timm_backbones"


def recipe_of(backbone: Backbone) -> Recipe:
    """The recipe of a backbone, as plain JSON: our class for it, and the library's model with its configuration."""
    kind = type(backbone)
    module = kind.__module__.rpartition(".")[2]
    recipe = {"module": module, "kind": kind.__name__}
    if module == _TIMM:
        published = backbone.model.pretrained_cfg
        return {**recipe, "model": ".".join(filter(None, (published["architecture"], published["tag"])))}
    config = json.loads(backbone.model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)  # a folder of this machine
    return {**recipe, "model": type(backbone.model).__name__, "config": config}


def empty_backbone(recipe: Mapping[str, Any], facts: Facts) -> Backbone:
    """Build a backbone with random weights. It reads no file and opens no connection.

    Args:
        recipe: of `recipe_of`.
        facts: of the same backbone.

    Raises:
        MNError: when the installed library has no such model.
    """
    module = import_module(f"nnunet_mn.networks.{recipe['module']}")  # a library takes seconds to import
    kind = getattr(module, recipe["kind"], None)
    if not (isinstance(kind, type) and issubclass(kind, Backbone)):
        raise MNError(f"this version of nnunet-mn has no backbone '{recipe['kind']}'; install the one that joined")
    make = _of_timm if recipe["module"] == _TIMM else _of_transformers
    return kind(make(recipe).eval(), facts)


def _of_timm(recipe: Mapping[str, Any]) -> Any:
    from nnunet_mn.networks.timm_backbones import create

    return create(recipe["model"])


def _of_transformers(recipe: Mapping[str, Any]) -> Any:
    import transformers

    found: Any = getattr(transformers, recipe["model"], None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if not is_model:
        raise MNError(f"transformers {transformers.__version__} has no model '{recipe['model']}'; install a newer one")
    config = dict(recipe["config"])
    config_class = transformers.CONFIG_MAPPING[config.pop("model_type")]
    return found._from_config(config_class.from_dict(config)).float()
