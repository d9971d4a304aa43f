"""The site builds and loads nothing from elsewhere; its commands and its sentences are those of the source."""

import ast
import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from nnunet_mn.cli import app
from nnunet_mn.networks.cli import app as weights_app

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
WEIGHTS: dict[str, Any] = dict(typer.main.get_command(weights_app).commands)  # type: ignore[attr-defined]
USAGE_ERROR: Any = typer.BadParameter.__base__  # of the click that typer uses: newer versions bring their own
STOCK = {entry.name: entry.value for entry in importlib.metadata.entry_points(group="console_scripts")}


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def code_blocks(text: str) -> list[str]:
    """The lines of shell in a page."""
    return "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()


def inline_code(text: str) -> list[str]:
    """The code within sentences."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def calls_of(program: str, lines: list[str]) -> Iterator[list[str]]:
    """The words of each call of a program (a pattern), itself first. A name with nothing behind it is no call."""
    for line in lines:
        for call in re.split(r"&&|;|\$\(|\)", line.partition(" #")[0]):
            words = shlex.split(call) if call.count("'") % 2 == call.count('"') % 2 == 0 else []
            places = [i for i, word in enumerate(words) if re.fullmatch(program, Path(word).name)]
            if places and len(words) > places[0] + 1:
                yield [Path(words[places[0]]).name, *words[places[0] + 1 :]]


def fault_of(arguments: list[str]) -> str | None:
    """Why the command line does not take these arguments. A command without any is a mention, not a call."""
    known = WEIGHTS if arguments[0] == "weights" else COMMANDS
    name, *rest = arguments[1:] if known is WEIGHTS else arguments
    if name not in known:
        return f"there is no command '{name}'"
    if not rest:
        return None
    try:
        known[name].make_context(name, rest)
    except USAGE_ERROR as error:
        return str(error.format_message())
    return None


def faults(lines: list[str]) -> list[str]:
    calls = [call[1:] for call in calls_of("nnunet-mn", lines)]
    return [f"{shlex.join(call)}: {fault}" for call in calls if (fault := fault_of(call))]


def test_every_command_in_a_block_is_taken(page: Path) -> None:
    assert faults(code_blocks(page.read_text(encoding="utf-8"))) == []


def test_every_command_in_a_sentence_has_options_that_exist(page: Path) -> None:
    found = faults(inline_code(page.read_text(encoding="utf-8")))
    assert [fault for fault in found if "Missing" not in fault] == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("nnunet-mn split -d 4 --labelled 4", "No such option: --labelled"),
        ("nnunet-mn split -d 4", "Missing option '--labeled'"),
        ("nnunet-mn weights fetched a b", "there is no command 'fetched'"),
        ("FOO=1 nnunet-mn join -d 4", "Missing option"),
        ("x && nnunet-mn suggest -d 4 -n 0 # none", "-n"),
    ],
)
def test_a_call_with_a_mistake_is_found(line: str, fault: str) -> None:
    assert fault in faults(code_blocks(f"```bash\n{line}\n```"))[0]


def stock_options(command: str) -> set[str]:
    """The options of one of nnU-Net's commands, from its source: each takes seconds to start."""
    module, _, function = STOCK[command].partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    (found,) = [
        node
        for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    calls = [node for node in ast.walk(found) if isinstance(node, ast.Call)]
    added = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    return {arg.value for call in added for arg in call.args if isinstance(arg, ast.Constant)}


def test_every_option_given_to_nnunet_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    calls = [*calls_of(r"nnUNetv2_\w+", code_blocks(text) + inline_code(text))]
    assert {name for name, *_ in calls} <= set(STOCK)
    wrong = [
        f"{name} {word}"
        for name, *words in calls
        for word in words
        if re.match(r"--?[a-zA-Z]", word) and word not in stock_options(name)
    ]
    assert wrong == []


def test_options_of_nnunet_are_found_in_its_source() -> None:
    assert {"-tr", "--c", "--val"} <= stock_options("nnUNetv2_train")
    assert "--no-such" not in stock_options("nnUNetv2_train")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"\S+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {file.name for file in (ROOT / "docs").glob("*.md")} <= listed


def test_troubleshooting_has_every_sentence_of_the_source() -> None:
    file = ROOT / "docs_tools" / "troubleshooting.py"
    spec = importlib.util.spec_from_file_location("troubleshooting", file)
    assert spec is not None
    assert spec.loader is not None
    troubleshooting = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(troubleshooting)
    written = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert written == troubleshooting.page(), "run: python docs_tools/troubleshooting.py"
    assert len(set(re.findall(r'id="([^"]+)"', written))) == len(re.findall(r"^<a id=", written, re.MULTILINE)) > 100


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    pages = [*tmp_path.rglob("*.html")]
    assert len(pages) > 15
    loaded = (
        r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//[^"' >]+|<link[^>]+href=["']?(?:https?:)?//\S+"""
    )
    assert [found for file in pages for found in re.findall(loaded, file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("said", "ends_with", "requeued"),
    [("all is well", 0, False), ("M&N stopped on SIGUSR1 in epoch 3", 1, True), ("ERROR: a case is bad", 1, False)],
)
def test_the_script_for_slurm_requeues_after_a_stop_alone(
    tmp_path: Path, said: str, ends_with: int, requeued: bool
) -> None:
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs" / "clusters.md").read_text(), re.DOTALL)
    for name, text in {"srun": f'echo "{said}" >&2; exit {ends_with}', "scontrol": 'echo "$@" > asked'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == ends_with
    assert (tmp_path / "train_17.txt").read_text() == f"{said}\n"
    asked = tmp_path / "asked"
    assert (asked.exists() and asked.read_text() == "requeue 17\n") is requeued
