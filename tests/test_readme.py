"""The README says what is so."""

import os
import re
from dataclasses import fields
from pathlib import Path

import typer

from nnunet_mn.bridge.registration import TRAINERS
from nnunet_mn.cli import app
from nnunet_mn.config import MNConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SET_UP, TEST = (block.strip() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)[:2])


def test_ci_runs_the_readme_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    install, _, demo = SET_UP.rpartition(" && ")
    assert demo == ".venv/bin/nnunet-mn demo"
    assert install in script
    assert script[-1] == TEST


def test_ci_script_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", README, re.MULTILINE))
    assert rows == {field.name: str(field.default) for field in fields(MNConfig)}


def test_it_names_every_command_and_no_other() -> None:
    named = set(re.findall(r"nnunet-mn ([a-z][a-z-]+)", README))
    assert named == set(typer.main.get_command(app).commands)


def test_every_trainer_that_it_names_exists_and_the_other_way_round() -> None:
    suffixes = {name.removeprefix("nnUNetTrainerMN") for name in TRAINERS if "epoch" in name}
    assert set(re.findall(r"(_\d+epochs?)`", README)) == suffixes
    assert set(re.findall(r"nnUNetTrainerMN\w*", README)) <= set(TRAINERS)


def test_no_link_to_a_file_is_dead() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
