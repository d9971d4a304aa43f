"""dataset.json, read and checked for its shape."""

from pathlib import Path
from typing import Any

from nnunet_mn.bridge.files import read_object
from nnunet_mn.errors import MNError

FORMAT = (
    "write it as nnU-Net's dataset format says: even without a label the reader needs its channel_names and file_ending"
)
KINDS = {"channel_names": dict, "modality": dict, "file_ending": str, "labels": dict, "dataset": dict}
WORDS = {dict: "a dictionary", str: "a text"}


def read_description(folder: Path, *needed: str, remedy: str = FORMAT) -> dict[str, Any]:
    """The content of dataset.json in a dataset's raw or preprocessed folder.

    Args:
        folder: of the dataset.
        needed: its entries. Those that are there are checked, whether needed or not.
        remedy: for the message.

    Raises:
        MNError: when it is missing or broken.
    """
    file = folder / "dataset.json"
    content = read_object(file, *needed, remedy=remedy)
    for key, kind in KINDS.items():
        if key in content and not isinstance(content[key], kind):
            raise MNError(f"'{key}' in {file} must be {WORDS[kind]}, but is {str(content[key])[:60]!r}; {remedy}")
    ending = content.get("file_ending", ".")
    if not ending.startswith("."):
        raise MNError(f"'file_ending' in {file} must be '.{ending or 'nii.gz'}', but is '{ending}'; {remedy}")
    for name, entry in content.get("dataset", {}).items():
        if not _lists_images(entry):
            raise MNError(
                f"'{name}' in the entry 'dataset' of {file} must have a list of images, each a text, but is "
                f"{str(entry)[:60]!r}; {remedy}"
            )
    return content


def _lists_images(entry: Any) -> bool:
    images = entry.get("images") if isinstance(entry, dict) else None
    return isinstance(images, list) and all(isinstance(image, str) for image in images)


def has_channels(description: dict[str, Any]) -> bool:
    """Whether a dataset.json names its channels. Older ones do so under `modality`."""
    return bool(description.get("modality") or description.get("channel_names"))
