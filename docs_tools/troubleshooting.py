"""Writes docs/troubleshooting.md: every sentence that ends a command, with an anchor and its remedy.

    python docs_tools/troubleshooting.py

The sentences come from the source: each `MNError` with a text. tests/test_docs.py holds the page against it.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
ERRORS = {"MNError", "BadImageError"}
HOLE = "…"  # a name or a value
INTRO = f"""# Troubleshooting

A command ends with one sentence if something is wrong with the data, the plans or a setting. In a training the sentence
begins with `ERROR:`, and the log holds it, too. `nnunet-mn doctor -d 4` finds most faults before a training starts.

Search this page for words of your sentence. `{HOLE}` stands for a name or a value. In most sentences the remedy comes
last; here it stands in a line of its own.

Written by `python docs_tools/troubleshooting.py`.

## Trouble that no sentence of M&N names

- **`Could not find requested nnunet trainer nnUNetTrainerMN`.** Run `nnunet-mn register` in the environment of nnU-Net.
- **The unlabeled share in the log stays 0.000.** The first eighth of a training sees labels only. A batch of four gets
  its first unlabeled sample after 36 % of the training ([how it works](how-it-works.md)).
- **The 2D network's Dice is far below the 3D network's.** The log shows the 2D network along one axis, on training
  patches. Alone it is usually weaker. The mean of both is what teaches.
- **An epoch takes much longer than nnU-Net's.** Compare with [what it costs](evidence.md#what-it-costs). If a GPU often
  waits, set `nnUNet_n_proc_DA` higher: more samples are loaded than with nnU-Net.
- **Out of memory on the GPU.** Plan with [M&N's planner](planning.md), which leaves room for both networks, or lower
  `-gpu_memory_target`.
- **Updates were skipped.** A loss or gradient was not finite. The log names the cases. Look at their images for extreme
  values.
- **The validation is too good.** With fewer than five labeled cases and no split file, each fold validates on the
  cases that it trained on ([folds](your-data.md#4-train)).
- **M&N is worse than nnU-Net.** Compare with [the baseline](your-data.md#4-train) that has the same optimizer. Look in
  [the report](report.md) whether the unlabeled scans are of the same kind as the labeled ones.
- **Test images are used as unlabeled ones.** M&N takes `imagesTs` if there is no case in `imagesUn`. Look at the
  spelling: `imagesUnlabeled` is not read ([places](your-data.md#all-places-for-unlabeled-images)).
- **nnU-Net's planning ends with `set_num_threads expects a positive integer`.** `nnUNet_n_proc_DA` is 0. Set it to 0
  for a training only.
- **A job was killed.** Start it again with `--c` ([clusters](clusters.md)).
- **The disk fills up.** [Files that M&N writes](files.md) says what may be deleted.
"""
# Where one meets the sentences of a file, by parts of its path. The longest part that fits counts.
GROUPS = {
    "Installing and checking": ("bridge/registration", "bridge/versions", "bridge/doctor/", "cli.py"),
    "Settings and devices": ("config.py", "device.py"),
    "The 2D network and its weights": ("networks/",),
    "Cases, splits and images": ("bridge/cases/", "bridge/words.py"),
    "Planning": ("bridge/planning/", "planners/"),
    "Preprocessing the unlabeled images": ("bridge/preprocessing/", "bridge/processes"),
    "Training and going on with a training": ("",),
    "Joining and exporting models": ("bridge/training/join", "networks/joint", "bridge/export"),
    "The report": ("report/",),
    "Choosing cases to label": ("suggesting", "suggestion"),
    "The demo": ("demo.py", "sandbox/"),
}


class Sentence(NamedTuple):
    """The text of an error, with holes, and where one meets it."""

    text: str
    group: str

    @property
    def anchor(self) -> str:
        """A name from its first words."""
        return "-".join(re.findall(r"[a-z0-9_]+", self.text.lower())[:9])

    @property
    def parts(self) -> tuple[str, str]:
        """The fault and the remedy."""
        for separator in ("; ", ": "):
            fault, found, remedy = self.text.rpartition(separator)
            if found and re.search(r"[a-z]{3}", remedy) and len(fault) > len(HOLE):
                return fault, remedy
        return self.text, ""


def sentences() -> list[Sentence]:
    """All sentences of the package, in the order of its files."""
    folders = (ROOT / "nnunet_mn", ROOT / "trainers", ROOT / "planners")
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    words = _words(trees.values())
    found: dict[str, Sentence] = {}
    for file, tree in trees.items():
        group = _group(file.relative_to(ROOT).as_posix())
        for text in texts(tree, words):
            found.setdefault(text, Sentence(text, group))
    return list(found.values())


def _words(trees: Iterable[ast.Module]) -> dict[str, str]:
    """The texts and numbers that all modules bind to a name. A name with two values is left out."""
    values: dict[str, set[str]] = {}
    for tree in trees:
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                for target in node.targets:
                    values.setdefault(getattr(target, "id", ""), set()).add(str(node.value.value))
    return {name: next(iter(bound)) for name, bound in values.items() if len(bound) == 1}


def texts(tree: ast.Module, words: Mapping[str, str]) -> Iterator[str]:
    """The texts of the errors in a module. A function that is called for a text gives those that it returns."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") in ERRORS and n.args]
    makers = {call.args[0].func.id for call in calls if isinstance(call.args[0], ast.Call) and _named(call.args[0])}
    for call in calls:
        yield from _text(call.args[0], words)
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        if function.name in makers or function.name.startswith("fault_of"):
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None:
                    yield from _text(node.value, words)


def _named(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name)


def _text(node: ast.expr, words: Mapping[str, str]) -> Iterator[str]:
    """The text of a string with holes, if it says anything. A constant is no hole."""
    if isinstance(node, ast.Constant):
        parts = [str(node.value)] if isinstance(node.value, str) else []
    elif isinstance(node, ast.JoinedStr):
        parts = [_part(part, words) for part in node.values]
    else:
        parts = []
    text = re.sub(rf"{HOLE}(\s*{HOLE})+", HOLE, "".join(parts))
    if len(text.replace(HOLE, "").split()) > 2:
        yield text


def _part(part: ast.expr, words: Mapping[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    return words.get(getattr(getattr(part, "value", None), "id", ""), HOLE)


def _group(path: str) -> str:
    fitting = [(len(part), group) for group, parts in GROUPS.items() for part in parts if part in path]
    return max(fitting)[1]


def page() -> str:
    """The page in Markdown."""
    lines, used, all_sentences = [INTRO], set(), sentences()
    for group in GROUPS:
        members = [sentence for sentence in all_sentences if sentence.group == group]
        if members:
            lines.append(f"## {group}\n")
        for sentence in members:
            anchor = sentence.anchor
            while anchor in used:
                anchor += "-2"
            used.add(anchor)
            fault, remedy = sentence.parts
            lines.append(f'<a id="{anchor}"></a>**{_escaped(fault)}**\n')
            if remedy:
                lines.append(f"{_escaped(remedy[0].upper() + remedy[1:])}.\n")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text for Markdown. Code in backticks stays as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]\\])", r"\\\1", part) for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
