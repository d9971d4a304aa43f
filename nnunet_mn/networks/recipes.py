"""A backbone without its weights: facts of its library, to build it again."""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from nnunet_mn.errors import MNError
from nnunet_mn.networks.backbone import Backbone, Facts

Recipe = dict[str, Any]


def recipe_of(backbone: Backbone) -> Recipe:
    """The recipe of a backbone, as plain JSON: our class for it, and the library's model with its configuration.

    A backbone of another library has a recipe that `empty_backbone` refuses.
    """
    kind = type(backbone)
    recipe = {"module": kind.__module__.rpartition(".")[2], "kind": kind.__name__}
    describe = {"timm_backbones": _describe_timm, "huggingface": _describe_transformers}.get(recipe["module"])
    return recipe if describe is None else {**recipe, **describe(backbone.model)}


def empty_backbone(recipe: Mapping[str, Any], facts: Facts) -> Backbone:
    """Build a backbone with random weights. It reads no file and opens no connection.

    Args:
        recipe: of `recipe_of`.
        facts: of the same backbone.

    Raises:
        MNError: when the installed library has no such model.
    """
    make = {"timm_backbones": _make_timm, "huggingface": _make_transformers}.get(recipe["module"])
    module = import_module(f"nnunet_mn.networks.{recipe['module']}") if make is not None else None
    kind = getattr(module, recipe["kind"], None)
    if make is None or not (isinstance(kind, type) and issubclass(kind, Backbone)):
        raise MNError(
            f"nnunet-mn here cannot build the backbone '{recipe['kind']}' of '{facts.name}' without its pretrained "
            f"weights; install the version that trained it, or predict with the 3D network alone"
        )
    return kind(make(recipe).eval(), facts)


def _describe_timm(model: Any) -> Recipe:
    published = model.pretrained_cfg
    return {"model": ".".join(filter(None, (published["architecture"], published.get("tag"))))}


def _make_timm(recipe: Mapping[str, Any]) -> Any:
    from nnunet_mn.networks.timm_backbones import create  # a library takes seconds to import

    return create(recipe["model"])


def _describe_transformers(model: Any) -> Recipe:
    config = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)  # a folder of this machine
    return {"model": type(model).__name__, "config": config}


def _make_transformers(recipe: Mapping[str, Any]) -> Any:
    import transformers

    found: Any = getattr(transformers, recipe["model"], None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if not is_model:
        raise MNError(f"transformers {transformers.__version__} has no model '{recipe['model']}'; install a newer one")
    config = dict(recipe["config"])
    config_class = transformers.CONFIG_MAPPING[config.pop("model_type")]
    return found._from_config(config_class.from_dict(config)).float()
