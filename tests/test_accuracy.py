"""The accuracy benchmark's bookkeeping; its trainings are too long for a test."""

import copy
import importlib
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from filelock import FileLock
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_mn.config import MNConfig
from nnunet_mn.errors import MNError
from nnunet_mn.losses import SoftTargetLoss
from nnunet_mn.targets import LabelSpace, SoftTarget

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
DOCS = BENCHMARKS.parent / "docs"
sys.path.insert(0, str(BENCHMARKS))
import accuracy  # noqa: E402
from evidence import execute, methods, records, runs, tables, training, workspace  # noqa: E402

SCALE = workspace.Scale(updates=600, spacing=None, patch_size=(8, 8, 8), batch_size=2, features=(4, 8))
SPLITS = [
    {"train": ["a"], "val": ["v"], "unlabeled": ["b", "c"]},
    {"train": ["b"], "val": ["v"], "unlabeled": ["a", "c"]},
    {"train": ["a", "b", "c"], "val": ["v"], "unlabeled": []},
]


def record(method: str, *, fold: int = 0, dice: float = 0.8, n_labeled: int = 4) -> records.Record:
    cases = [f"case_{i}" for i in range(6)]
    values = {case: {"1": dice + 0.01 * i, "2": dice - 0.01 * i} for i, case in enumerate(cases)}
    distances: dict[str, dict[str, float | None]] = {case: {"1": 1.0, "2": 3.0} for case in cases}
    return records.Record(
        dataset="Dataset004_Hippocampus", method=method, fold=fold, seed=0, n_labeled=n_labeled, scale="s",
        updates=600, seconds=60.0, config={}, versions={}, date="2026-01-01", dice=values, hd95=distances,
    )  # fmt: skip


def _space(scale: workspace.Scale) -> workspace.Workspace:
    return workspace.Workspace(Path("nnUNet_raw/Dataset004_Hippocampus"), Path("work"), scale)


def test_nnunet_finds_the_trainer_of_every_method_in_the_benchmarks_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(workspace.TRAINERS)
    found = importlib.import_module("nnUNetTrainerMNBenchmark")
    for method in methods.METHODS.values():
        assert method.trainer is None or hasattr(found, method.trainer)


def test_a_method_that_is_kept_for_its_records_is_not_trained() -> None:
    assert "mn-logits-paste" in methods.METHODS
    with pytest.raises(MNError, match="no method 'mn-logits-paste' to train; choose from"):
        methods.find_method("mn-logits-paste")


def test_the_squared_dice_of_the_ablation_is_that_of_pseudo_masks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(workspace.TRAINERS)
    from nnUNetTrainerMNBenchmark import SquaredDiceOfPseudoMasks

    logits = torch.randn(2, 3, 4, 4, 4)
    mask = LabelSpace(num_channels=3).encode(torch.randint(0, 3, (1, 1, 4, 4, 4))).values
    target = SoftTarget(torch.cat([mask, torch.randn(1, 3, 4, 4, 4).softmax(1)]), None)
    gradients = []
    for loss in (SquaredDiceOfPseudoMasks(), SoftTargetLoss(), SoftTargetLoss(squared=True)):
        leaf = logits.clone().requires_grad_()
        loss(leaf, target).backward()
        gradients.append(leaf.grad)
    mixed, linear, squared = gradients
    torch.testing.assert_close(mixed, torch.cat([linear[:1], squared[1:]]))
    assert not torch.allclose(linear, squared)


def test_unknown_method_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(MNError, match=r"no method 'unet'.*self-training"):
        methods.find_method("unet")


def test_upper_bound_is_trained_once_on_the_fold_of_all_labels() -> None:
    chosen = [methods.find_method(name) for name in ("mn", "nnunet-upper")]
    planned = runs.plan_runs(chosen, [0, 1], [0], SPLITS)
    assert [(run.method.name, run.fold) for run in planned] == [("mn", 0), ("mn", 1), ("nnunet-upper", 2)]


def test_plans_as_they_are_have_a_name_and_an_option_of_their_own() -> None:
    planned = replace(SCALE, planned=True, settings=(("lr_3d", "0.01"), ("teacher", "other")))
    assert workspace.scale_key(planned) == "planned_planned_lr_3d=0.01_teacher=other"
    expected = "--updates 600 --planned --settings lr_3d=0.01,teacher=other"
    assert workspace.options(workspace.scale_key(planned), 600) == expected
    assert planned.text == "600 updates, plans as they are, lr_3d=0.01, teacher=other"
    assert "--patch-size 8 8 8 --batch-size 2 --features 4,8" in workspace.options(workspace.scale_key(SCALE), 600)


def test_a_batch_of_nnunets_2d_configuration_has_as_many_voxels() -> None:
    network = {"arch_kwargs": {"n_conv_per_stage": [2, 2], "n_conv_per_stage_decoder": [2]}}
    stock = {
        "plans_name": "nnUNetPlans",
        "configurations": {
            name: {
                "spacing": [1.0] * n_axes,
                "median_image_size_in_voxels": [30.0] * n_axes,
                "architecture": copy.deepcopy(network),
            }
            for name, n_axes in (("3d_fullres", 3), ("2d", 2))
        },
    }
    scale = replace(SCALE, spacing=(3, 1.5, 2), patch_size=(8, 16, 12))
    plans = [workspace.small_plans_of(copy.deepcopy(stock), scale, name, "Small") for name in ("3d_fullres", "2d")]
    of_3d, of_2d = (plan["configurations"][name] for plan, name in zip(plans, ("3d_fullres", "2d"), strict=True))
    assert (of_3d["patch_size"], of_3d["spacing"]) == ([8, 16, 12], [3, 1.5, 2])
    assert (of_2d["patch_size"], of_2d["spacing"]) == ([16, 12], [1.5, 2])
    assert of_2d["batch_size"] * math.prod(of_2d["patch_size"]) == of_3d["batch_size"] * math.prod(of_3d["patch_size"])
    assert of_2d["median_image_size_in_voxels"] == [20, 15]


def test_on_a_card_nnunet_decides_on_workers_and_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_n_proc_DA", "nnUNet_compile", "nnUNet_def_n_proc"):
        monkeypatch.delenv(name, raising=False)
        for device, is_set in (("cpu", True), ("cuda", False)):
            space = workspace.Workspace(tmp_path / "Dataset004_X", tmp_path, SCALE, device)
            assert (name in space.environment({}, run="one")) == is_set


def test_fold_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(MNError, match="fold 7"):
        runs.plan_runs([methods.find_method("mn")], [7], [0], SPLITS)


def test_halves_share_no_case_and_hold_all() -> None:
    one = record("mn")
    assert set(one.cases("tune")) | set(one.cases("report")) == set(one.dice)
    assert set(one.cases("tune")).isdisjoint(one.cases("report"))


def test_record_comes_back_from_its_line(tmp_path: Path) -> None:
    file = tmp_path / "results" / "accuracy.jsonl"
    for method in ("mn", "nnunet"):
        records.append(file, record(method))
    assert records.read(file) == [record("mn"), record("nnunet")]
    assert records.read(tmp_path / "nothing.jsonl") == []


def test_run_and_its_record_have_one_key() -> None:
    run = runs.Run(method=methods.find_method("mn"), fold=0, seed=0)
    assert run.key(_space(SCALE)) == replace(record("mn"), scale=workspace.scale_key(SCALE)).key


def test_difference_of_equals_is_a_tie_and_of_others_is_not() -> None:
    ours = [record("mn", fold=fold, dice=0.8) for fold in (0, 3)]
    same = tables.paired_difference(ours, [replace(r, method="nnunet") for r in ours], "report")
    worse = tables.paired_difference(ours, [record("nnunet", fold=fold, dice=0.7) for fold in (0, 3)], "report")
    assert same is not None
    assert worse is not None
    assert (same.mean, same.verdict) == (0, "tie")
    assert worse.verdict == "better"
    assert worse.mean == pytest.approx(0.1)


def test_difference_pairs_label_sets() -> None:
    ours = [record("mn", fold=0, dice=0.8), record("mn", fold=3, dice=0.9)]
    difference = tables.paired_difference(ours, [record("nnunet", fold=3, dice=0.7)], "tune")
    assert difference is not None
    assert difference.mean == pytest.approx(0.2)
    assert tables.paired_difference(ours[:1], [record("nnunet", fold=3)], "tune") is None


def test_interval_widens_where_label_sets_disagree() -> None:
    def width(gains: tuple[float, float]) -> float:
        ours = [record("mn", fold=fold, dice=0.7 + gain) for fold, gain in enumerate(gains)]
        difference = tables.paired_difference(ours, [record("nnunet", fold=f, dice=0.7) for f in (0, 1)], "tune")
        assert difference is not None
        return difference.high - difference.low

    assert width((0.0, 0.1)) > width((0.05, 0.05))


def test_table_names_every_method_with_its_mean_and_spread(tmp_path: Path) -> None:
    found = [record("nnunet", dice=0.7), record("nnunet", fold=3, dice=0.72), record("mn"), record("mn", fold=3)]
    text = tables.table(found, "tune")
    assert "| `nnunet` | 0, 3 | 0.710 ± 0.014 |" in text
    assert "worse" in next(line for line in text.splitlines() if line.startswith("| `nnunet`"))
    tables.plot(found, "tune", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_two_methods_are_compared_by_label_set_and_by_number_of_labels() -> None:
    ours = [record("mn", fold=fold, n_labeled=n, dice=0.8) for fold, n in ((0, 4), (3, 4), (1, 8), (2, 16))]
    theirs = [record("nnunet", fold=fold, n_labeled=n, dice=0.7) for fold, n in ((0, 4), (3, 4), (1, 8), (4, 4))]
    rows = tables.comparison(ours, theirs).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 0", "| 3", "| 0, 3", "| 1"]
    assert all(row.count("+0.100 [+0.100, +0.100] better") == 3 for row in rows)
    assert tables.comparison(ours, [record("nnunet", fold=5)]) == ""


def test_an_ablation_of_an_earlier_default_is_compared_with_that() -> None:
    found = [record("mn-replace", dice=0.9), record("mn-diffusion", dice=0.8), record("mn-two-3d", dice=0.7)]
    rows = tables.table(found, "tune").splitlines()
    (row,) = (row for row in rows if row.startswith("| `mn-two-3d`"))
    assert row.endswith("| -0.100 [-0.100, -0.100] worse (against `mn-diffusion`) |")
    (row,) = (row for row in rows if row.startswith("| `mn-diffusion`"))
    assert row.endswith("| -0.100 [-0.100, -0.100] worse (against `mn-replace`) |")


def test_gain_is_shown_for_each_number_of_labels_as_a_share_of_the_distance_to_all_labels() -> None:
    found = [record("mn", n_labeled=n, dice=0.8, fold=n) for n in (4, 8)]
    found += [record("nnunet-adamw", n_labeled=n, dice=0.7, fold=n) for n in (4, 8)]
    found += [record("nnunet-upper-adamw", fold=5, n_labeled=140, dice=0.9)]
    found += [record("nnunet-adamw", fold=3, dice=0.5)]  # a label set that M&N has not been trained on
    rows = tables.by_labels(found, "tune").splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 4", "| 4", "| 8", "| 8"]
    assert rows[0].endswith("| `nnunet-adamw` | 0.700 |  |  |")
    assert all(row.endswith("| `mn` | 0.800 | +0.100 [+0.100, +0.100] better | 50% |") for row in rows[1::2])


def test_a_method_stands_beside_ours_where_it_has_all_its_label_sets() -> None:
    found = [record(method, dice=dice) for method, dice in (("mn", 0.8), ("nnunet-adamw", 0.7), ("joint", 0.9))]
    rows = tables.by_labels(found, "tune").splitlines()[2:]
    assert rows == [
        "| 4 | 0 | `nnunet-adamw` | 0.700 |  |  |",
        "| 4 | 0 | `mn` | 0.800 | +0.100 [+0.100, +0.100] better |  |",
        "| 4 | 0 | `joint` | 0.900 | +0.200 [+0.200, +0.200] better |  |",
    ]
    found += [record("mn", fold=3), record("nnunet-adamw", fold=3, dice=0.7)]
    rows = tables.by_labels(found, "tune").splitlines()[2:]
    assert [row.split(" | ")[1:3] for row in rows] == [["0, 3", "`nnunet-adamw`"], ["0, 3", "`mn`"]]
    found += [record("mn", fold=4)]
    assert tables.by_labels(found, "tune") == ""


def test_all_trainings_count_where_one_method_has_fewer() -> None:
    found = [record("mn"), record("nnunet-adamw", dice=0.7), record("joint", dice=0.9)]
    found += [replace(record(method, dice=dice), seed=1) for method, dice in (("mn", 0.7), ("nnunet-adamw", 0.5))]
    found += [record("nnunet-upper-adamw", fold=5, n_labeled=140, dice=1.1)]
    rows = tables.by_labels(found, "tune").splitlines()[2:]
    assert rows[1].startswith("| 4 | 0 (2 seeds) | `mn` | 0.750 ± 0.071 | +0.150 [+0.000, +0.300] ")
    assert rows[2] == "| 4 | 0 | `joint` | 0.900 | +0.300 [+0.200, +0.400] better | 60% |"


def test_trainings_that_differ_only_in_their_seed_are_set_side_by_side() -> None:
    found = [replace(record("mn", dice=dice), seed=seed) for seed, dice in enumerate((0.8, 0.9, 0.9))]
    found += [record("mn", fold=3), record("nnunet")]
    first, _, *rows = tables.repeats(found, "tune").splitlines()
    assert first == "Two trainings that differ only in the seed: 2 of 3 intervals do not include zero."
    assert rows[2:] == [
        "| `mn` | 0 | 0, 1 | +0.100 [+0.100, +0.100] better |",
        "| `mn` | 0 | 0, 2 | +0.100 [+0.100, +0.100] better |",
        "| `mn` | 0 | 1, 2 | +0.000 [+0.000, +0.000] tie |",
    ]
    assert tables.repeats([record("mn"), record("nnunet")], "tune") == ""


def test_a_case_that_is_drawn_is_drawn_for_every_label_set() -> None:
    gains = {f"case_{number:02}": (number % 10 - 4.5) / 20 for number in range(20)}
    widths = []
    for of_second in (1, -1):  # a case gains with both sets, or as much as it loses with the other one
        ours = [replace(record("mn", fold=0), dice={name: {"1": gain} for name, gain in gains.items()})]
        ours += [replace(record("mn", fold=3), dice={name: {"1": of_second * gain} for name, gain in gains.items()})]
        theirs = [replace(record("nnunet", fold=f), dice={name: {"1": 0.0} for name in gains}) for f in (0, 3)]
        difference = tables.paired_difference(ours, theirs, "tune")
        assert difference is not None
        widths.append(difference.high - difference.low)
    assert widths[1] < widths[0]


def test_evidence_says_how_often_trainings_differ_by_their_seed_alone() -> None:
    here = [r for r in _of_the_main_comparison() if r.dataset == "Dataset004_Hippocampus"]
    (found,) = re.findall(r"(\d+ of \d+) intervals do not include zero", tables.repeats(here, "report"))
    page = " ".join((DOCS / "evidence.md").read_text(encoding="utf-8").split())
    assert f"In {found} such pairs on hippocampus MRI the interval of the difference does not include zero" in page


def test_cases_are_paired_across_trainings() -> None:
    dice = {f"case_{number:02}": {"1": number / 20} for number in range(20)}
    ours = [replace(record("mn"), seed=seed, dice={n: {"1": d["1"] + 0.1} for n, d in dice.items()}) for seed in (0, 1)]
    difference = tables.paired_difference(ours, [replace(record("nnunet"), seed=2, dice=dice)], "tune")
    assert difference is not None
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.1))


def test_gain_is_no_share_of_a_distance_that_is_a_tie_and_a_loss_is_none() -> None:
    for ours, upper in ((0.8, 0.7), (0.6, 0.8)):
        found = [record("mn", dice=ours), record("nnunet-adamw", dice=0.7)]
        found += [record("nnunet-upper-adamw", fold=5, n_labeled=140, dice=upper)]
        (_, row) = tables.by_labels(found, "tune").splitlines()[2:]
        assert row.endswith("better |  |" if ours > 0.7 else "worse |  |")


def test_upper_bound_stands_against_every_label_set_and_seed() -> None:
    ours = [record("mn"), replace(record("mn", fold=3, dice=0.7), seed=1)]
    difference = tables.paired_difference(ours, [record("nnunet-upper-adamw", fold=5, dice=0.9)], "tune")
    assert difference is not None
    assert difference.mean == pytest.approx(-0.15)


def test_further_seeds_are_no_further_label_sets() -> None:
    ours = [replace(record("mn", fold=f, dice=dice), seed=s) for f, dice in ((0, 0.6), (3, 0.8)) for s in range(4)]
    theirs = [replace(record("nnunet", fold=f, dice=0.5), seed=s) for f in (0, 3) for s in range(4)]
    difference = tables.paired_difference(ours, theirs, "tune")
    assert difference is not None
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.3))  # each fold alone is drawn in a quarter


def test_label_sets_stand_side_by_side_without_ablations() -> None:
    found = [record("mn"), record("mn", fold=3, dice=0.7), record("nnunet", fold=3), record("mn-diffusion")]
    assert tables.by_label_set(found, "tune").splitlines() == [
        "| method | fold 0, seed 0 | fold 3, seed 0 |",
        "|---|---|---|",
        "| `nnunet` |  | 0.800 |",
        "| `mn` | 0.800 | 0.700 |",
    ]


def test_trainings_of_other_lengths_and_settings_share_no_results(tmp_path: Path) -> None:
    longer, other = replace(SCALE, updates=1200), replace(SCALE, settings=(("lr_3d", "3e-3"),))
    spaces = [workspace.Workspace(tmp_path, tmp_path, scale) for scale in (SCALE, longer, other)]
    assert len({space.results("mn") for space in spaces}) == 3
    assert len({space.log("mn") for space in spaces}) == 3
    run = runs.Run(method=methods.find_method("mn"), fold=0, seed=0)
    assert len({(*run.key(_space(scale)),) for scale in (SCALE, longer, other)}) == 3


def test_a_second_student_is_taught_by_the_joint_model_beside_the_first(tmp_path: Path) -> None:
    """It is there: neither the first student nor the networks that taught it are trained again."""
    space = workspace.Workspace(tmp_path / "Dataset004_Hippocampus", tmp_path, SCALE)
    second = runs.Run(method=methods.find_method("second-student"), fold=3, seed=0)
    first = runs.Run(method=methods.find_method("student-of-stored-masks-twice-as-long"), fold=3, seed=0)
    teacher = second.teacher(space)
    assert teacher is not None
    assert teacher.is_relative_to(space.results(first.name))
    assert teacher.name.startswith("nnUNetTrainerMNJoint__")
    (teacher / "fold_3").mkdir(parents=True)
    (teacher / "fold_3" / "checkpoint_final.pth").touch()
    training.train_networks_before(second, space, lambda epoch: None, math.inf)
    assert not space.results("mn_fold3_seed0").exists()


def test_options_of_a_scale_are_those_it_was_made_from() -> None:
    assert workspace.options(workspace.scale_key(SCALE), 600) == (
        "--updates 600 --patch-size 8 8 8 --batch-size 2 --features 4,8"
    )
    rich = replace(SCALE, spacing=(1.5, 2, 3), settings=(("lr_3d", "3e-3"), ("foreground_crops", "false")))
    assert workspace.options(workspace.scale_key(rich), 600).startswith("--updates 600 --spacing 1.5 2 3 ")
    assert workspace.options(workspace.scale_key(rich), 600).endswith(" --settings foreground_crops=false,lr_3d=3e-3")


def test_a_missed_class_counts_apart_from_distances() -> None:
    one = record("mn")
    one.hd95["case_0"]["1"] = None
    assert one.missed("tune") == 1
    assert one.mean_hd95("tune") == pytest.approx(np.mean([3, 1, 3, 1, 3]))


def test_scores_are_those_of_nnunets_evaluation(tmp_path: Path) -> None:
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[2:6, 2:6, 2:4], truth[2:6, 2:6, 4:6] = 1, 2
    prediction = np.where(truth == 2, 0, truth)
    prediction[2:4, 2:6, 2:4] = 0
    for name, mask in (("truths", truth), ("validation", prediction)):
        (tmp_path / name).mkdir()
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask), str(tmp_path / name / "case_1.nii.gz"))
    summary = tmp_path / "validation" / "summary.json"
    compute_metrics_on_folder(
        str(tmp_path / "truths"), str(summary.parent), str(summary), SimpleITKIO(), ".nii.gz", [1, 2], num_processes=1
    )
    scores = records.score(summary, tmp_path / "truths")
    assert scores.dice == {"case_1": {"1": pytest.approx(2 / 3), "2": 0}}
    assert scores.volume == {"case_1": {"1": 0.5, "2": 0}}
    assert scores.hd95 == {"case_1": {"1": 2, "2": None}}
    one = replace(record("mn"), volume=scores.volume)
    assert np.isnan(one.mean_volume("report", "1"))  # no case of the half has one
    assert replace(one, dice=scores.dice).mean_volume("report", "1") == 0.5


WRONG = (
    (["--methods", "unet"], "there is no method 'unet'"),
    (["--updates", "610"], "--updates is 610; take a multiple of 50"),
    (["--settings", "lr_3d"], "--settings has 'lr_3d' without a value"),
)


def test_command_says_what_is_wrong_in_one_line(train: Any, tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(SPLITS))
    command = [BENCHMARKS / "accuracy.py", "run", tmp_path, "--work", tmp_path / "work"]
    for more, sentence in WRONG[1:]:
        ((code, said),) = train.python([*command, *more], output=tmp_path / "said.txt")
        assert code == 2
        assert said.startswith(f"accuracy.py: {sentence}")
    more, sentence = WRONG[0]  # in a new Python, whose imports may say nothing before
    done = subprocess.run([sys.executable, *command, *more], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"accuracy.py: {sentence}")


def test_evidence_and_page_quote_the_records() -> None:
    found = records.read(accuracy.RECORDS)
    section = accuracy.EVIDENCE.read_text(encoding="utf-8").split(accuracy.BEGIN)[1].split(accuracy.END)[0]
    assert section.strip() == accuracy.summary(found)
    page = (accuracy.RESULTS / "accuracy.md").read_text(encoding="utf-8")
    assert page == accuracy.report(found)
    pictures = re.findall(r"accuracy_\d+\.png", page)
    assert pictures
    assert all((accuracy.RESULTS / name).exists() for name in pictures)


def test_a_training_is_not_taken_for_one_with_other_settings(tmp_path: Path) -> None:
    runs.note_settings(tmp_path, MNConfig())
    runs.note_settings(tmp_path, MNConfig())
    with pytest.raises(MNError, match=r"lr_3d None \(now 0\.5\)"):
        runs.note_settings(tmp_path, MNConfig(lr_3d=0.5))
    (tmp_path / "settings.json").unlink()
    (tmp_path / "checkpoint_latest.pth").touch()
    with pytest.raises(MNError, match="unknown settings"):
        runs.note_settings(tmp_path, MNConfig())


def test_two_commands_do_not_work_on_the_same_run(tmp_path: Path) -> None:
    space = replace(_space(SCALE), folder=tmp_path)
    run = runs.Run(method=methods.find_method("joint"), fold=0, seed=0)
    with (
        FileLock(space.log(run.name).with_suffix(".lock")),
        pytest.raises(MNError, match="another command works on joint_fold0_seed0"),
    ):
        execute.execute(run, space, lambda epoch: None)


def test_evidence_quotes_the_scale_at_which_ours_was_trained_most() -> None:
    names = ("mn", "nnunet", "nnunet-adamw")
    shorter = [replace(record(name), scale=workspace.scale_key(SCALE)) for name in names]
    longer = replace(shorter[1], updates=1600)
    elsewhere = [replace(one, dataset="Dataset005_LeftAtrium", updates=400) for one in shorter]
    untold = replace(shorter[1], dataset="Dataset006_Lung")
    told = accuracy.summary([longer, *shorter, *elsewhere, untold])
    assert re.findall(r"^Dataset.*(?= of the)", told, re.MULTILINE) == [
        "Dataset004_Hippocampus: 600 updates", "Dataset005_LeftAtrium: 400 updates",
    ]  # fmt: skip


def test_the_page_on_choices_says_which_ablations_were_trained_and_with_what_result() -> None:
    page = (DOCS / "choices.md").read_text(encoding="utf-8")
    page = page.split("## Ablations")[1].split("What the trained ones say")[0]
    trained, elsewhere, defined = (
        set(re.findall(r"`([\w-]+)`", part)) & set(methods.METHODS) - {methods.OURS, methods.JOINT, methods.STUDENT}
        for part in re.split("Trained at other|Only defined", page)
    )
    found = records.read(accuracy.RECORDS)
    here = [r for r in _of_the_main_comparison() if r.dataset == "Dataset004_Hippocampus"]
    ablations = {name for name, method in methods.METHODS.items() if method.ablation_of is not None}
    assert trained == {r.method for r in here} & ablations
    assert elsewhere == {r.method for r in found} & ablations - trained
    assert defined == set(methods.METHODS) - {r.method for r in found}
    better = set()
    for name in trained:
        base = [r for r in here if r.method == methods.METHODS[name].ablation_of]
        difference = tables.paired_difference([r for r in here if r.method == name], base, "report")
        assert difference is not None
        better |= {name} if difference.verdict == "better" else set()
    said = re.findall(r"^- better than `[\w-]+` (.*)", page, re.MULTILINE)
    assert better == {name for line in said for name in re.findall(r"`(mn-[\w-]+)`", line)}


def _of_the_main_comparison() -> list[records.Record]:
    """Trainings of 800 updates with larger voxels than nnU-Net's."""
    found = records.read(accuracy.RECORDS)
    return [r for r in found if r.updates == 800 and not r.scale.startswith("1x1x1_")]


def _tables_of_the_pages() -> list[list[list[str]]]:
    pages = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("evidence.md", "choices.md"))
    written = re.compile(f"{accuracy.BEGIN}.*{accuracy.END}", re.DOTALL)  # its own test compares it
    found = re.findall(r"(?:^ *\|.*\n)+", written.sub("", pages), re.MULTILINE)
    return [[[cell.strip() for cell in row.strip()[1:-1].split("|")] for row in table.splitlines()] for table in found]


def test_differences_in_the_tables_of_the_pages_are_those_of_the_records() -> None:
    found = _of_the_main_comparison()
    n_checked = 0
    for heading, _, *rows in _tables_of_the_pages():
        dataset = "Dataset005_LeftAtrium" if "left atrium" in heading[0] else "Dataset004_Hippocampus"
        here = [r for r in found if r.dataset == dataset]
        for row in rows:
            folds = {int(fold) for fold in re.findall(r"fold (\d)", heading[0] + row[0])} or {0, 3, 4}
            for title, cell in zip(heading, row, strict=True):
                names = re.findall(r"`([\w-]+)`", f"{row[0]} {title}")
                if " over `" not in f" {title}" or not cell:
                    continue
                method, base = ([r for r in here if r.method == name and r.fold in folds] for name in names[-2:])
                assert cell == str(tables.paired_difference(method, base, "report")), (row[0], title)
                n_checked += 1
    assert n_checked > 50
