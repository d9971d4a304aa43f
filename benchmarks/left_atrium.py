"""Turn the scans of the Left Atrium challenge (2018) into a raw nnU-Net dataset with the split of published methods.

    python benchmarks/left_atrium.py SCANS TRAIN_LIST TEST_LIST --raw $nnUNet_raw [--dataset 501]

SCANS holds one folder a case with `lgemri.nrrd` and `laendo.nrrd`, as the challenge delivers them. The lists name a
case a line: 80 for training and 20 for testing. Published methods label the first cases of the training list. Fold 0
has 4 labeled cases, fold 1 has 8, fold 2 all 80. The test cases are every fold's `val`. Nothing is chosen on them: the
benchmark takes the final checkpoint.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import SimpleITK
import typer

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.errors import MNError

LABELED = (4, 8)


def convert(
    scans: Annotated[Path, typer.Argument(help="folder of the challenge's cases")],
    train_list: Annotated[Path, typer.Argument(help="names of the training cases, a line each")],
    test_list: Annotated[Path, typer.Argument(help="names of the test cases, a line each")],
    raw: Annotated[Path, typer.Option(help="nnUNet_raw")],
    dataset: int = 501,
) -> None:
    """Write the dataset; an existing one is left alone."""
    train, test = _names(train_list), _names(test_list)
    folder = raw / f"Dataset{dataset:03d}_LeftAtrium"
    if folder.exists():
        raise MNError(f"{folder} exists already; choose another --dataset")
    missing = [name for name in train + test if not (scans / name / "lgemri.nrrd").is_file()]
    if missing:
        raise MNError(f"{scans} lacks lgemri.nrrd of {len(missing)} case(s), of '{missing[0]}' for one")
    if both := set(train) & set(test):
        raise MNError(f"'{min(both)}' stands in both lists")
    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    for part in ("imagesTr", "labelsTr"):
        (staging / part).mkdir(parents=True)
    for name in train + test:
        shutil.copyfile(scans / name / "lgemri.nrrd", staging / "imagesTr" / f"{name}_0000.nrrd")
        mask = SimpleITK.ReadImage(str(scans / name / "laendo.nrrd")) > 0  # 255 inside
        SimpleITK.WriteImage(mask, str(staging / "labelsTr" / f"{name}.nrrd"), useCompression=True)
    splits = [{"train": train[:n], "val": test, "unlabeled": train[n:]} for n in (*LABELED, len(train))]
    write_whole(staging / "splits_final.json", json.dumps(splits, indent=1))
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "atrium": 1},
        "numTraining": len(train) + len(test),
        "file_ending": ".nrrd",
    }
    write_whole(staging / "dataset.json", json.dumps(description, indent=1))
    staging.rename(folder)
    typer.echo(
        f"{folder}: {len(train)} training and {len(test)} test cases; labeled: {[len(s['train']) for s in splits]}"
    )


def _names(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise MNError(f"the list {file} cannot be read: {error.strerror}") from error


if __name__ == "__main__":
    try:
        typer.run(convert)
    except MNError as error:
        typer.echo(f"left_atrium.py: {error}", err=True)
        raise SystemExit(2) from None
