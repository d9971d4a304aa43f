"""Commit hooks and GitHub's CI use the tools and the script of this repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
HOOKS = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def pins(text: str) -> set[tuple[str, str]]:
    """The packages that a text pins, and their versions."""
    return set(re.findall(r"\b([a-z][a-z0-9-]*)==([\d.]+)", text))


def test_hooks_pin_the_versions_that_ci_installs() -> None:
    assert {name for name, _ in pins(HOOKS)} == {"ruff"}
    assert pins(HOOKS) <= pins(PYPROJECT)


def test_hooks_need_no_other_repository() -> None:
    assert set(re.findall(r"repo: (\S+)", HOOKS)) == {"local"}


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check"])
def test_hooks_check_what_ci_checks(command: str) -> None:
    assert f"entry: {command}" in HOOKS
    assert f".venv/bin/{command} ." in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_workflow_runs_the_script_on_every_supported_python() -> None:
    assert "run: bash .ci/run" in WORKFLOW
    (oldest,) = re.findall(r'requires-python = ">=([\d.]+)"', PYPROJECT)
    assert re.findall(r'"(3\.\d+)"', WORKFLOW)[0] == oldest


def test_the_workflow_tests_gradients_with_the_oldest_torch() -> None:
    script = (ROOT / ".ci" / "oldest_torch").read_text(encoding="utf-8")
    assert "run: bash .ci/oldest_torch" in WORKFLOW
    assert "tests/test_device.py" in script
    assert re.findall(r"^oldest=([\d.]+)", script, re.MULTILINE) == re.findall(r'"torch>=([\d.]+)"', PYPROJECT)


def test_the_citation_is_of_this_version() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', PYPROJECT, re.MULTILINE)
    assert re.findall(r"^version: (.+)$", CITATION, re.MULTILINE) == [version]


def test_each_test_file_is_in_one_part_of_the_contributors_table() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    patterns = re.findall(r"`(test_[\w*]+\.py)`", table)
    files = [file for pattern in patterns for file in (ROOT / "tests").glob(pattern)]
    assert sorted(files) == sorted((ROOT / "tests").glob("test_*.py"))
