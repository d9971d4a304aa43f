"""Foreground locations of unlabeled cases in a file, which the trainer writes and every loader worker reads."""

import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import Value
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_mn.bridge.files import write_arrays
from nnunet_mn.errors import MNError

NEVER = -1


class ForegroundLocations:
    """Sampled foreground voxels of unlabeled cases. The trainer writes them, every worker reads them.

    Args:
        folder: of the fold's results. Each refresh writes one file.
        keys: from `location_keys`.
        iterations_per_epoch: for the files' names.
    """

    def __init__(self, folder: Path, keys: Sequence[Any], *, iterations_per_epoch: int) -> None:
        self.folder, self.keys, self.iterations_per_epoch = folder, list(keys), iterations_per_epoch
        self._position = Value("q", NEVER, lock=False)  # one aligned integer: written and read in one piece
        self._opened: tuple[int, Any] = (NEVER, {})
        self._close: Callable[[], object] | None = None

    @property
    def position(self) -> int:
        """Iterations done at the refresh in use; negative before the first."""
        return int(self._position.value)

    def use(self, position: int) -> bool:
        """Take the locations of an earlier refresh, for a resumed training; false if its file is gone."""
        if position >= 0 and not self._file(position).is_file():
            return False
        self._position.value = position
        return True

    def of(self, case: str) -> dict[Any, np.ndarray]:
        """Locations `(n, 4)` of a case by class, in the form of nnU-Net's loader; empty if none are known."""
        with self._reading():
            arrays = self._arrays()
            found = ((key, arrays.get(f"{case}/{index}")) for index, key in enumerate(self.keys))
            return {key: np.pad(voxels, ((0, 0), (1, 0))) for key, voxels in found if voxels is not None}

    def write(self, position: int, located: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Keep the locations of some cases beside those of earlier refreshes, and let all workers use them.

        Args:
            position: iterations done.
            located: voxels `(n, 3)` by case and foreground channel; n is 0 if the pseudo-mask is empty.

        Raises:
            MNError: if the earlier file cannot be read, or the new one cannot be written.
        """
        with self._reading():
            earlier = self._arrays()
            kept = {key: earlier[key] for key in earlier if key.rpartition("/")[0] not in located}
        new = {f"{case}/{i}": voxels for case, all_ in located.items() for i, voxels in enumerate(all_) if len(voxels)}
        file = self._file(position)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(file, {**kept, **new})
        except OSError as error:
            raise MNError(
                f"the foreground locations {file} could not be written ({error}): free some space and continue with --c"
            ) from error
        self._position.value = position

    def _file(self, position: int) -> Path:
        epoch, iteration = divmod(position, self.iterations_per_epoch)
        return self.folder / f"foreground_epoch_{epoch:04d}_iteration_{iteration:04d}.npz"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Read the file in use inside. A fault of it is not one of a case."""
        try:
            yield
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise MNError(
                f"the foreground locations {self._file(self.position)} cannot be read ({error}): delete the file and "
                f"continue with --c"
            ) from error

    def _arrays(self) -> Mapping[str, np.ndarray]:
        """The file in use. Each process opens it once, and reads a case's arrays when it draws the case."""
        position = self.position
        if self._opened[0] != position:
            if self._close is not None:
                self._close()
            arrays = np.load(self._file(position))
            self._opened, self._close = (position, arrays), weakref.finalize(self, arrays.close)
        opened: Mapping[str, np.ndarray] = self._opened[1]
        return opened

    def __getstate__(self) -> dict[str, Any]:
        # An open file does not cross to a spawned process.
        return {**self.__dict__, "_opened": (NEVER, {}), "_close": None}
