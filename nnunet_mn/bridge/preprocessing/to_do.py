"""Find the unlabeled cases still to preprocess.

Nothing here needs torch. It would take more memory than the records of 100,000 cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_mn.bridge.cases.manifest import Manifest, Record, compare, confirm, look_at
from nnunet_mn.bridge.cases.preprocessed import complete_cases
from nnunet_mn.bridge.cases.sources import UnlabeledCase
from nnunet_mn.bridge.words import name_some
from nnunet_mn.errors import MNError


@dataclass
class Survey:
    """Cases to preprocess, cases to leave out, and records with new time stamps."""

    to_do: list[UnlabeledCase] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    renewed: list[Record] = field(default_factory=list)


def survey(cases: Sequence[UnlabeledCase], folder: Path, settings: str) -> Survey:
    """Compare the cases with their records. Nothing is written. Images are read only if their time stamps are new."""
    found, absent = Survey(), []
    complete, manifest = complete_cases(folder), Manifest.read(folder)
    for case in cases:
        record = manifest.get(case.name)
        done = case.name in complete or (record is not None and record.skipped is not None)
        if not case.images:
            if not done or (record is not None and record.settings != settings):
                absent.append(case.name)
        else:
            now = _up_to_date(record, case.files, settings) if done and record is not None else None
            if now is None:
                found.to_do.append(case)
            elif now is not record:
                found.renewed.append(now)
            record = now
        if record is not None and record.skipped is not None:
            found.skipped[case.name] = record.skipped
    if absent:
        raise MNError(
            f"{len(absent)} unlabeled cases ({name_some(absent)}) are not in {folder}, or were preprocessed with other "
            f"plans, and their raw images are not on this machine: run `nnunet-mn preprocess` for this dataset where "
            f"nnUNet_raw has them"
        )
    return found


def _up_to_date(record: Record, paths: Sequence[Path], settings: str) -> Record | None:
    """The record if it still holds, the same with new time stamps if the content is the same, or None.

    An image that could not be opened, and still cannot, has a record without files.
    """
    try:
        files = look_at(paths)
        comparison = compare(record, files, settings)
        if comparison == "unsure":
            return confirm(record, files, paths)
    except OSError:
        return None if record.files else record  # without a record its preprocessing names the unreadable file
    return record if comparison == "same" else None
