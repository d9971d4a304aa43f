"""Time and memory of finding 100,000 unlabeled cases and of checking them against the manifest.

Usage: python benchmarks/cases.py [--cases N] [--folder DIR]

The image files are empty stand-ins and so are the preprocessed ones: neither step opens them.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nnunet_mn.bridge.cases.dataset import CaseFolders
from nnunet_mn.bridge.cases.manifest import Record, Voxels, look_at, settings_hash, with_content
from nnunet_mn.bridge.cases.roles import roles_of_fold
from nnunet_mn.bridge.cases.sources import UnlabeledCase
from nnunet_mn.bridge.cases.unlabeled import find_unlabeled
from nnunet_mn.bridge.preprocessing.to_do import survey

DATASET: dict[str, Any] = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
PLANS: dict[str, Any] = {
    "transpose_forward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "foreground_intensity_properties_per_channel": {},
    "configurations": {"3d_fullres": {"spacing": [1.0, 1.0, 1.0], "architecture": {}}},
}
Result = TypeVar("Result")


def make_stand_ins(root: Path, count: int) -> Path:
    """Write empty images, empty preprocessed cases and their manifest; return the folder of the latter."""
    images, folder = root / "raw" / "imagesUn", root / "data_unlabeled"
    images.mkdir(parents=True)
    folder.mkdir()
    names = [f"case_{i:06d}" for i in range(count)]
    for name in names:
        (images / f"{name}_0000.nii.gz").touch()
        for end in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{name}{end}").touch()
    settings = settings_hash(PLANS, PLANS["configurations"]["3d_fullres"], DATASET)
    voxels = Voxels((1, 128, 128, 128), "0" * 64, "0" * 64)
    later = time.time_ns() + 60 * 10**9  # as if preprocessed a minute after the images were written
    with folder.with_name("data_unlabeled.0-of-1.jsonl").open("w") as manifest:
        for name in names:
            image = [images / f"{name}_0000.nii.gz"]
            files = with_content(look_at(image), image)
            manifest.write(Record(name, "imagesUn", files, later, settings, voxels).to_line())
    return folder


def measure(what: str, step: Callable[[], Result]) -> Result:
    """Run a step and print its time and the peak memory of the process so far."""
    start, cpu = time.perf_counter(), time.process_time()
    result = step()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{what}: {wall:.2f} s (CPU {cpu:.2f} s), peak of the process {peak:.0f} MiB")
    return result


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the stand-ins go (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        folder = make_stand_ins(Path(root), arguments.cases)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"{arguments.cases} cases; the process before: {start:.0f} MiB")
        settings = settings_hash(PLANS, PLANS["configurations"]["3d_fullres"], DATASET)

        def find() -> tuple[UnlabeledCase, ...]:
            folders = CaseFolders(raw=Path(root) / "raw", labeled=Path(root) / "data", description=DATASET)
            return find_unlabeled(folders, roles_of_fold(None, 0, train=["a"], val=["b"]), None).cases

        cases = measure("finding", find)
        found = measure("checking against the manifest", lambda: survey(cases, folder, settings))
        print(f"torch is imported: {'torch' in sys.modules}; nnU-Net's preprocessor, which comes next, imports it")
        return 0 if len(cases) == arguments.cases and not found.to_do else 1


if __name__ == "__main__":
    sys.exit(main())
