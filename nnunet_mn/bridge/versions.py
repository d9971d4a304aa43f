"""The installed version of nnunetv2, and the supported versions."""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from nnunet_mn.errors import MNError


def nnunet_version() -> Version:
    """The version of the installed nnunetv2.

    Raises:
        MNError: when it is not installed.
    """
    try:
        return Version(version("nnunetv2"))
    except PackageNotFoundError as error:
        raise MNError(
            f"nnunetv2 is not installed in this environment; run 'pip install \"{_requirement()}\"'"
        ) from error


def supported_range() -> SpecifierSet:
    """The supported versions of nnunetv2, from the plug-in's own metadata. Each was checked."""
    return _requirement().specifier


def check_nnunet_version() -> Version:
    """The version of the installed nnunetv2.

    Raises:
        MNError: when the plug-in does not support it.
    """
    found = nnunet_version()
    if not supported_range().contains(found, prereleases=True):
        raise MNError(f"nnunetv2 {found} is not supported by nnunet-mn; run 'pip install \"{_requirement()}\"'")
    return found


def package_versions() -> dict[str, str]:
    """The versions of the plug-in and of the packages behind a checkpoint."""
    return {name: version(name) for name in ("nnunet-mn", "nnunetv2", "torch", "transformers", "peft", "timm")}


def _requirement() -> Requirement:
    parsed = (Requirement(text) for text in requires("nnunet-mn") or ())
    return next(requirement for requirement in parsed if requirement.name == "nnunetv2")
