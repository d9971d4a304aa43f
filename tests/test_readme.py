"""The README and the pages that it links to say what is so."""

import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from nnunet_mn.bridge.registration import PLANNERS, TRAINERS
from nnunet_mn.cli import app
from nnunet_mn.config import PRESETS, REMOVED, MNConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS, PRESET_TABLE, LENGTHS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8").split("\n## ")[1:]
SET_UP, TEST = (block.strip() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)[:2])
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_ci_runs_the_readme_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    install, _, demo = SET_UP.rpartition(" && ")
    assert demo == ".venv/bin/nnunet-mn demo"
    assert install in script
    assert script[-1] == TEST


def test_ci_script_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_both_commands_and_the_gain_stand_on_the_first_screen() -> None:
    first_screen = "\n".join(README.splitlines()[:40])
    assert SET_UP in first_screen
    assert TEST in first_screen
    assert "How much will I gain?" in first_screen


def test_the_gain_is_that_of_the_tables_of_the_evidence() -> None:
    tables = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8").split("<!-- accuracy: written")[1]
    alone, gains = {}, {}
    for data, table in zip(("hippocampus", "left atrium"), tables.split("\nDataset")[1:3], strict=True):
        for labels, method, dice, gain in re.findall(
            r"^\| (\d+) \| [^|]+ \| `(\S+)` \| (\S+)[^|]* \| ?(\S+ \[\S+ \S+\]|) ?\w* \|", table, re.MULTILINE
        ):
            alone[f"{data}, {labels}", method], gains[f"{data}, {labels}", method] = dice, gain
    claimed = re.findall(r"^\| ([^|]+, \d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", README, re.MULTILINE)
    sets = [f"{data}, {labels}" for data in ("hippocampus", "left atrium") for labels in ("4", "8", "16")]
    assert [row for row, *_ in claimed] == sets
    for row, dice, *of_methods in claimed:
        assert dice == alone[row, "nnunet-adamw"]
        for method, gain in zip(("mn", "joint", "student"), of_methods, strict=True):
            assert gain == gains.get((row, method), "–"), (row, method)


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", SETTINGS, re.MULTILINE))
    assert rows == {field.name: str(field.default) for field in fields(MNConfig)}


def test_every_default_of_the_papers_preset_stands_in_its_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| `([^`]+)` \|$", PRESET_TABLE, re.MULTILINE)
    defaults = {field.name: field.default for field in fields(MNConfig)}
    assert rows == [(name, str(defaults[name]), str(value)) for name, value in PRESETS["paper"].items()]


def test_no_page_recommends_a_setting_that_does_not_exist(page: Path) -> None:
    named = set(re.findall(r"nnUNet_mn_(\w+)", page.read_text(encoding="utf-8")))
    assert named <= {field.name for field in fields(MNConfig)}


def test_the_changelog_names_every_setting_that_is_gone() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [name for name in REMOVED if f"`{name}`" not in changelog] == []


def test_it_names_every_command_and_no_other() -> None:
    named = set(re.findall(r"nnunet-mn ([a-z][a-z-]+)", README))
    assert named == set(typer.main.get_command(app).commands)


def test_no_page_names_a_command_that_does_not_exist(page: Path) -> None:
    named = set(re.findall(r"`nnunet-mn ([a-z][a-z-]+)", page.read_text(encoding="utf-8")))
    assert named <= set(typer.main.get_command(app).commands)


def test_every_trainer_that_it_names_exists_and_the_other_way_round() -> None:
    suffixes = {
        name.removeprefix("nnUNetTrainerMN") for name in TRAINERS if "epoch" in name and "Benchmark" not in name
    }
    assert set(re.findall(r"(_\d+epochs?)`", LENGTHS)) == suffixes
    assert "`nnUNetTrainerMNBenchmark_5epochs`" in LENGTHS
    assert set(re.findall(r"nnUNetTrainerMN\w*", README + LENGTHS)) <= set(TRAINERS)


def test_every_planner_stands_on_its_page() -> None:
    planning = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| \d+ \|", planning, re.MULTILINE)
    assert {*rows, "MNFingerprintExtractor"} == set(PLANNERS)


def test_no_link_to_a_file_is_dead(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_no_link_to_a_heading_is_dead(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+(.*)", text, re.M)
    }
    assert [link for link in re.findall(r"\]\(#([^)]+)\)", text) if link not in headings] == []
