"""Tables and a plot from the records of finished runs."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from evidence.methods import BASELINE, FAIR_BASELINE, JOINT, METHODS, OURS, STUDENT, UPPER_BOUND
from evidence.records import Half, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESAMPLES = 10_000
FEW = 4  # labels of the main comparison
NEAR = 0.06  # differences beyond it are written at the edge of the plot


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Paired difference of mean Dice, first minus second method, with a bootstrap interval of 95 %."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """It is a tie if the interval holds zero."""
        return "tie" if self.low <= 0 <= self.high else "better" if self.mean > 0 else "worse"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] {self.verdict}"


def paired_difference(ours: Sequence[Record], theirs: Sequence[Record], half: Half) -> Difference | None:
    """Compare the means of two methods on their common label sets; None if they share none.

    All trainings count, also where one method has more seeds: two trainings by one seed are no more alike than others.
    For the interval validation cases and label sets (folds) are drawn with replacement, and the trainings of either
    method on each of these. All label sets have the same validation cases.
    """
    label_sets = _label_sets(ours, theirs, half)
    if not label_sets:
        return None
    rng = np.random.default_rng(1)
    resampled = [_difference(*runs, rng) for runs in label_sets]
    low, high = np.percentile(np.mean([_draw(resampled, rng) for _ in label_sets], axis=0), [2.5, 97.5])
    mean = np.mean([np.mean(mine) - np.mean(others) for mine, others in label_sets])
    return Difference(mean=float(mean), low=float(low), high=float(high))


def comparison(ours: Sequence[Record], theirs: Sequence[Record]) -> str:
    """A table of two methods on their common label sets, with means of sets of one size; empty if they share none."""
    sizes = {r.fold: r.n_labeled for r in ours if r.fold in {other.fold for other in theirs}}
    by_size = [[fold for fold in sorted(sizes) if sizes[fold] == size] for size in sorted(set(sizes.values()))]
    rows = ["| folds | tune | report | all cases |", "|---|---|---|---|"]
    for folds in by_size:
        for chosen in [[fold] for fold in folds] + [folds] * (len(folds) > 1):
            mine, others = ([r for r in runs if r.fold in chosen] for runs in (ours, theirs))
            tune, report, both = (paired_difference(mine, others, half) for half in get_args(Half))
            rows.append(f"| {', '.join(map(str, chosen))} | {tune} | {report} | {both} |")
    return "\n".join(rows) if sizes else ""


def _difference(mine: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Differences of means over trainings and cases drawn at random, `(RESAMPLES,)`, from Dice `(trainings, cases)`."""
    n = mine.shape[1]
    cases = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))  # the same ones for each label set
    of_mine, of_others = (
        np.mean([_draw(means, rng) for _ in means], axis=0)
        for means in ([dice[cases].mean(1) for dice in runs] for runs in (mine, others))
    )
    return np.asarray(of_mine - of_others)


def _draw(means: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """One of some arrays `(RESAMPLES,)`, drawn anew for each of their elements."""
    return np.asarray(np.stack(means)[rng.integers(len(means), size=RESAMPLES), np.arange(RESAMPLES)])


def _label_sets(ours: Sequence[Record], theirs: Sequence[Record], half: Half) -> list[tuple[np.ndarray, np.ndarray]]:
    """The Dice `(trainings, cases)` of both methods on each common label set. Trainings on all labels fit to each."""
    with_few = [{r.fold for r in runs} for runs in (ours, theirs) if not _has_all_labels(runs)]
    folds = set.intersection(*with_few) if with_few else {r.fold for r in ours}
    return [(_dice_of(ours, fold, half), _dice_of(theirs, fold, half)) for fold in sorted(folds) if ours and theirs]


def _dice_of(runs: Sequence[Record], fold: int, half: Half) -> np.ndarray:
    """The Dice `(trainings, cases)` of a method's trainings on a label set."""
    return np.array([r.case_dice(half) for r in runs if r.fold == fold or METHODS[r.method].all_labels])


def _has_all_labels(runs: Sequence[Record]) -> bool:
    return any(METHODS[r.method].all_labels for r in runs)


def repeats(records: Sequence[Record], half: Half) -> str:
    """Markdown: how far two trainings differ that have all in common but the seed; empty without any."""
    by_seed = sorted(records, key=lambda r: (r.method, r.fold, r.seed))
    pairs = [pair for pair in itertools.combinations(by_seed, 2) if len({(r.method, r.fold) for r in pair}) == 1]
    found = [(first, second, paired_difference([second], [first], half)) for first, second in pairs]
    if not found:
        return ""
    n_apart = sum(difference is not None and difference.verdict != "tie" for *_, difference in found)
    lines = [
        f"Two trainings that differ only in the seed: {n_apart} of {len(found)} intervals do not include zero.",
        "",
        "| method | fold | seeds | second minus first |",
        "|---|---|---|---|",
    ]
    for first, second, difference in found:
        lines.append(f"| `{first.method}` | {first.fold} | {first.seed}, {second.seed} | {difference} |")
    return "\n".join(lines)


def table(records: Sequence[Record], half: Half) -> str:
    """Markdown: every method with few labels, one row each; the last column alone compares on the same folds."""
    few = [r for r in records if r.n_labeled == FEW or METHODS[r.method].all_labels]
    labels = records[0].labels
    of_classes = [f"{text} {label}" for text in ("Dice", "volume") for label in labels]
    columns = ["method", "folds", "mean Dice", *of_classes, "HD95 in mm", "missed", "minutes", f"against `{OURS}`"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in METHODS:
        runs = [r for r in few if r.method == name]
        if runs:
            lines.append(_row(name, few, half, labels))
    return "\n".join([*lines, *_legend(few)])


def _from_base(name: str, records: Sequence[Record], half: Half) -> tuple[str, Difference | None]:
    """A method's reference and the difference from it; None for ours, and without a common label set."""
    base = METHODS[name].ablation_of or OURS
    runs, theirs = ([r for r in records if r.method == one] for one in (name, base))
    return base, None if name == OURS else paired_difference(runs, theirs, half)


def _row(name: str, records: Sequence[Record], half: Half, labels: Sequence[str]) -> str:
    runs = [r for r in records if r.method == name]
    base, difference = _from_base(name, records, half)
    cells = [
        f"`{name}`",
        _folds(runs),
        _spread([r.case_dice(half).mean() for r in runs]),
        *(_spread([r.class_dice(half, label) for r in runs]) for label in labels),
        *(_number([r.mean_volume(half, label) for r in runs]) for label in labels),
        _number([r.mean_hd95(half) for r in runs]),
        str(sum(r.missed(half) for r in runs)),
        f"{np.mean([r.seconds for r in runs]) / 60:.0f}",
        "" if difference is None else f"{difference}{'' if base == OURS else f' (against `{base}`)'}",
    ]
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 0:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def _number(values: Sequence[float]) -> str:
    mean = np.mean(values)
    return "" if np.isnan(mean) else f"{mean:.2f}"


def _legend(records: Sequence[Record]) -> list[str]:
    present = {r.method for r in records}
    columns = "Volume: the predicted share of the true one. Missed: classes of cases in which no voxel was found."
    return ["", columns, "", *(f"- `{name}`: {method.text}." for name, method in METHODS.items() if name in present)]


def _folds(runs: Sequence[Record]) -> str:
    """The label sets of some runs, and the number of their seeds if there are several."""
    seeds = {r.seed for r in runs}
    return ", ".join(map(str, sorted({r.fold for r in runs}))) + (f" ({len(seeds)} seeds)" if len(seeds) > 1 else "")


def by_label_set(records: Sequence[Record], half: Half) -> str:
    """Markdown: mean Dice of every method but the ablations on each set of few labels."""
    few = [r for r in records if r.n_labeled == FEW]
    sets = sorted({(r.fold, r.seed) for r in few})
    lines = ["| method | " + " | ".join(f"fold {fold}, seed {seed}" for fold, seed in sets) + " |"]
    lines.append("|---|" + "---|" * len(sets))
    for name, method in METHODS.items():
        dice = {(r.fold, r.seed): f"{r.case_dice(half).mean():.3f}" for r in few if r.method == name}
        if dice and method.ablation_of is None:
            lines.append(f"| `{name}` | " + " | ".join(dice.get(one, "") for one in sets) + " |")
    return "\n".join(lines)


def by_labels(records: Sequence[Record], half: Half) -> str:
    """Markdown: baselines and what M&N leaves, by the number of labels, on our label sets; empty without any.

    A method that lacks one of these sets has no row. The last column is the gain as a share of the distance to the
    training with all labels. It is empty where there is no gain, or where this distance is a tie.
    """
    lines = [f"| labels | folds | method | mean Dice | over `{FAIR_BASELINE}` | of the distance to all labels |"]
    lines.append("|---|---|---|---|---|---|")
    upper = [r for r in records if r.method == UPPER_BOUND]
    for count in sorted({r.n_labeled for r in records if r.method == OURS}):
        rows = _on_our_sets(records, count)
        base = rows.get(FAIR_BASELINE, [])
        distance = paired_difference(upper, base, half)
        for name, runs in rows.items() if base else ():
            gain = None if name == FAIR_BASELINE else paired_difference(runs, base, half)
            cells = [str(count), _folds(runs), f"`{name}`", _spread([r.case_dice(half).mean() for r in runs])]
            cells += [str(gain or ""), _share(gain, distance)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _on_our_sets(records: Sequence[Record], n_labeled: int) -> dict[str, list[Record]]:
    """The trainings of each compared method that has all label sets of ours."""
    ours = {r.fold for r in records if r.method == OURS and r.n_labeled == n_labeled}
    rows = {name: [r for r in records if r.method == name and r.fold in ours] for name in _COMPARED}
    return {name: runs for name, runs in rows.items() if {r.fold for r in runs} == ours}


def _share(gain: Difference | None, distance: Difference | None) -> str:
    """A gain in percent of a distance; empty unless both are above zero."""
    if gain is None or distance is None or not gain.verdict == distance.verdict == "better":
        return ""
    return f"{gain.mean / distance.mean:.0%}"


_COMPARED = (BASELINE, FAIR_BASELINE, OURS, JOINT, STUDENT)


def plot(records: Sequence[Record], half: Half, file: Path) -> None:
    """A mark for each run, shaped by its label set, and each method's difference from ours with its interval."""
    import matplotlib

    with matplotlib.rc_context(matplotlib.rcParamsDefault):  # nnU-Net sets fonts of its own size
        _plot(records, half, file)


def _plot(records: Sequence[Record], half: Half, file: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    few = [r for r in records if r.n_labeled == FEW or METHODS[r.method].all_labels]
    ours = [r for r in few if r.method == OURS]
    names = [name for name in METHODS if any(r.method == name for r in few)][::-1]
    marks = dict(zip(sorted({r.fold for r in few}), itertools.cycle("os^Dvp"), strict=False))
    figure = Figure(figsize=(9 if ours else 5.5, 1.1 + 0.32 * len(names)), layout="constrained")
    of_runs, *others = figure.subplots(1, 2 if ours else 1, sharey=True, squeeze=False)[0]
    for row, name in enumerate(names):
        color = "tab:orange" if name == OURS else "tab:blue" if name in (BASELINE, FAIR_BASELINE) else "tab:gray"
        for run in (r for r in few if r.method == name):
            of_runs.plot(run.case_dice(half).mean(), row, marks[run.fold], color=color, alpha=0.7, markersize=5)
        base, difference = _from_base(name, few, half)
        if difference is not None:
            _draw_difference(others[0], row, difference, color, hollow=base != OURS)
    of_runs.set_yticks(range(len(names)), names)
    of_runs.set_ylim(-0.6, len(names) - 0.4)
    of_runs.set_xlabel("mean Dice of each run")
    for axes in others:
        axes.axvline(0, color="tab:orange", lw=1)
        axes.set_xlim(-NEAR, NEAR)
        axes.set_xlabel(f"difference from {OURS}, same label sets\n(hollow: from what the table names)")
    for axes in (of_runs, *others):
        axes.grid(axis="x", alpha=0.3)
    legend = [Line2D([], [], ls="", marker=mark, color="gray", label=f"fold {fold}") for fold, mark in marks.items()]
    figure.legend(handles=legend, loc="outside upper center", ncols=len(legend), fontsize="small")
    figure.savefig(file, dpi=130)


def _draw_difference(axes: "Axes", row: int, difference: Difference, color: str, *, hollow: bool) -> None:
    """The mean and its interval, or a number at the edge if it lies beyond."""
    if abs(difference.mean) > NEAR:
        side = np.sign(difference.mean)
        text = f"◂ {difference.mean:+.3f}" if side < 0 else f"{difference.mean:+.3f} ▸"
        axes.text(side * NEAR * 0.97, row, text, color=color, va="center", ha="left" if side < 0 else "right", size=8)
        return
    axes.plot([difference.low, difference.high], [row, row], color=color, lw=2)
    axes.plot(difference.mean, row, "o", color=color, markerfacecolor="white" if hollow else color, markersize=5)
