"""Reads nnU-Net's checkpoints as data: no file can run code."""

import errno
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from nnunet_mn.config import environment_layer, resolve
from nnunet_mn.errors import MNError

SETTING = "nnUNet_mn_trust_checkpoints=true"
GO_ON = "move it away, and --c goes on from another one in its folder, or anew"
ANEW = "put the whole file back, or train this fold again"
# How torch names a refused part, and the reason of a failed read.
_FOUND = re.compile(r"GLOBAL ([\w.]+)")
_REASON = re.compile(r"WeightsUnpickler error: (.*)")


def _as(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A harmless function under the name that a pickle calls."""

    def build(*arguments: Any) -> Any:
        return function(*arguments)

    build.__module__, _, build.__name__ = name.rpartition(".")
    build.__qualname__ = build.__name__
    return build


def _number(kind: np.dtype[Any], value: bytes) -> Any:
    return np.frombuffer(value, kind)[0]


# What nnU-Net and M&N write beside tensors and plain containers: numbers of numpy, in nnU-Net's log.
_KNOWN: tuple[Any, ...] = (
    _as("numpy.core.multiarray.scalar", _number),  # numpy 1
    _as("numpy._core.multiarray.scalar", _number),
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
    _as("_codecs.encode", lambda text, _: text.encode("latin1")),  # bytes; torch from 2.5 on knows them
)


def read(path: Path, *, trust: bool = False, remedy: str = GO_ON) -> dict[str, Any]:
    """A checkpoint of nnU-Net, on the CPU. Only tensors, plain containers and numbers are built from the file.

    Args:
        path: of a checkpoint.
        trust: build anything in the file. This can run code.
        remedy: for a damaged or missing file, for the message.

    Raises:
        MNError: if the file is missing, damaged, no checkpoint, or holds anything else. Nothing of it has run then.
    """
    torch.serialization.add_safe_globals([*_KNOWN])
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except FileNotFoundError as error:
        raise MNError(f"there is no checkpoint {path}: {remedy}") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch, of a file that was cut off
            raise _refusal(path, error, remedy) from error
        raise MNError(f"the checkpoint {path} cannot be read ({error}): look at its rights and its disk") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise _refusal(path, error, remedy) from error
    if not isinstance(content, dict) or not {"trainer_name", "network_weights"} & content.keys():
        raise MNError(f"{path} is no checkpoint of nnU-Net: move it away")
    return content


def read_by_environment(path: Path) -> dict[str, Any]:
    """`read` a finished training's checkpoint, with trust only if the environment has it."""
    return read(path, trust=resolve(environment_layer()).trust_checkpoints, remedy=ANEW)


def _refusal(path: Path, error: Exception, remedy: str) -> MNError:
    found = _FOUND.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if found is not None:
        return MNError(
            f"the checkpoint {path} was not loaded: it holds '{found[1]}', which nnU-Net and M&N do not write, and "
            f"which could run code; use a file whose origin you know, or set {SETTING} if you trust this one"
        )
    told = _REASON.search(str(error))
    reason = (told[1] if told else str(error)).partition(". ")[0] or type(error).__name__  # torch adds advice
    return MNError(f"the checkpoint {path} cannot be read ({reason}): {remedy}")


def mn_part(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The key `mn` of a checkpoint.

    Raises:
        MNError: if it has none.
    """
    if "mn" not in content:
        raise MNError(
            f"{path} holds no M&N state, as checkpoints of stock nnU-Net, of a joint model and of an exported model: "
            f"name the model of an M&N training, or start a training without --c"
        )
    mn: dict[str, Any] = content["mn"]
    return mn


@contextmanager
def handed_over(content: Mapping[str, Any]) -> Iterator[None]:
    """In this context torch.load returns this checkpoint. Stock takes only file names, and would run a file's code.

    Raises:
        RuntimeError: if nobody asked for it: stock has then loaded something else.
    """
    with patch.object(torch, "load", return_value=content) as load:
        yield
    if not load.called:
        raise RuntimeError("nnU-Net no longer loads checkpoints with torch.load: M&N must hand them over another way")


def check_pretrained(arguments: Sequence[str], *, trust: bool) -> None:
    """Read the file of nnU-Net's `-pretrained_weights` before stock does. Stock would run its code.

    Args:
        arguments: of the command. Stock tells a trainer nothing of this one, so a call from Python is not checked.
        trust: see `read`.

    Raises:
        MNError: as `read`.
    """
    file = ""  # not by argparse, which would end a script with other options of this name
    for argument, following in pairwise([*arguments, ""]):
        name, joined, value = argument.partition("=")
        if name == "-pretrained_weights":
            file = value if joined else following
    if file:
        read(Path(file), trust=trust, remedy="give another file to -pretrained_weights")
