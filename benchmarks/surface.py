"""nnU-Net's whole surface through its own commands, with M&N's trainer, on generated data; writes docs/surface.md.

Usage: python benchmarks/surface.py FOLDER [--only NAME ...]

Every scenario combines several features in one dataset. It calls the functions behind stock's commands in this process,
with threads in place of worker processes. Intensity statistics take few voxels, since all would take most of the time.
A row of the table says whether its scenario ran to the end. The folder keeps all output.
"""

import argparse
import datetime
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from surface_data import prepare_process
from surface_scenarios import ROWS

from nnunet_mn.bridge.registration import register
from nnunet_mn.errors import MNError

PAGE = Path(__file__).parents[1] / "docs" / "surface.md"


def main() -> None:
    """Run the scenarios and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    arguments = parser.parse_args()
    root = arguments.folder.resolve()
    prepare_process(root)
    register()
    known = root / "states.json"
    states: dict[str, str] = json.loads(known.read_text()) if known.exists() else {}
    for name in arguments.only:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
        sys.path.insert(0, str(root / name))
        try:
            ROWS[name][0](root / name)
            states[name] = "works"
        except MNError as error:
            states[name] = f"fails: {str(error).replace(str(root), '')}"
        known.write_text(json.dumps(states))
        print(f"{name}: {states[name]}", flush=True)
    if set(states) == set(ROWS):
        PAGE.write_text(page(states), encoding="utf-8")
    sys.exit(any(state != "works" for state in states.values()))


def page(states: dict[str, str]) -> str:
    """The table as Markdown."""
    lines = [
        "# nnU-Net's features with M&N",
        "",
        "Each row was run through the functions behind nnU-Net's own commands (plan, preprocess, train for one epoch",
        "of three updates, predict) on generated data. `python benchmarks/surface.py FOLDER` wrote this page on",
        f"{datetime.date.today().isoformat()} with nnunetv2 {version('nnunetv2')}. It says what runs.",
        "How well the models segment is not tested.",
        "",
        "| feature | scenario | state |",
        "|---|---|---|",
    ]
    lines += [f"| {item} | `{name}` | {states[name]} |" for name, (_, items) in ROWS.items() for item in items]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
