"""Every setting of M&N in one frozen dataclass, and the layers behind it."""

import os
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, NamedTuple

from nnunet_mn.errors import MNError

ENVIRONMENT_PREFIX = "nnUNet_mn_"
ENVIRONMENT = f"the environment ({ENVIRONMENT_PREFIX}<field>)"
Precision = Literal["auto", "fp16", "bf16", "fp32"]
BatchKind = Literal["replace", "add"]
Guidance = Literal["number", "weight"]
Rounding = Literal["auto", "diffusion", "floor"]
ScheduleKind = Literal["poly", "cosine"]
UNLABELED_SOURCES = ("split", "imagesUn", "imagesTs")

# A preset is a set of other defaults: whatever the user sets still wins over it.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "nnunet": MappingProxyType({}),
        "paper": MappingProxyType(
            {
                "backbone": "nvidia/segformer-b2-finetuned-ade-512-512",
                "adaptation": "lora",
                "schedule": "cosine",
                "loss": "paper",
                "batch": "replace",
                "rounding": "floor",
                "lr_3d": 1e-4,
                "dropout_2d": 0.1,
                "teacher": "other",
                "slice_axes": "first",
                "slice_step": 1,
                "foreground_share": 0.5,
            },
        ),
    }
)

# Settings of earlier versions, and their replacements.
REMOVED: Mapping[str, str] = MappingProxyType(
    {
        "batch_statistics": "those of the pretrained encoder are always kept; build_network_2d has an argument for it",
        "copy_paste": "boxes of labeled samples are no longer pasted into unlabeled ones",
        "gradient_checkpointing": "slices_per_forward bounds the memory of the 2D network",
        "lora_alpha": "it equals lora_rank",
        "lora_dropout": "dropout_2d takes its place",
        "unlabeled_share": "the share grows as the learning rate decays; a subclass may override Schedule",
    }
)


class Layer(NamedTuple):
    """Some settings, and their source for messages."""

    source: str
    values: Mapping[str, Any]


def _range(low: float, high: float, *, low_open: bool = False, high_open: bool = False) -> dict[str, Any]:
    """Metadata of a number between two bounds."""
    allowed = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"

    def check(value: float) -> bool:
        above = value > low if low_open else value >= low
        return above and (value < high if high_open else value <= high)

    return {"check": check, "allowed": f"a number in {allowed}"}


_NAME = {"check": lambda value: value.strip() != "", "allowed": "a name, an id or a folder, of type str"}
_SEED = {"check": lambda value: 0 <= value < 2**32, "allowed": f"an integer from 0 to {2**32 - 1}"}
_POSITIVE = {"check": lambda value: value >= 1, "allowed": "an integer of at least 1"}


@dataclass(frozen=True, kw_only=True)
class MNConfig:
    """The settings of one training.

    Args:
        backbone: the 2D network: a name of the registry, a Hugging Face id or a local folder.
        adaptation: the trained weights of its encoder: `lora` (low-rank updates), `full`, `frozen` (none), or `auto`:
            `lora` for transformers and `full` for convolutional networks.
        preset: a set of defaults for the other settings: `nnunet` keeps nnU-Net's, `paper` takes the paper's. `resolve`
            applies it. The constructor only notes its name.
        optimizer_3d: optimizer of the 3D network: `adamw`, or nnU-Net's `sgd`.
        schedule: schedule of the learning rate: nnU-Net's `poly`, or `cosine` as in the paper's code: a warm-up, then
            one cosine in each stage.
        loss: Dice and cross entropy: nnU-Net's (`nnunet`), or the paper's with squared denominators (`paper`).
        batch: unlabeled samples come on top of the planned batch (`add`), or `replace` labeled samples in it, as in the
            paper. With `add` they go through the networks after the labeled ones, in the same optimizer step.
        guidance: what grows as the learning rate decays: the `number` of unlabeled samples, or their `weight` in the
            loss (only with `add`). With `weight` their number is half the planned batch.
        unlabeled_weight: only with `add`: the weight of the unlabeled samples' loss when there are as many of them as
            labeled samples, whose loss has weight 1. With fewer it is proportionally smaller. With `guidance=weight` it
            is what the weight reaches at the end, with half as many of them. None: 1 with up to 8 labeled cases, with
            more the square of 8 / their number.
        rounding: how the unlabeled share becomes a number of samples: `floor` is the paper's code, `diffusion` carries
            the error to the next batch, and `auto` is `floor` for batches of four and more, else `diffusion`.
        supervised_fraction: share of the iterations with labeled samples only, at the start.
        lr_2d: peak learning rate of the 2D network.
        lr_3d: of the 3D network; None means 1e-3 with `adamw` and nnU-Net's 1e-2 with `sgd`.
        lora_rank: of the low-rank updates, and their scale.
        dropout_2d: of the low-rank updates. At 0 the pretrained model's own dropout is off, too.
        teacher: who makes the pseudo-masks: `both` networks by their mean, or for each network only the `other` one, as
            in the paper.
        teacher_folder: only for `nnUNetTrainerMNStudent`: the folder of its teacher, a joint model or an M&N training.
            None: the one with the same dataset, plans and configuration.
        student_masks: only for `nnUNetTrainerMNStudent`: soft masks of each augmented sample, made in each step
            (`online`), or hard masks of whole cases, made once (`stored`). With `stored`, samples with these masks
            replace half of each labeled batch.
        slice_axes: axes along which the 2D network sees a volume: the `first` (of largest spacing), as in the paper, or
            `auto`: all three if voxels are nearly cubes, else the first. With three axes each step draws one axis at
            random for teaching, and one for learning.
        slice_step: the 2D network learns from every n-th slice of a sample; the first slice is random. It teaches on
            all slices.
        slices_per_forward: most slices computed at once, to bound memory; None: see `slices.SliceWise`. It changes
            results by rounding only, unless dropout is on.
        precision: of the forward passes: `fp16`, `bf16`, `fp32`, or `auto`: `bf16` on CUDA cards with bf16, `fp16` on
            older ones, `fp32` elsewhere. Losses are always fp32.
        epochs, iterations_per_epoch, val_iterations_per_epoch: None means nnU-Net's.
        unlabeled_sources: places to search. None means `split` and `imagesUn`, and `imagesTs` if these hold none.
        foreground_crops: crops of unlabeled cases are centered on foreground as often as those of labeled ones, by
            pseudo-masks of the 3D network.
        foreground_share: share of the crops with foreground; None means nnU-Net's third.
        checkpoint_every: epochs between two writings of `checkpoint_latest.pth`.
        join: write the joint model of both networks when the training ends, as `nnunet-mn join` does.
        seed: of every random generator; None means nnU-Net's behavior (not seeded).
        trust_checkpoints: load checkpoints that hold more than nnU-Net and M&N write, which can run code. Only the
            environment may set it.

    Raises:
        MNError: when a value has the wrong type or lies out of its range.
    """

    backbone: str = field(default="efficientnet-lite0", metadata=_NAME)
    adaptation: Literal["auto", "lora", "full", "frozen"] = "auto"
    preset: Literal["nnunet", "paper"] = "nnunet"
    optimizer_3d: Literal["adamw", "sgd"] = "adamw"
    schedule: ScheduleKind = "poly"
    loss: Literal["nnunet", "paper"] = "nnunet"
    batch: BatchKind = "add"
    guidance: Guidance = "number"
    unlabeled_weight: float | None = field(default=None, metadata=_range(0, 1, low_open=True))
    rounding: Rounding = "auto"
    supervised_fraction: float = field(default=0.125, metadata=_range(0, 1, high_open=True))
    lr_2d: float = field(default=1e-3, metadata=_range(0, 10, low_open=True))
    lr_3d: float | None = field(default=None, metadata=_range(0, 10, low_open=True))
    lora_rank: int = field(default=64, metadata=_POSITIVE)
    dropout_2d: float = field(default=0.0, metadata=_range(0, 1, high_open=True))
    teacher: Literal["both", "other"] = "both"
    teacher_folder: str | None = field(default=None, metadata=_NAME)
    student_masks: Literal["online", "stored"] = "online"
    slice_axes: Literal["auto", "first"] = "auto"
    slice_step: int = field(default=8, metadata=_POSITIVE)
    slices_per_forward: int | None = field(default=None, metadata=_POSITIVE)
    precision: Precision = "auto"
    epochs: int | None = field(default=None, metadata=_POSITIVE)
    iterations_per_epoch: int | None = field(default=None, metadata=_POSITIVE)
    val_iterations_per_epoch: int | None = field(default=None, metadata=_POSITIVE)
    unlabeled_sources: tuple[str, ...] | None = field(
        default=None,
        metadata={
            "check": lambda value: len(value) > 0 and set(value) <= set(UNLABELED_SOURCES),
            "allowed": f"a comma-separated choice of {', '.join(UNLABELED_SOURCES)}",
        },
    )
    foreground_crops: bool = True
    foreground_share: float | None = field(default=None, metadata=_range(0, 1))
    checkpoint_every: int = field(default=5, metadata=_POSITIVE)
    join: bool = False
    seed: int | None = field(default=None, metadata=_SEED)
    trust_checkpoints: bool = False

    def __post_init__(self) -> None:
        for name in _FIELDS:
            _check(name, getattr(self, name), source="MNConfig")
        if self.guidance == "weight" and self.batch == "replace":
            raise MNError(
                "'guidance' is 'weight', but with batch 'replace' (the default of preset 'paper') unlabeled samples "
                "have no weight of their own: set batch to 'add', or guidance to 'number'"
            )
        if self.unlabeled_weight is not None and self.batch == "replace":
            raise MNError(
                f"'unlabeled_weight' is {self.unlabeled_weight}, but with batch 'replace' (the default of preset "
                f"'paper') unlabeled samples have no weight of their own: set batch to 'add', or leave "
                f"unlabeled_weight out"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as a plain dict of numbers, strings and lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


_FIELDS = {f.name: f for f in fields(MNConfig)}
_TYPES: dict[str, Any] = typing.get_type_hints(MNConfig)


def resolve(*layers: Layer) -> MNConfig:
    """Build a configuration from layers over the defaults of their preset. Later layers win.

    >>> resolve(Layer("the shell", {"preset": "paper", "lr_2d": "5e-4"})).teacher
    'other'

    Args:
        layers: settings and their sources, in rising order of precedence; strings are converted to a field's type.

    Raises:
        MNError: naming the field, the value, the layer's source and the allowed values.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        for name, raw in layer.values.items():
            if why := REMOVED.get(name.lower()):
                raise MNError(f"{layer.source} sets '{name}' to {raw!r}, but M&N no longer has it: {why}")
            if name not in _FIELDS:
                near = get_close_matches(name.lower(), _FIELDS, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(_FIELDS)}"
                raise MNError(f"{layer.source} sets '{name}' to {raw!r}, but M&N has no such field; {hint}")
            values[name] = _check(name, _convert(name, raw), source=layer.source)
            if name == "trust_checkpoints" and values[name] and layer.source != ENVIRONMENT:  # plans come from anybody
                raise MNError(
                    f"{layer.source} sets '{name}', but only {ENVIRONMENT} may do that: remove it there, and set the "
                    f"variable nnUNet_mn_{name} if you trust the checkpoint"
                )
    defaults = dict(PRESETS[values.get("preset", _FIELDS["preset"].default)])
    if values.get("optimizer_3d") == "sgd":
        defaults.pop("lr_3d", None)  # the paper's rate is for AdamW
    return MNConfig(**{**defaults, **values})


def environment_layer(environ: Mapping[str, str] = os.environ) -> Layer:
    """The settings in environment variables named `nnUNet_mn_<field>`. `resolve` refuses those without such a field.

    Raises:
        MNError: if upper and lower case, underscores or hyphens in a name are not as here: the setting would be lost
            without a word.
    """
    names = {_letters(f"{ENVIRONMENT_PREFIX}{name}"): f"{ENVIRONMENT_PREFIX}{name}" for name in _FIELDS}
    for name in environ:
        if (right := names.get(_letters(name), name)) != name:
            raise MNError(f"the environment sets {name}, which M&N does not read: name it {right}")
    prefix = ENVIRONMENT_PREFIX.lower()
    found = {name[len(prefix) :]: value for name, value in environ.items() if name.lower().startswith(prefix)}
    return Layer(ENVIRONMENT, found)


def _letters(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _options(name: str) -> tuple[tuple[Any, ...], bool]:
    """The types or literal values a field accepts, and whether None is one of them."""
    annotation = _TYPES[name]
    parts = typing.get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return tuple(p for p in parts if p is not NoneType), NoneType in parts


def _convert(name: str, raw: Any) -> Any:
    """Turn a string from the environment, or a list from JSON, into the field's type; leave the rest for `_check`."""
    (kind,), optional = _options(name)
    if typing.get_origin(kind) is tuple:
        parts = [part.strip() for part in raw.split(",")] if isinstance(raw, str) else raw
        none = optional and isinstance(raw, str) and raw.lower() == "none"
        return None if none else tuple(parts) if isinstance(parts, (list, tuple)) else parts
    if isinstance(raw, str):
        if optional and raw.lower() == "none":
            return None
        if kind is bool and raw.lower() in ("true", "1", "false", "0"):
            return raw.lower() in ("true", "1")
        if kind in (int, float):
            try:
                return kind(raw)
            except ValueError:
                return raw  # `_check` names the allowed values
    return float(raw) if kind is float and type(raw) is int else raw


def _check(name: str, value: Any, *, source: str) -> Any:
    """Return the value if the field accepts it."""
    (kind,), optional = _options(name)
    allowed = _FIELDS[name].metadata.get("allowed", "true or false" if kind is bool else f"of type {kind.__name__}")
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        allowed, fits = f"one of {', '.join(choices)}", value in choices
    elif typing.get_origin(kind) is tuple:
        fits = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
    else:
        kinds = (int, float) if kind is float else kind
        fits = isinstance(value, kinds) and not (kind is not bool and isinstance(value, bool))
    check = _FIELDS[name].metadata.get("check")
    if (value is None and optional) or (fits and (check is None or check(value))):
        return value
    raise MNError(
        f"{source} sets '{name}' to {value!r}; allowed is {allowed}{' or None (the default)' if optional else ''}"
    )
