"""A page about a trained model, for those who get its zip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_mn.networks.registry import license_of

UNKNOWN = "not recorded"


@dataclass(frozen=True, kw_only=True)
class FoldOnCard:
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


def model_card(title: str, folds: Sequence[FoldOnCard]) -> str:
    """Write the page in Markdown. Where folds differ, it says which fold has what.

    Args:
        title: dataset and model folder.
        folds: at least one.
    """
    classes = dict.fromkeys(name for fold in folds for name in fold.dice)
    settings = dict.fromkeys(name for fold in folds for name in fold.config)
    packages = dict.fromkeys(name for fold in folds for name in fold.versions)
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
            *_table(["fold", "cases", *classes], [_scores(fold, list(classes)) for fold in folds]),
            "",
            "## Pretrained 2D network",
            "",
            *(f"- {network}" for network in _by_fold(folds, [_network_2d(fold.config["backbone"]) for fold in folds])),
            "",
            "The 3D network was trained with its pseudo-masks. Does the license bind the 3D network too? The user has "
            "to judge.",
            "",
            "## Settings and versions",
            "",
            *_table(["setting", "value"], [[f"`{name}`", _setting(folds, name)] for name in settings]),
            "",
            ", ".join(f"{name} {_version(folds, name)}" for name in packages),
            "",
        ]
    )


def _network_2d(backbone: str) -> str:
    return f"`{backbone}`; license of its weights: {license_of(backbone)}"


def _setting(folds: Sequence[FoldOnCard], name: str) -> str:
    return ", ".join(_by_fold(folds, [f"`{fold.config.get(name, UNKNOWN)}`" for fold in folds]))


def _version(folds: Sequence[FoldOnCard], name: str) -> str:
    return " and ".join(_by_fold(folds, [fold.versions.get(name, UNKNOWN) for fold in folds]))


def _by_fold(folds: Sequence[FoldOnCard], texts: Sequence[str]) -> list[str]:
    """The text that all folds have; else each text with the folds that have it."""
    names: dict[str, list[str]] = {}
    for fold, text in zip(folds, texts, strict=True):
        names.setdefault(text, []).append(fold.name)
    return list(names) if len(names) == 1 else [f"{text} ({', '.join(of)})" for text, of in names.items()]


def _counts(fold: FoldOnCard) -> list[str]:
    return [fold.name, *(str(fold.cases.get(kind, UNKNOWN)) for kind in ("labeled", "unlabeled", "val"))]


def _scores(fold: FoldOnCard, names: Sequence[str]) -> list[str]:
    return [fold.name, str(fold.n_validated), *(_score(fold.dice.get(name)) for name in names)]


def _score(dice: float | None) -> str:
    return UNKNOWN if dice is None else f"{dice:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
