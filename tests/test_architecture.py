"""The map of the code says what is so: its paths and names exist, and imports run one way."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PATH = r"`((?:[\w*]+/)+(?:[\w*]+\.\w+)?|\w+\.(?:py|md))`"
NNUNET = {"nnunetv2", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures", "acvl_utils"}

# A module imports rooms of lower rank, and its own room.
RANKS = {
    "nnunet_mn": 0,  # the core
    "nnunet_mn.bridge": 1,
    "nnunet_mn.bridge.cases": 2,
    "nnunet_mn.bridge.preprocessing": 3,
    "nnunet_mn.bridge.training": 3,
    "nnunet_mn.bridge.planning": 4,
    "nnunet_mn.bridge.prediction": 5,
    "nnunet_mn.bridge.doctor": 5,
    "nnunet_mn.bridge.suggesting": 5,
    "nnunet_mn.report": 6,
    "nnunet_mn.sandbox": 6,
    "nnunet_mn.trainers": 7,
    "nnunet_mn.planners": 7,
    "nnunet_mn.demo": 8,
    "nnunet_mn.cli": 9,
}
SOURCES = sorted(file for folder in ("nnunet_mn", "trainers", "planners") for file in (ROOT / folder).rglob("*.py"))


def room(module: str) -> str:
    """The room that a module belongs to; what has no rank of its own lies in the room around it."""
    while module not in RANKS:
        module = module.rpartition(".")[0]
    return module


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    inside = parts if parts[0] == "nnunet_mn" else ("nnunet_mn", *parts)
    return ".".join(inside).removesuffix(".__init__")


def imports(source: str) -> Iterator[str]:
    """The modules that a file imports, in functions too. A name that a module gives may be a module itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module"
            assert node.module is not None
            yield node.module
            yield from (name for alias in node.names if is_module(name := f"{node.module}.{alias.name}"))


def is_module(name: str) -> bool:
    return name in {module_of(file) for file in SOURCES}


def wrong_ways(module: str, source: str) -> list[str]:
    """The imports of a module that run against the layers."""
    here = room(module)
    ours = [name for name in imports(source) if name.partition(".")[0] == "nnunet_mn"]
    wrong = [name for name in ours if room(name) != here and RANKS[room(name)] >= RANKS[here]]
    foreign = [name for name in imports(source) if name.partition(".")[0] in NNUNET]
    return [*wrong, *(foreign if here == "nnunet_mn" else [])]


@pytest.mark.parametrize("file", SOURCES, ids=module_of)
def test_imports_run_one_way(file: Path) -> None:
    assert wrong_ways(module_of(file), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nnunet_mn.schedule", "from nnunetv2.paths import nnUNet_raw"),
        ("nnunet_mn.networks.build", "import nnunet_mn.bridge.files"),
        ("nnunet_mn.teaching", "def late():\n    from nnunet_mn import bridge"),
        ("nnunet_mn.bridge.cases.roles", "from nnunet_mn.bridge.training import loader"),
        ("nnunet_mn.bridge.preprocessing.run", "from nnunet_mn.bridge.training import workers"),
        ("nnunet_mn.bridge.planning.cost", "from nnunet_mn.report.plan_table import plan_table"),
        ("nnunet_mn.bridge.prediction.fold", "from nnunet_mn.report.cases import CaseResult"),
        ("nnunet_mn.report.write", "from nnunet_mn.trainers.nnUNetTrainerMN import nnUNetTrainerMN"),
        ("nnunet_mn.bridge.files", "from nnunet_mn.trainers.nnUNetTrainerMN import nnUNetTrainerMN"),
        ("nnunet_mn.trainers.nnUNetTrainerMN", "from nnunet_mn.cli import app"),
    ],
)
def test_an_import_against_the_layers_is_found(module: str, source: str) -> None:
    assert len(wrong_ways(module, source)) > 0


def test_every_path_on_the_map_exists() -> None:
    paths = set(re.findall(PATH, MAP))
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not list(ROOT.glob(path))] == []


def test_every_name_stands_in_the_file_before_it() -> None:
    named = re.findall(rf"{PATH}\s+\(([^)]*`[^)]*)\)", MAP)
    assert len(named) > 25
    absent = [
        f"{name} in {path}"
        for path, names in named
        for name in re.findall(r"`(\w+)`", names)
        if not re.search(
            rf"\b(?:class|def) {name}\b|^{name}\b|\bself\.{name} =", (ROOT / path).read_text(), re.MULTILINE
        )
    ]
    assert absent == []


def test_every_folder_of_the_package_is_on_the_map() -> None:
    rooms = [name.replace(".", "/") for name in RANKS if name.startswith("nnunet_mn.bridge.")]
    assert [name for name in rooms if f"`{name}/`" not in MAP] == []
    folders = {file.parent for file in SOURCES} - {ROOT / "nnunet_mn" / "networks"}
    assert {room(module_of(folder / "__init__.py")) for folder in folders} == {
        module_of(folder / "__init__.py") for folder in folders
    }
