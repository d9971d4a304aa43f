"""The features of every case. Each is read and described once: the results are kept in nnUNet_preprocessed."""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_mn.bridge.cases.images import BadImageError, read_images, reader_of
from nnunet_mn.bridge.cases.raw_images import n_channels
from nnunet_mn.bridge.processes import map_in_processes
from nnunet_mn.bridge.suggesting.candidates import Images
from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.networks.backbone import Backbone
from nnunet_mn.networks.build import load_backbone
from nnunet_mn.networks.description import SIDE, SLICES, describe

Features = NDArray[np.float32]
CACHE = "suggest_features.jsonl"


@dataclass(frozen=True, kw_only=True)
class Describer:
    """Reads a case and describes it.

    Args:
        config: its backbone.
        description: the content of dataset.json.
    """

    config: MNConfig
    description: dict[str, Any]

    def __call__(self, case: tuple[str, tuple[Path, ...]]) -> tuple[str, list[float] | str]:
        """The name of a case, and its features or why it has none."""
        name, images = case
        try:
            reader = reader_of(self.description, images[0])
            volume, _ = read_images(reader, [str(image) for image in images], channels=n_channels(self.description))
        except BadImageError as error:
            return name, str(error)
        found = describe(_backbone(self.config), torch.from_numpy(np.asarray(volume, dtype=np.float32)))
        return name, [round(number, 5) for number in found.tolist()]


@functools.cache
def _backbone(config: MNConfig) -> Backbone:
    return load_backbone(config).eval()


def features_of(
    cases: Images, describer: Describer, *, folder: Path, processes: int, skip_bad: bool
) -> tuple[dict[str, Features], list[str]]:
    """The features of cases by name, with a progress bar.

    Args:
        cases: images by name.
        describer: reads and describes one case.
        folder: for the file of results. Cases found there are not read again unless their images have changed.
        processes: how many; 1 means this process.
        skip_bad: leave out cases that cannot be read.

    Returns:
        The features, and why the other cases have none.

    Raises:
        MNError: when a case cannot be read and `skip_bad` is not set; the others are done first.
    """
    _backbone(describer.config)  # weights that are missing are told before any image is read
    stamps = {name: _stamp(images, describer) for name, images in cases.items()}
    known = dict(_read(folder / CACHE, stamps))
    missing = [(name, images) for name, images in cases.items() if name not in known]
    faults = []
    workers, remedy = min(processes, max(1, len(missing))), "a smaller -np: what is done is kept"
    done = map_in_processes(describer, missing, processes=workers, remedy=remedy)
    with _Writer(folder / CACHE) as writer:
        for name, found in tqdm(done, total=len(missing), desc="Looking at images", disable=not missing):
            if isinstance(found, str):
                faults.append(found)
                continue
            writer.add(name, stamps[name], found)
            known[name] = np.asarray(found, dtype=np.float32)
    if faults and not skip_bad:
        more = f" ({len(faults) - 1} more are bad)" if len(faults) > 1 else ""
        raise MNError(f"{faults[0]}{more}; --skip-bad leaves bad images out")
    return known, faults


def _stamp(images: Iterable[Path], describer: Describer) -> list[Any]:
    """What features depend on: the images as they are, and the network."""
    stats = [image.stat() for image in images if image.exists()]
    return [describer.config.backbone, SIDE, SLICES, *((stat.st_size, stat.st_mtime_ns) for stat in stats)]


def _read(file: Path, stamps: Mapping[str, list[Any]]) -> Iterator[tuple[str, Features]]:
    """The known features of images that are as they were."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for line in lines:
        try:
            case = json.loads(line)
            if json.dumps(stamps.get(case["case"])) == json.dumps(case["stamp"]):
                yield case["case"], np.asarray(case["features"], dtype=np.float32)
        except (ValueError, KeyError, TypeError):  # empty, or cut off by a kill
            continue


class _Writer:
    """Appends results to a file. Where that is not allowed, or the disk is full, no more are kept."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> "_Writer":
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._stream: Any = self.file.open("a", encoding="utf-8")
        except OSError:
            self._stream = None
        return self

    def add(self, name: str, stamp: list[Any], features: list[float]) -> None:
        if self._stream is None:
            return
        line = json.dumps({"case": name, "stamp": stamp, "features": features})
        try:
            self._stream.write(f"\n{line}\n")  # a killed run may have left half a line
            self._stream.flush()
        except OSError:
            self._close()

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # it writes what is not yet written
                self._stream.close()
            self._stream = None
