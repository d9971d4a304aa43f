"""The page of the report: what stands in it, how large it is, and that it works in a browser."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nnunet_mn.report.page import TO_LABEL, WITH_PLANES, render, worth_here
from nnunet_mn.report.ranking import rank
from nnunet_mn.report.tables import COLUMNS, as_csv, as_json, rows_of
from nnunet_mn.report.worth import MEASURED

EVIL = '<script>alert("x")</script>&\''
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MIB = 2**20
ROOT = Path(__file__).parents[1]

# Does in a browser what a reader does. What is wrong then is in the list `wrong`.
SESSION = """
const wrong = [], check = (text, holds) => { if (!holds) wrong.push(text); };
const type = (id, value) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("input", { bubbles: true }));
};
const cases = () => [...document.querySelectorAll("#cases tbody")].filter((entry) => entry.checkVisibility());
const viewer = document.getElementById("viewer"), press = (key) =>
  viewer.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
check("25 cases a page", cases().length === 25);
document.getElementById("later").click();
check("the rest on the next page", cases().length === 5);
type("text", "CASE_07");
check("filter by text", cases().length === 1 && cases()[0].dataset.name === "case_07");
type("text", "");
type("structure", "1");
const other = cases()[0].querySelector('[data-structure="0"] [data-label=estimate]');
check("filter by structure", !other.checkVisibility());
type("structure", "");
type("sort", "name");
check("sort by name", cases()[2].dataset.name === "case_01");
cases()[2].querySelector("button.open").focus();
document.activeElement.click();
check("click opens three planes", viewer.open && viewer.querySelectorAll("svg.plane").length === 3);
check("the case is named", document.getElementById("viewed").textContent === "case_01");
check("no truth of unlabeled cases", !viewer.querySelector(".truth-only").checkVisibility());
press("ArrowRight");
check("an arrow key goes on", document.getElementById("viewed").textContent === "case_02");
const box = viewer.querySelector("[data-layer=of-3d]");
const contour = viewer.querySelector("path.of-3d");
check("contours are shown", contour.checkVisibility());
box.click();
check("a box hides contours", !contour.checkVisibility());
viewer.close();
document.querySelector("#validation button.open").click();
check("validation cases open, too", viewer.querySelector("path.truth").checkVisibility());
viewer.close();
check("no sideways scrolling", document.documentElement.scrollWidth <= window.innerWidth);
document.title = "wrong: " + wrong.join("; ");
"""


class Tags(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def many(report_content: ModuleType) -> Any:
    """The content of a page with 30 unlabeled cases, one of them with an evil name."""
    made = report_content.case("case_00")
    named = [replace(made, name=f"case_{i:02d}") for i in range(29)]
    return report_content.content([replace(made, name=EVIL), *named])


@pytest.fixture(scope="module")
def page(many: Any) -> str:
    return render(many)


def test_names_from_outside_are_text_not_code(page: str) -> None:
    scripts = [tag for tag, _ in Tags(page).found if tag in ("script", "i", "b")]
    assert scripts.count("script") == 1  # its own
    assert "i" not in scripts
    assert EVIL not in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in page
    assert page.count("&lt;b&gt;tail&lt;/b&gt;") > 30


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    addresses = [
        value for _, attributes in Tags(page).found for key, value in attributes.items() if key in ("src", "href")
    ]
    assert len(addresses) > 100
    assert {str(value)[:5] for value in addresses if not str(value).startswith("#")} == {"data:"}
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page)


def test_every_picture_and_control_has_words(page: str) -> None:
    for tag, attributes in Tags(page).found:
        if tag == "img":
            assert attributes.get("alt")
        if tag == "button" and attributes.get("class") == "open":
            assert str(attributes.get("aria-label")).startswith("Show ")


def test_the_first_ten_to_label_have_reasons_in_words(page: str) -> None:
    items = re.findall(r"<li><strong>.*?</li>", page)
    assert len(items) == TO_LABEL
    assert all("nothing else stands out" in item for item in items)


def test_settings_versions_and_skipped_updates_stand_in_it(page: str) -> None:
    for text in ("efficientnet-lite0", "version of nnunetv2", "3 of 4", "0 and 1", "2 s"):
        assert text in page


def test_a_hundred_large_cases_take_less_than_15_mb(report_content: ModuleType) -> None:
    large = report_content.case("case", shape=(40, 220, 220))
    made = render(report_content.content([replace(large, name=f"case_{i}") for i in range(100)]))
    assert made.count("<template") == 100 + 2
    assert len(made.encode()) < 15 * MIB


def test_a_thousand_cases_have_thumbnails_and_the_worst_their_planes(report_content: ModuleType) -> None:
    made = report_content.case("case", shape=(30, 60, 60))
    page = render(report_content.content([replace(made, name=f"case_{i}") for i in range(1000)], val=[]))
    assert page.count("<template") == WITH_PLANES
    assert page.count('class="thumb"') == 1000 - WITH_PLANES
    assert len(page.encode()) < 15 * MIB


def test_a_training_without_validation_and_epochs_has_a_page(report_content: ModuleType) -> None:
    training = replace(report_content.TRAINING, epochs=0, seconds=(), log={}, state="running")
    page = render(replace(report_content.content([], val=[]), training=training, official={}))
    assert "There is no validation case" in page
    assert "nnU-Net has not validated yet" in page


def test_the_worst_comes_first_and_a_missing_structure_counts_zero(report_content: ModuleType) -> None:
    good, bad = report_content.case("good", shift=0.02), report_content.case("bad", shift=0.5)
    gone = replace(good, name="gone", structures={
        name: replace(numbers, volume_ml=0.0, estimate=None, disagreement=None) if name == "head" else numbers
        for name, numbers in good.structures.items()
    })  # fmt: skip
    ranked = rank([good, gone, bad], report_content.USUAL)
    assert [one.case.name for one in ranked][-1] == "good"
    by_name = {one.case.name: one for one in ranked}
    assert by_name["gone"].estimates["head"] == 0
    assert "head is not found, and every labeled case has it" in by_name["gone"].reasons
    assert any("disagree on head" in reason for reason in by_name["bad"].reasons)


def test_a_validation_case_without_any_structure_is_neither_the_median_nor_the_best(report_content: ModuleType) -> None:
    made = report_content.case("case", "val")
    names = ("worse", "middle", "better", "empty_1", "empty_2")
    content = report_content.content([], val=[replace(made, name=name) for name in names])
    official = {name: dict.fromkeys(numbers, None) if "empty" in name else numbers
                for name, numbers in content.official.items()}  # fmt: skip
    page = render(replace(content, official=official))
    assert re.findall("<h4>(worst|median|best): (.*)</h4>", page) == [
        ("worst", "worse"), ("median", "middle"), ("best", "better"),
    ]  # fmt: skip
    assert page.count('<th scope="row">empty_') == 2


def test_ignored_voxels_do_not_count_for_dice(report_content: ModuleType) -> None:
    plain, ignoring = (report_content.case("case", "val", ignored=ignored) for ignored in (False, True))
    for name, numbers in plain.structures.items():
        assert numbers.dice["2D"] < 0.95
        assert ignoring.structures[name].dice["2D"] == 1


def test_pictures_of_validation_cases_do_not_aim_at_ignored_voxels(report_content: ModuleType) -> None:
    networks, truth = report_content.labels((12, 20, 16)), report_content.labels((12, 20, 16), shift=0.1)
    networks[:2] = 1  # far more wrong voxels than elsewhere, but they do not count
    truth[:3] = 9
    made = report_content.assessed("case", "val", truth=truth, networks=(networks,) * 3, ignored=True)
    assert made.planes[0].slice > 2
    plain = report_content.assessed("case", "val", truth=truth, networks=(networks,) * 3, ignored=False)
    assert plain.planes[0].slice < 3


def test_the_page_says_why_labeled_cases_are_missing(report_content: ModuleType) -> None:
    content = report_content.content([report_content.case("case")])
    assert "voxels to be ignored" not in render(content)
    assert "(without those with voxels to be ignored" in render(replace(content, ignores=True))


def test_pictures_have_the_shape_of_the_body_not_of_the_voxels(report_content: ModuleType) -> None:
    made = report_content.case("case", shape=(12, 20, 16))  # of 3, 1 and 1.5 mm
    views = [re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture.svg)[0] for picture in made.planes]
    assert [tuple(map(float, view)) for view in views] == [(24, 20), (24, 36), (20, 36)]
    assert all(f'class="of-{name} s{i}"' in made.planes[0].svg for name in ("3d", "2d", "joint") for i in (0, 1))


def test_unusual_volumes_and_parts_are_named(report_content: ModuleType) -> None:
    made = report_content.case("case")
    for volume, words in ((5.0, "more than in any labeled case"), (0.1, "less than in any labeled case")):
        numbers = replace(made.structures["head"], volume_ml=volume, components=4)
        (one,) = rank([replace(made, structures={**made.structures, "head": numbers})], report_content.USUAL)
        assert any(words in reason for reason in one.reasons)
        assert "head falls into 4 parts (labeled cases: at most 1)" in one.reasons


def test_the_estimate_is_compared_with_the_truth_of_enough_validation_cases(report_content: ModuleType) -> None:
    val = [report_content.case(f"val_{i}", "val", sure=0.7 + 0.04 * i) for i in range(6)]
    found = worth_here(val)
    assert found is not None
    assert found["cases"] == 6
    assert worth_here(val[:4]) is None


def test_csv_and_json_hold_the_same_numbers(many: Any) -> None:
    rows = list(rows_of(many.val, many.official, many.ranked))
    from_json = json.loads(as_json(many.training, rows))["cases"]
    from_csv = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert tuple(from_csv[0]) == COLUMNS
    assert len(from_csv) == len(from_json) == 2 * (30 + 2)
    for one, other in zip(from_csv, from_json, strict=True):
        assert one == {key: "" if value is None else str(value) for key, value in other.items()}
    assert any(row["case"] == EVIL for row in from_csv)
    assert from_json[-1]["rank"] == 30


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_filters_and_clicks_work_without_an_error(page: str, width: int, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"<script>{SESSION}</script></body>"), encoding="utf-8")
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert re.findall(r"<title>(.*?)</title>", done.stdout) == ["wrong: "]


def test_the_worth_of_the_estimate_is_that_of_the_benchmark(page: str) -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "quality.json").read_bytes())
    assert [(one.dataset, one.labeled, one.cases, list(one.correlations)) for one in MEASURED] == [
        (one["dataset"], one["labeled"], one["cases"], one["correlations"]) for one in measured
    ]
    for one in MEASURED:
        cases = f"({one.labeled} labeled and {one.cases} unlabeled cases)"
        correlations = " and ".join(f"{value:.2f}" for value in one.correlations)
        assert f"{correlations} on {one.data} {cases}" in " ".join(page.split())


def test_the_page_about_reports_quotes_the_scores_of_the_benchmark() -> None:
    docs = (ROOT / "docs" / "report.md").read_text(encoding="utf-8").replace("−", "-")
    results = (ROOT / "benchmarks" / "results" / "quality.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| ([^|]+) \| ([^|]+, [^|]+) \| ([^|]+, [^|]+) \|$", docs, re.MULTILINE)
    assert len(quoted) == 5
    for score, hippocampus, atrium in quoted:
        name = score.removesuffix(" (the page's estimate)")
        (row,) = (line for line in results.splitlines() if line.startswith(f"| {name} "))
        assert re.findall(r"\| (0\.\d\d) \[", row) == [*hippocampus.split(", "), *atrium.split(", ")]
