"""Nothing in the package hands what a user or a file says to a shell or to the interpreter."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nnunet_mn.trainers

FOLDERS = (Path(nnunet_mn.__file__).parent, Path(nnunet_mn.trainers.__file__).parent)
FILES = sorted({file for folder in FOLDERS for file in folder.rglob("*.py")})


def calls(file: Path) -> Iterator[ast.Call]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_shell_and_no_code_from_strings(file: Path) -> None:
    for call in calls(file):
        name = ast.unparse(call.func)
        assert name not in {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput"}, f"{name}: {call.lineno}"
        assert not any(keyword.arg == "shell" for keyword in call.keywords), f"shell in line {call.lineno}"


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import subprocess\nsubprocess.run('ls', shell=True)\n")
    with pytest.raises(AssertionError, match="shell in line 2"):
        test_no_shell_and_no_code_from_strings(bad)
