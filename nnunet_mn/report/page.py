"""The page: one HTML file that needs no other file and no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from scipy.stats import spearmanr

from nnunet_mn.report.cases import NETWORKS, CaseResult
from nnunet_mn.report.plots import plot_estimates, training_plots
from nnunet_mn.report.ranking import Ranked, mean_of, ml
from nnunet_mn.report.reference import Usual
from nnunet_mn.report.training import Training
from nnunet_mn.report.validation import Dice
from nnunet_mn.report.worth import MEASURED

TO_LABEL = 10  # cases under "what to label next"
WITH_PLANES = 100  # cases of each kind whose three planes are in the page; the worst ones
FEWEST_CORRELATED = 5  # validation cases


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that the page shows.

    Args:
        title: dataset, trainer and fold.
        training: the training.
        official: nnU-Net's Dice of the validation cases.
        val: the validation cases.
        ranked: the unlabeled cases, worst first.
        usual: structures in the labeled cases.
        ignores: the dataset has an ignore label.
        held_out: training has not seen the validation cases.
        channel: the name of the image channel in the pictures.
        spacing: mm of the grid of the training.
        warnings: for the user.
        mirroring: the networks saw mirrored windows, too.
        masks: where the masks are; None without them.
    """

    title: str
    training: Training
    official: Dice
    val: Sequence[CaseResult]
    ranked: Sequence[Ranked]
    usual: Mapping[str, Usual]
    ignores: bool
    held_out: bool
    channel: str
    spacing: Sequence[float]
    warnings: Sequence[str]
    mirroring: bool
    masks: str | None


def render(content: Content) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("nnunet_mn.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "ml": ml, "svg": Markup, "odd": _odd}
    val = _by_dice(content)
    return environment.get_template("report.html.jinja").render(
        content=content,
        style=Markup(_file("report.css")),
        script=Markup(_file("report.js")),
        networks=NETWORKS,
        structures=list(content.usual),
        val=val,
        exemplary=_exemplary(val),
        means=_means(content.val),
        plots=training_plots(content.training.log, content.training.seconds),
        worth_here=worth_here(content.val) if content.held_out else None,
        measured=MEASURED,
        to_label=TO_LABEL,
        with_planes=WITH_PLANES,
    )


def _file(name: str) -> str:
    return files("nnunet_mn.report").joinpath("templates", name).read_text(encoding="utf-8")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _odd(value: float, smallest: float, largest: float) -> str:
    """A mark for a value outside of a range."""
    return "▲" if value > largest else "▼" if value < smallest else ""


def _by_dice(content: Content) -> list[dict[str, Any]]:
    """The validation cases with their mean Dice, worst first: nnU-Net's, or on the grid of the training without it."""
    rows = []
    for case in content.val:
        official = content.official.get(case.name)
        own = {name: numbers.dice.get("3D") for name, numbers in case.structures.items()}
        dice = official if official is not None else own
        rows.append({"case": case, "dice": dice, "mean": mean_of(dice.values()), "of_joint": _joint_dice(case)})
    return sorted(rows, key=lambda row: (row["mean"] is None, row["mean"], row["case"].name))


def _joint_dice(case: CaseResult) -> float | None:
    return mean_of(numbers.dice.get("joint") for numbers in case.structures.values())


def _exemplary(val: Sequence[dict[str, Any]]) -> list[tuple[str, CaseResult]]:
    """The worst, the median and the best case of those with a Dice; fewer if there are not three."""
    cases = [row["case"] for row in val if row["mean"] is not None]
    places = {"worst": 0, "median": (len(cases) - 1) // 2, "best": len(cases) - 1}
    found: dict[str, tuple[str, CaseResult]] = {}
    for word, place in places.items():
        if cases:
            found.setdefault(cases[place].name, (word, cases[place]))
    return list(found.values())


def _means(val: Sequence[CaseResult]) -> dict[str, dict[str, float | None]]:
    """Mean Dice of each network and structure over the validation cases, on the grid of the training."""
    names = list(val[0].structures) if val else []
    return {
        network: {name: mean_of(case.structures[name].dice.get(network) for case in val) for name in names}
        for network in NETWORKS
    }


def worth_here(val: Sequence[CaseResult]) -> dict[str, Any] | None:
    """How the estimated Dice fits the true one on the validation cases. None if they are too few."""
    pairs = [
        (estimate, dice)
        for case in val
        if (estimate := mean_of(n.estimate for n in case.structures.values())) is not None
        and (dice := _joint_dice(case)) is not None
    ]
    if len(pairs) < FEWEST_CORRELATED:
        return None
    estimated, true = zip(*pairs, strict=True)
    constant = len(set(estimated)) == 1 or len(set(true)) == 1
    return {
        "plot": plot_estimates(estimated, true),
        "cases": len(pairs),
        "correlation": None if constant else float(spearmanr(estimated, true).statistic),
        "error": float(sum(abs(a - b) for a, b in pairs) / len(pairs)),
    }
