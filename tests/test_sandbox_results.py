import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
from rich.console import Console

from nnunet_mn.sandbox.picture import typical_cases
from nnunet_mn.sandbox.results import DemoResult, ModelResult, Score, read_scores, results_table, verdict
from nnunet_mn.sandbox.volumes import SPACING


def _model(name, dice, *, hd95=5.0):
    """A model with the given Dice (both classes) in each test case."""
    scores = {
        f"test_{i:02d}": {cls: Score(dice=d, hd95_mm=hd95 if d > 0 else math.nan) for cls in ("head", "tail")}
        for i, d in enumerate(dice)
    }
    return ModelResult(name=name, trainer=f"trainer of {name}", seconds=61.4, scores=scores, curves={"x": [0.1]})


def _result(baseline, mn, *, joint=None, quick=False):
    return DemoResult(
        seed=0, quick=quick, updates=500, n_labeled=4, n_unlabeled=36, n_test=len(baseline), seconds=600.0,
        baseline=_model("labeled only", baseline), mn=_model("M&N", mn),
        joint=replace(_model("both networks", mn if joint is None else joint), seconds=None, curves={}),
    )  # fmt: skip


def _text(result):
    console = Console(file=io.StringIO(), width=160)
    console.print(results_table(result))
    return console.file.getvalue()


def test_verdict_says_so_when_mn_loses():
    said = verdict(_result([0.8, 0.7], [0.7, 0.6]))
    assert "0.100 worse" in said
    assert "0 of 2" in said


def test_verdict_counts_the_cases_that_gained():
    assert "0.050 better (1 of 2 test cases higher)" in verdict(_result([0.8, 0.6], [0.8, 0.7]))


def test_verdict_judges_the_joint_model_apart():
    said = verdict(_result([0.8, 0.6], [0.8, 0.7], joint=[0.7, 0.6]))
    assert "Its mean Dice is 0.050 better (1 of 2" in said
    assert "it is 0.050 worse (0 of 2" in said


def test_verdict_tells_that_the_scans_come_from_two_scanners():
    said = verdict(_result([0.5], [0.5]))
    assert "generated" in said
    assert "labeled scans come from one scanner, the unlabeled and test scans from another" in said


def test_only_the_quick_demo_warns_of_its_length():
    assert "--quick" in verdict(_result([0.5], [0.5], quick=True))
    assert "--quick" not in verdict(_result([0.5], [0.5]))


def test_missed_classes_are_counted_and_left_out_of_the_mean_distance():
    model = _model("M&N", [0.9, 0.0])
    assert model.hd95("head") == 5.0
    assert model.missed("head") == 1
    assert "(1 missed)" in _text(_result([0.9, 0.9], [0.9, 0.0]))
    assert "all missed" in _text(_result([0.9], [0.0]))


def test_table_shows_all_models_with_updates_and_seconds():
    shown = _text(_result([0.8, 0.7], [0.9, 0.8], joint=[0.95, 0.9]))
    for expected in ("labeled only", "M&N", "both networks", "0.750", "0.850", "0.925", "500", "61 s", "as above"):
        assert expected in shown


def test_json_holds_the_means_and_is_strict():
    result = _result([0.8, 0.0], [0.9, 0.8])
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["means"]["M&N"]["dice"]["mean"] == pytest.approx(0.85)
    assert plain["baseline"]["scores"]["test_01"]["head"]["hd95_mm"] is None


def test_typical_cases_are_the_quartiles_of_the_difference():
    gains = np.array([0.3, -0.1, 0.0, 0.2, 0.1])
    result = _result([0.5] * 5, 0.5 + gains)
    assert typical_cases(result) == ["test_03", "test_04", "test_02"]


def test_scores_join_nnunets_dice_with_distances_in_mm(tmp_path):
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[2:5, 2:6, 2:6], truth[6, 6, 6] = 1, 2
    shifted = np.roll(truth, 1, axis=0)
    for folder, voxels in (("truth", truth), ("prediction", np.where(shifted == 1, 1, 0).astype(np.uint8))):
        (tmp_path / folder).mkdir()
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(tmp_path / folder / "case.nii.gz"))
    scores = read_scores(tmp_path / "truth", tmp_path / "prediction")
    assert scores["case"]["head"] == Score(dice=pytest.approx(2 / 3), hd95_mm=SPACING[0])
    assert scores["case"]["tail"].dice == 0
    assert math.isnan(scores["case"]["tail"].hd95_mm)
