"""The example in docs/library.md runs, and what the package exports is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_mn

PAGE = (Path(__file__).parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_trains_both_networks(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", EXAMPLE], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    right = [float(line.split()[0]) for line in done.stdout.splitlines()]
    assert len(right) == 2
    assert min(right) > 0.7  # by chance half of them


def test_every_exported_name_is_there() -> None:
    assert all(getattr(nnunet_mn, name).__name__ == name for name in nnunet_mn.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'CoTeacher'"):
        nnunet_mn.CoTeacher  # noqa: B018


def test_the_package_alone_imports_no_torch() -> None:
    script = "import sys, nnunet_mn; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
