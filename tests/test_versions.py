"""Which nnunetv2 is accepted."""

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from nnunet_mn.bridge import versions
from nnunet_mn.errors import MNError


def test_installed_version_is_supported() -> None:
    assert str(versions.check_nnunet_version()) == version("nnunetv2")


@pytest.mark.parametrize("found", ["2.6.4", "2.7.0", "2.8.0", "2.8.1"])
def test_checked_versions_are_supported(monkeypatch, found: str) -> None:
    monkeypatch.setattr(versions, "version", lambda _: found)
    assert str(versions.check_nnunet_version()) == found


@pytest.mark.parametrize("found", ["2.6.3", "2.9", "2.9.1", "3.0", "1.7.1"])
def test_other_versions_are_refused_with_the_command_that_helps(monkeypatch, found: str) -> None:
    monkeypatch.setattr(versions, "version", lambda _: found)
    with pytest.raises(MNError, match=rf"nnunetv2 {found} is not supported by nnunet-mn; run 'pip install \"nnunetv2"):
        versions.check_nnunet_version()


def test_missing_nnunet_is_told(monkeypatch) -> None:
    def missing(_: str) -> str:
        raise versions.PackageNotFoundError

    monkeypatch.setattr(versions, "version", missing)
    with pytest.raises(MNError, match="nnunetv2 is not installed"):
        versions.check_nnunet_version()


def test_range_is_the_one_in_pyproject() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    stated = re.search(r'"nnunetv2([^"]+)"', project)
    assert stated is not None
    assert versions.supported_range() == SpecifierSet(stated[1])


def test_package_versions_can_be_stored_in_a_checkpoint() -> None:
    found = versions.package_versions()
    assert found["torch"] == version("torch")
    assert json.loads(json.dumps(found)) == found
