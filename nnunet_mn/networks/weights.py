"""Read weight files without running code from them, and check them against a network."""

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nnunet_mn.errors import MNError
from nnunet_mn.networks.files import refuse_pointer

_REMEDY = "use the backbone and adaptation that they were made for"
_SHOWN = 3  # differing tensors in a message
_HASHES: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a weight file, by name.

    Args:
        path: a `.safetensors` file, or a file of torch.save with tensors and plain containers alone.

    Raises:
        MNError: when the file is missing, truncated, a pointer of git-lfs, or holds anything but tensors.
    """
    if not path.is_file():
        raise MNError(f"There is no weight file at {path}; name an existing file or folder")
    try:
        refuse_pointer(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MNError:
        raise
    except pickle.UnpicklingError as error:
        raise MNError(
            f"{path} was not loaded: it holds pickled objects besides tensors, and those could run code; "
            "save its state dict as .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise MNError(f"{path} is damaged or no weight file ({_first_line(error)}); fetch it again") from error
    return _state_dict(content, path)


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Look through the usual wrappers of a checkpoint for its tensors."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise MNError(f"{path} holds no state dict (a mapping of names to tensors); save one there")
    return dict(content)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def check_fit(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str, remedy: str = _REMEDY
) -> None:
    """Compare the names and shapes of weights with a network's.

    Args:
        state: the weights.
        expected: the network's.
        source: of the weights, for the message.
        remedy: for unfit weights, for the message.

    Raises:
        MNError: when any differ; it names the first of them.
    """
    differing = [
        f"{name} ({_shape(state, name)} instead of {_shape(expected, name)})"
        for name in sorted(state.keys() | expected.keys())
        if name not in state or name not in expected or state[name].shape != expected[name].shape
    ]
    _refuse(differing, source, remedy)


def renamed_by_order(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Give weights the names of a network with the same tensors in the same order.

    Raises:
        MNError: when the number of tensors or a shape differs; it names the first of them.
    """
    differing = [
        f"{mine or 'nothing'} ({_shape(state, mine)}) for {theirs or 'nothing'} ({_shape(expected, theirs)})"
        for mine, theirs in zip_longest(state, expected)
        if mine is None or theirs is None or state[mine].shape != expected[theirs].shape
    ]
    _refuse(differing, source)
    return dict(zip(expected, state.values(), strict=True))


def _shape(tensors: Mapping[str, Tensor], name: str | None) -> str:
    return "absent" if name is None or name not in tensors else "x".join(map(str, tensors[name].shape)) or "a number"


def _refuse(differing: list[str], source: str, remedy: str = _REMEDY) -> None:
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise MNError(
            f"The weights from {source} do not fit the network: {', '.join(differing[:_SHOWN])}{more}; {remedy}"
        )


def hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A short hash of named tensors, the same in every process and on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def learned_state(network: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and all buffers: the tensors changed by training."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: tensor.detach() for name, tensor in network.state_dict().items() if name not in frozen}


def load_learned_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back the tensors of `learned_state`.

    Raises:
        MNError: naming the first differing tensors.
    """
    check_fit(state, learned_state(network), source="the checkpoint's 2D network")
    with torch.no_grad():
        for name, tensor in learned_state(network).items():
            tensor.copy_(state[name])


def frozen_hash(network: nn.Module) -> str:
    """A hash of the frozen weights, the same in every process. It is found anew only after a change of them."""
    return _hash_once(network, _frozen(network))


def pretrained_hash(backbone: nn.Module) -> str:
    """A hash of all weights and buffers but those of LoRA: of the pretrained ones, before any training."""
    return _hash_once(backbone, _pretrained(backbone))


@contextmanager
def with_the_same_hashes(network: nn.Module, backbone: nn.Module) -> Iterator[None]:
    """Keep both hashes, whatever happens to the weights inside: for another precision of the same weights."""
    known = frozen_hash(network), pretrained_hash(backbone)
    yield
    for owner, tensors, value in zip(
        (network, backbone), (_frozen(network), _pretrained(backbone)), known, strict=True
    ):
        _HASHES[owner] = _versions(tensors), value


def _frozen(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in network.named_parameters() if not p.requires_grad]


def _pretrained(backbone: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in backbone.state_dict().items() if "lora_" not in name]


def _versions(tensors: Iterable[tuple[str, Tensor]]) -> object:
    return tuple((name, t.data_ptr(), t._version) for name, t in tensors)  # torch counts the changes of a tensor


def _hash_once(owner: nn.Module, tensors: Sequence[tuple[str, Tensor]]) -> str:
    versions = _versions(tensors)
    known = _HASHES.get(owner)
    if known is None or known[0] != versions:
        known = _HASHES[owner] = versions, hash_of(tensors)
    return known[1]
