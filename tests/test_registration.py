"""The registered files: what they do to nnU-Net's look-up, and that nothing else changes."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nnunet_mn.bridge import files, registration
from nnunet_mn.bridge.registration import HOOKS, MARK, PLANNERS, TRAINERS, Hook, hook_source, register, unregister
from nnunet_mn.errors import MNError

LOOK_UP = """
import sys
from os.path import join
import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

def find(name):
    folder = join(nnunetv2.__path__[0], "training", "nnUNetTrainer")
    return recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")

assert nnunetv2.__path__[0].startswith(sys.argv[1]), nnunetv2.__path__
for stock in ("nnUNetTrainer", "nnUNetTrainerNoMirroring", "nnUNetTrainerOfNobody"):
    print(getattr(find(stock), "__name__", None), "nnunet_mn" in sys.modules)
try:
    print(find("nnUNetTrainerMN"))
except Exception as error:
    print(repr(error))
"""

LOOK_UP_PLANNER = """
import sys
from os.path import join
import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

def find(name):
    folder = join(nnunetv2.__path__[0], "{folder}")
    return recursive_find_python_class(folder, name, "nnunetv2.{folder}").__name__

print(find("ExperimentPlanner"), "nnunet_mn" in sys.modules, *map(find, {names}))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed nnunetv2 package."""
    copy = tmp_path / "site" / "nnunetv2"
    shutil.copytree(registration.nnunet_package(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    unregister(copy)
    return copy


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mode, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()
    }


def look_up(package: Path, *python_path: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*python_path, package.parent)))}
    command = [sys.executable, "-c", LOOK_UP, str(package)]
    run = subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[-4:]


def load(source: str) -> ModuleType:
    module = ModuleType("registered")
    exec(source, module.__dict__)
    return module


def test_unregister_restores_the_package_byte_for_byte(package: Path) -> None:
    before = snapshot(package)
    written = register(package)
    assert set(snapshot(package)) - set(before) == {str(f.relative_to(package)) for f in written}
    assert unregister(package) == written
    assert snapshot(package) == before


def test_unregister_removes_bytecode_too(package: Path) -> None:
    file, *_ = register(package)
    bytecode = Path(importlib.util.cache_from_source(str(file)))
    bytecode.parent.mkdir()
    bytecode.touch()
    unregister(package)
    assert not bytecode.exists()


def test_register_twice_changes_nothing(package: Path) -> None:
    register(package)
    once = snapshot(package)
    times = [file.stat().st_mtime_ns for file in registration.registered_files(package)]
    register(package)
    assert snapshot(package) == once
    assert times == [file.stat().st_mtime_ns for file in registration.registered_files(package)]


def test_register_renews_a_file_of_another_version(package: Path) -> None:
    file, *_ = register(package)
    whole = file.read_text()
    file.write_text(f"{MARK}\n# older\n")
    register(package)
    assert file.read_text() == whole


def test_registered_file_is_as_readable_as_its_neighbors(package: Path) -> None:
    neighbor = package / "training/nnUNetTrainer/variants/__init__.py"
    neighbor.chmod(0o664)
    file, *_ = register(package)
    assert file.stat().st_mode == neighbor.stat().st_mode


@pytest.mark.parametrize("change", [register, unregister])
def test_file_without_the_mark_is_left_alone(package: Path, change) -> None:
    foreign = package / HOOKS[0].file
    foreign.write_text("class nnUNetTrainerMN: ...\n")
    before = snapshot(package)
    with pytest.raises(MNError, match="was not written by nnunet-mn"):
        change(package)
    assert snapshot(package) == before


def test_nothing_is_registered_in_a_fresh_package(package: Path) -> None:
    assert registration.registered_files(package) == []
    assert unregister(package) == []


def test_read_only_package_is_answered_with_the_export_line(package: Path, monkeypatch) -> None:
    def refuse(_: int) -> None:
        raise PermissionError(13, "Permission denied")

    before = snapshot(package)
    monkeypatch.setattr(files.os, "fsync", refuse)  # a test that runs as root may write anywhere
    with pytest.raises(MNError, match=r'export nnUNet_extTrainer="\$\(nnunet-mn trainers-path\)"'):
        register(package)
    assert snapshot(package) == before


def test_unregister_in_a_read_only_package_is_answered_with_who_can(package: Path, monkeypatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    register(package)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(
        MNError, match=r"\(Permission denied\); run 'nnunet-mn unregister' as a user who may write there"
    ):
        unregister(package)


def test_write_that_fails_half_way_leaves_no_file(package: Path, monkeypatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = snapshot(package)
    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(MNError, match="No space left on device"):
        register(package)
    assert snapshot(package) == before


def test_unsupported_nnunet_is_refused(package: Path, monkeypatch) -> None:
    before = snapshot(package)
    monkeypatch.setattr("nnunet_mn.bridge.versions.version", lambda _: "2.9.0")
    with pytest.raises(MNError, match=r"nnunetv2 2\.9\.0 is not supported"):
        register(package)
    assert snapshot(package) == before


def test_registered_module_knows_only_our_names() -> None:
    module = load(hook_source(HOOKS[0]))
    assert not hasattr(module, "nnUNetTrainer")
    assert not hasattr(module, "__all__")


@pytest.mark.parametrize(
    "source",
    ["import no_such_module", "raise ValueError('broken')", "object.no_such_attribute", ""],
    ids=["missing dependency", "error", "attribute error", "class gone"],
)
def test_error_of_a_broken_plug_in_surfaces(tmp_path: Path, monkeypatch, source: str) -> None:
    (tmp_path / "broken_plug_in.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plug_in", raising=False)
    module = load(hook_source(Hook("x.py", "broken_plug_in", TRAINERS)))
    with pytest.raises((ImportError, ValueError), match=r"no_such_module|broken"):
        hasattr(module, "nnUNetTrainerMN")  # as nnU-Net asks


def test_stock_look_up_leaves_a_broken_plug_in_alone(package: Path, tmp_path: Path) -> None:
    register(package)
    broken = tmp_path / "broken" / "nnunet_mn"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('the plug-in is broken')")
    *stock, ours = look_up(package, broken.parent)
    assert stock == ["nnUNetTrainer False", "nnUNetTrainerNoMirroring False", "None False"]
    assert ours == "RuntimeError('the plug-in is broken')"


def test_look_up_returns_our_trainer_and_no_earlier_one_loads_the_plug_in(package: Path) -> None:
    register(package)
    *stock, ours = look_up(package)
    assert stock == ["nnUNetTrainer False", "nnUNetTrainerNoMirroring False", "None False"]
    assert ours == "<class 'nnunet_mn.trainers.nnUNetTrainerMN.nnUNetTrainerMN'>"


def test_names_are_those_of_the_trainer_classes() -> None:
    folder = registration.trainers_path()
    assert {file.name for file in folder.glob("*.py")} == {"__init__.py", "nnUNetTrainerMN.py"}
    tree = ast.parse((folder / "nnUNetTrainerMN.py").read_text(encoding="utf-8"))
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert sorted(name for name in classes if not name.startswith("_")) == sorted(TRAINERS)


def test_names_of_the_planners_are_what_their_module_offers() -> None:
    module = importlib.import_module(HOOKS[1].module)
    assert sorted(module.__all__) == sorted(PLANNERS)
    assert all(getattr(module, name).__name__ == name for name in PLANNERS)


def test_look_up_returns_our_planner(package: Path) -> None:
    register(package)
    script = LOOK_UP_PLANNER.format(folder="experiment_planning", names=PLANNERS)
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=package, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["ExperimentPlanner", "False", *PLANNERS]
