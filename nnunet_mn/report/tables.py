"""The numbers of the page as JSON and as CSV."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nnunet_mn.bridge.files import without_nan
from nnunet_mn.report.cases import NETWORKS, CaseResult
from nnunet_mn.report.ranking import Ranked
from nnunet_mn.report.training import Training
from nnunet_mn.report.validation import Dice

COLUMNS = (
    "role", "rank", "case", "structure", "estimated_dice", "disagreement", "mean_entropy", "volume_ml", "components",
    "nnunet_dice", "nnunet_hd95_mm", *(f"dice_{network.lower()}" for network in NETWORKS), "reasons",
)  # fmt: skip


def rows_of(val: Sequence[CaseResult], official: Dice, ranked: Sequence[Ranked]) -> Iterator[dict[str, Any]]:
    """A row for each structure of each case. The unlabeled cases come in their rank.

    Args:
        val: validation cases.
        official: nnU-Net's Dice of them.
        ranked: unlabeled cases.
    """
    for case in val:
        for name in case.structures:
            own: dict[str, Any] = {
                "nnunet_dice": official.get(case.name, {}).get(name),
                "nnunet_hd95_mm": case.hd95.get(name),
            }
            yield _row(case, name) | own
    for place, one in enumerate(ranked, start=1):
        for name in one.case.structures:
            own = {"rank": place, "estimated_dice": one.estimates[name], "reasons": "; ".join(one.reasons)}
            yield _row(one.case, name) | own


def _row(case: CaseResult, name: str) -> dict[str, Any]:
    numbers = case.structures[name]
    return {
        **dict.fromkeys(COLUMNS),
        "role": case.role,
        "case": case.name,
        "structure": name,
        "estimated_dice": numbers.estimate,
        "disagreement": numbers.disagreement,
        "mean_entropy": numbers.entropy,
        "volume_ml": numbers.volume_ml,
        "components": numbers.components,
        **{f"dice_{network.lower()}": value for network, value in numbers.dice.items()},
    }


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table with a head. Nothing stands for what does not exist."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_json(training: Training, rows: Sequence[Mapping[str, Any]]) -> str:
    """The training, and the same rows. null stands for what does not exist."""
    return json.dumps(without_nan({"training": asdict(training), "cases": list(rows)}), indent=1)
