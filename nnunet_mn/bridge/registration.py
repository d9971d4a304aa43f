"""Make nnU-Net find the plug-in: a small marked module inside the installed nnunetv2 package.

nnU-Net imports every module of a folder on its way to a class, so our module must never harm it. It imports the
plug-in only when one of the plug-in's own names is asked for (PEP 562).
"""

import ast
import importlib
import importlib.util
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.bridge.versions import check_nnunet_version, nnunet_version
from nnunet_mn.errors import MNError


class Hook(NamedTuple):
    """Some classes of the plug-in, and their file for nnU-Net."""

    file: str  # relative to the nnunetv2 package
    module: str
    names: tuple[str, ...]


def _public_classes(module: str) -> tuple[str, ...]:
    """The names of a module's own classes, read from its source: importing it would import torch."""
    spec = importlib.util.find_spec(module)
    source = Path(str(spec.origin)).read_text(encoding="utf-8") if spec is not None else ""
    classes = (node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return tuple(name for name in classes if not name.startswith("_"))


_TRAINERS, _PLANNERS = "nnunet_mn.trainers.nnUNetTrainerMN", "nnunet_mn.planners.MNPlanner"
TRAINERS = _public_classes(_TRAINERS)
PLANNERS = (*_public_classes(_PLANNERS), "MNFingerprintExtractor")
HOOKS = (
    Hook("training/nnUNetTrainer/variants/nnUNetTrainerMN.py", _TRAINERS, TRAINERS),
    Hook("experiment_planning/experiment_planners/MNPlanner.py", _PLANNERS, PLANNERS),
)

MARK = "# Written by `nnunet-mn register`; `nnunet-mn unregister` removes it."

_TEMPLATE = '''{mark}
"""Leads nnU-Net to the classes of nnunet-mn, which is imported only when one of them is asked for."""

import importlib

_MODULE = "{module}"
_NAMES = {names!r}


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
    try:
        return getattr(importlib.import_module(_MODULE), name)
    except AttributeError as error:
        # nnU-Net takes an AttributeError for "not here" and would hide what is wrong with the plug-in
        raise ImportError(f"{{name}} cannot be loaded from {{_MODULE}}: {{error}}") from error
'''


def register(package: Path | None = None) -> list[Path]:
    """Write the files for nnU-Net to find the plug-in. Files already up to date are left alone.

    Args:
        package: folder of the nnunetv2 package; None: the installed one.

    Returns:
        The registered files.

    Raises:
        MNError: when nnunetv2 is missing or unsupported, its folder is read-only, or a file of somebody else is in
            the way.
    """
    check_nnunet_version()
    package = package or nnunet_package()
    files = [package / hook.file for hook in HOOKS]
    for file in files:
        _refuse_foreign(file)
    for file, hook in zip(files, HOOKS, strict=True):
        text = hook_source(hook)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            with _changing(package, _other_way_in()):
                # as readable as its neighbors: in a shared environment others' nnU-Net would fail on a private file
                write_whole(file, text, mode=stat.S_IMODE((file.parent / "__init__.py").stat().st_mode))
    importlib.invalidate_caches()
    return files


def unregister(package: Path | None = None) -> list[Path]:
    """Remove the registered files and their bytecode.

    Args:
        package: folder of the nnunetv2 package; None: the installed one.

    Returns:
        The removed files.

    Raises:
        MNError: when nnunetv2 is missing, its folder is read-only, or such a file does not carry the mark.
    """
    package = package or nnunet_package()
    for hook in HOOKS:
        _refuse_foreign(package / hook.file)
    removed = registered_files(package)
    for file in removed:
        with _changing(package, "run 'nnunet-mn unregister' as a user who may write there"):
            _remove(file)
    importlib.invalidate_caches()
    return removed


def registered_files(package: Path | None = None) -> list[Path]:
    """Our files in the nnunetv2 package now, up to date or not."""
    package = package or nnunet_package()
    return [package / hook.file for hook in HOOKS if _is_ours(package / hook.file)]


def trainers_path() -> Path:
    """The folder for `nnUNet_extTrainer`: nnunetv2 >= 2.8 looks there for trainers besides its own."""
    return _folder("nnunet_mn.trainers")


def nnunet_package() -> Path:
    """The folder of the installed nnunetv2 package, found without importing it."""
    return _folder("nnunetv2")


def hook_source(hook: Hook) -> str:
    """The text of one hook's file."""
    return _TEMPLATE.format(mark=MARK, module=hook.module, names=hook.names)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MNError(f"the package {package} is not installed in this environment; run 'pip install {package}'")
    return Path(next(iter(spec.submodule_search_locations)))


def _is_ours(file: Path) -> bool:
    return file.is_file() and file.read_text(encoding="utf-8", errors="replace").startswith(MARK)


def _refuse_foreign(file: Path) -> None:
    if os.path.lexists(file) and not _is_ours(file):
        raise MNError(f"{file} was not written by nnunet-mn, so it is left alone; move it away and run this again")


def _remove(file: Path) -> None:
    file.unlink()
    for bytecode in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        bytecode.unlink()


@contextmanager
def _changing(package: Path, remedy: str) -> Iterator[None]:
    """Turn a refusal to write into an MNError with the remedy."""
    try:
        yield
    except OSError as error:
        raise MNError(f"{package} cannot be changed ({error.strerror}); {remedy}") from error


def _other_way_in() -> str:
    """How nnU-Net finds the plug-in if its package is read-only."""
    version = nnunet_version()
    if version.release < (2, 8):
        return f"nnunetv2 {version} looks nowhere else, so use an environment of your own or nnunetv2>=2.8"
    return 'leave it as it is and put this line into your shell: export nnUNet_extTrainer="$(nnunet-mn trainers-path)"'
