"""A page about a trained model, for those who get its zip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN = "not recorded"


@dataclass(frozen=True, kw_only=True)
class TrainedFold:
    """One fold's part of a model card.

    Args:
        name: its folder, such as `fold_0`.
        cases: numbers of `labeled`, `unlabeled` and `val` cases; empty if the training did not record them.
        config: the settings of the training.
        versions: of the packages in the training.
        dice: mean validation Dice of each class or region, and of the foreground.
        n_validated: cases behind these means.
    """

    name: str
    cases: Mapping[str, int]
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    dice: Mapping[str, float]
    n_validated: int


def model_card(title: str, folds: Sequence[TrainedFold], *, license: str) -> str:
    """Write the page in Markdown.

    Args:
        title: dataset and model folder.
        folds: at least one; the settings of the first stand for all.
        license: of the 2D network's pretrained weights.
    """
    first = folds[0]
    return "\n".join(
        [
            f"# {title}",
            "",
            "A 3D network of nnU-Net, trained with labeled and unlabeled cases by nnunet-mn (arXiv 2509.15167). It "
            "runs on stock nnU-Net. The 2D network of the training is not included.",
            "",
            "## Data",
            "",
            *_table(["fold", "labeled", "unlabeled", "validation"], [_counts(fold) for fold in folds]),
            "",
            "## Final validation (mean Dice)",
            "",
            *_table(["fold", "cases", *first.dice], [_scores(fold, list(first.dice)) for fold in folds]),
            "",
            "## Pretrained 2D network",
            "",
            f"`{first.config['backbone']}`; license of its weights: {license}. The 3D network was trained with its "
            f"pseudo-masks. Does the license bind the 3D network too? The user has to judge.",
            "",
            "## Settings and versions",
            "",
            *_table(["setting", "value"], [[f"`{k}`", f"`{v}`"] for k, v in first.config.items()]),
            "",
            ", ".join(f"{name} {version}" for name, version in first.versions.items()),
            "",
        ]
    )


def _counts(fold: TrainedFold) -> list[str]:
    return [fold.name, *(str(fold.cases.get(kind, UNKNOWN)) for kind in ("labeled", "unlabeled", "val"))]


def _scores(fold: TrainedFold, names: Sequence[str]) -> list[str]:
    return [fold.name, str(fold.n_validated), *(f"{fold.dice[name]:.4f}" for name in names)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
