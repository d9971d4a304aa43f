"""The files of a model on this machine, in the Hugging Face cache or a local folder, and their download."""

import errno
from math import isfinite
from numbers import Real
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError
from safetensors import SafetensorError, safe_open

from nnunet_mn.errors import MNError
from nnunet_mn.networks.files import read_json, refuse_pointer
from nnunet_mn.networks.registry import EMBEDDED, license_of
from nnunet_mn.networks.weights import read_tensors

CONFIG = "config.json"
_PROCESSOR = "preprocessor_config.json"
_NOT_STORED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
# In the order of preference, since safetensors cannot hold code: one file, an index of shards, the shards.
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)


def model_folder(source: str, *, name: str) -> Path:
    """The folder of a model's files; they are fetched if they are neither local nor cached.

    Args:
        source: a local folder or a Hugging Face id.
        name: the user's name of it, for messages.

    Raises:
        MNError: when they are not here and cannot be fetched, or are damaged.
    """
    if Path(source).is_dir():
        folder = Path(source)
        here = {CONFIG: (folder / CONFIG).is_file(), "model.safetensors": bool(weight_files(folder))}
        if missing := " and ".join(file for file, is_here in here.items() if not is_here):
            raise MNError(
                f"The folder {folder} holds no model that save_pretrained wrote: it lacks {missing}; name another "
                "folder, or weights of timm by timm:NAME@FILE"
            )
    else:
        folder = cached_folder(source) or fetch(source, name=name)
    for path in weight_files(folder):
        check_file(path)
    return folder


def cached_folder(source: str) -> Path | None:
    """The folder of a complete Hugging Face model in the cache, or None; opens no connection."""
    try:
        config = try_to_load_from_cache(source, CONFIG)
    except HFValidationError:
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    files = weight_files(folder)
    return folder if files and all(path.is_file() for path in files) else None


def fetch(source: str, *, name: str, to: Path | None = None) -> Path:
    """Download a model's configuration and weights.

    Args:
        source: a Hugging Face id.
        name: the user's name of it, for messages.
        to: a folder; None means the Hugging Face cache.

    Raises:
        MNError: when there is no connection or no such model, or when the files cannot be stored.
    """
    for weights in _WEIGHTS:
        try:
            files = [CONFIG, _PROCESSOR, *weights]
            folder = Path(huggingface_hub.snapshot_download(source, allow_patterns=files, local_dir=to))
        except Exception as error:  # by its version the hub lets errors of requests or of httpx through
            raise _not_fetched(error, source, name=name, to=to) from error
        if (folder / CONFIG).is_file() and weight_files(folder):
            return folder
    raise MNError(f"{source} has no {CONFIG} with weights as safetensors or state dict; name another model")


def _not_fetched(error: Exception, source: str, *, name: str, to: Path | None) -> MNError:
    if isinstance(error, OSError) and error.errno in _NOT_STORED:
        other = "set HF_HUB_CACHE to" if to is None else "give"
        return MNError(
            f"The weights of '{name}' cannot be stored in {error.filename or to or constants.HF_HUB_CACHE} "
            f"({error.strerror}); free space or check the rights there, or {other} another folder"
        )
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "there is no connection, or no such model"
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    return MNError(
        f"The weights of '{name}' are not on this machine and could not be fetched from {source} ({reason}: "
        f"{first_line}); run `nnunet-mn weights fetch {name}` on a machine with internet, or use the embedded "
        f"backbone '{EMBEDDED}' ({license_of(EMBEDDED)})"
    )


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights, in their preferred format; empty if there are none.

    Raises:
        MNError: when they are shards and their index cannot be read.
    """
    names = (name for single, index, _ in _WEIGHTS for name in (single, index))
    best = next((folder / name for name in names if (folder / name).is_file()), None)
    if best is None:
        return []
    if best.suffix != ".json":
        return [best]
    shards = read_json(best).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise MNError(f"{best} has no 'weight_map' from tensors to files; fetch it again")
    return [folder / shard for shard in sorted(set(shards.values()))]


def check_file(path: Path) -> None:
    """Refuse a truncated weight file, or one with more than tensors in it, before a library opens it."""
    if not path.is_file():
        raise MNError(
            f"The index of shards in {path.parent} names {path.name}, which is missing; fetch the model again"
        )
    if path.suffix != ".safetensors":
        read_tensors(path)
        return
    try:
        refuse_pointer(path)
        with safe_open(path, framework="pt"):  # reads the header and compares it with the file's length
            pass
    except (SafetensorError, OSError) as error:
        raise MNError(f"{path} is damaged or no weight file ({error}); fetch it again") from error


def image_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of the pixels a model was trained on, if its folder says so.

    Raises:
        MNError: when the file about them is broken.
    """
    path = folder / _PROCESSOR
    if not path.is_file():
        return None
    found = read_json(path)
    if not found.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (_per_channel(found.get(name)) for name in ("image_mean", "image_std"))
    if mean is None and std is None:
        return None
    if not mean or not std or min(std) <= 0:
        raise MNError(
            f"{path} has image_mean {found.get('image_mean')!r} and image_std {found.get('image_std')!r}, not three "
            "numbers each, the latter above 0; correct or remove it"
        )
    return mean, std


def _per_channel(value: object) -> tuple[float, ...] | None:
    """Numbers of three channels: one number means all. None if nothing is given; empty if it is anything else."""
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value] * 3
    is_right = len(numbers) == 3 and all(isinstance(number, Real) and isfinite(number) for number in numbers)
    return tuple(map(float, numbers)) if is_right else ()
