"""The manifest: a record of every preprocessed unlabeled case. It is a file of JSON lines beside the folder."""

import errno
import glob
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

# A file changed within this time after its stamp was read could still carry the same stamp (NFS and FAT count seconds).
STAMP_NS = 2 * 10**9

# Entries of a configuration without effect on the voxels: the network, the batch, and the chunks of files.
NOT_PREPROCESSING = frozenset(
    {
        "architecture",
        "batch_dice",
        "batch_size",
        "data_identifier",
        "inherits_from",
        "median_image_size_in_voxels",
        "mn",
    }
    | {"next_stage", "patch_size", "previous_stage"}
)


class ImageFile(NamedTuple):
    """State of one file of a case. Its change time reveals an edit even if the modification time was put back."""

    name: str
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int
    sha256: str


class Voxels(NamedTuple):
    """Identity of a preprocessed volume: shape (C, Z, Y, X), hash of its middle slice, hash of all voxels.

    Records of older versions have no thumbnail. Volumes with one have been checked.
    """

    shape: tuple[int, ...]
    probe: str
    sha256: str
    thumbnail: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One case: its files at a time, the settings, and the resulting voxels or the reason for leaving it out."""

    name: str
    source: str
    files: tuple[ImageFile, ...]
    checked_ns: int
    settings: str
    voxels: Voxels | None = None
    skipped: str | None = None

    def to_line(self) -> str:
        """One line of JSON in ASCII: a file name may hold bytes that are not UTF-8."""
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def from_line(line: str) -> "Record":
        """Raise a ValueError, KeyError or TypeError if the line is no record."""
        raw = json.loads(line)
        files = tuple(ImageFile(**file) if isinstance(file, dict) else ImageFile(*file) for file in raw.pop("files"))
        voxels = raw.pop("voxels")
        return Record(files=files, voxels=Voxels(tuple(voxels[0]), *voxels[1:]) if voxels else None, **raw)


class Manifest:
    """The latest record of each case. Lines are kept as text: a dataset may have 100,000 of them."""

    def __init__(self, lines: Mapping[str, tuple[int, str]]) -> None:
        self._lines = lines

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Read every manifest of a folder of unlabeled cases. Broken lines, as a kill leaves them, are passed over.

        Args:
            folder: the `_unlabeled` folder; the manifests lie beside it, one for each part of a divided job.
        """
        latest: dict[str, tuple[int, str]] = {}
        for file in sorted(folder.parent.glob(f"{glob.escape(folder.name)}.*.jsonl")):
            with file.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    try:
                        raw = json.loads(line)
                        name, checked = str(raw["name"]), int(raw["checked_ns"])
                    except (ValueError, KeyError, TypeError):
                        continue
                    if name not in latest or latest[name][0] <= checked:
                        latest[name] = (checked, line)
        return Manifest(latest)

    def get(self, name: str) -> Record | None:
        """The latest record of a case."""
        if name not in self._lines:
            return None
        try:
            return Record.from_line(self._lines[name][1])
        except (ValueError, KeyError, TypeError):
            return None  # of another version: the case counts as unrecorded


def append(file: Path, record: Record) -> None:
    """Add one record in one write. It gets its own line, even after a line cut short by a kill.

    Raises:
        OSError: when it cannot be written as a whole.
    """
    line = record.to_line().encode()
    with file.open("a+b", buffering=0) as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        if (written := stream.write(line)) != len(line):
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were written", str(file))


def hash_file(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def look_at(paths: Sequence[Path]) -> tuple[ImageFile, ...]:
    """The present state of a case's files. Their content is not read."""
    stats = [(path, path.stat()) for path in paths]
    return tuple(ImageFile(path.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, "") for path, s in stats)


def with_content(files: Sequence[ImageFile], paths: Sequence[Path]) -> tuple[ImageFile, ...]:
    """The same states with the hash of each file."""
    return tuple(file._replace(sha256=hash_file(path)) for file, path in zip(files, paths, strict=True))


def compare(record: Record, files: Sequence[ImageFile], settings: str) -> Literal["same", "changed", "unsure"]:
    """Whether a record still describes the files of a case. They are not read: the answer may be "unsure".

    Args:
        record: from an earlier preprocessing.
        files: from `look_at`.
        settings: from `settings_hash`.
    """
    then = record.files
    if record.settings != settings or [f[:2] for f in then] != [f[:2] for f in files]:
        return "changed"
    stamps_equal = [f[:4] for f in then] == [f[:4] for f in files]
    newest = max((max(f.mtime_ns, f.ctime_ns) for f in files), default=0)
    return "same" if stamps_equal and newest + STAMP_NS < record.checked_ns else "unsure"


def confirm(record: Record, files: Sequence[ImageFile], paths: Sequence[Path]) -> Record | None:
    """Read the files. The record gets today's stamps if their content is the recorded one; else None is returned."""
    checked_ns = time.time_ns()
    read = with_content(files, paths)
    if [f.sha256 for f in read] != [f.sha256 for f in record.files]:
        return None
    return replace(record, files=read, checked_ns=checked_ns)


def settings_hash(plans: Mapping[str, Any], configuration: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> str:
    """Hash of the entries of plans, configuration and dataset.json with an effect on preprocessed cases."""
    settings = {
        "configuration": {k: v for k, v in configuration.items() if k not in NOT_PREPROCESSING},
        "transpose_forward": plans["transpose_forward"],
        "image_reader_writer": plans["image_reader_writer"],
        "intensities": plans["foreground_intensity_properties_per_channel"],
        "channels": dataset_json.get("channel_names", dataset_json.get("modality")),
        "labels": dataset_json["labels"],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
