import numpy as np
import SimpleITK

from nnunet_mn.sandbox.comparison import CLASS_COLORS, MODEL_COLORS, Curve, ShownSlice, plot_comparison


def _rgb(color):
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def _count(picture, color):
    return int((np.abs(picture[..., :3].astype(int) - _rgb(color)).max(axis=-1) < 6).sum())


def _draw(path, prediction):
    truth = np.zeros((32, 32), int)
    truth[8:16, 8:24], truth[16:24, 8:24] = 1, 2
    shown = ShownSlice("case", np.random.default_rng(0).random((32, 32)), truth, (truth, prediction(truth)), (0.9, 0.8))
    plot_comparison(
        path,
        models=("one", "two", "not drawn"),
        classes={"upper": 1, "lower": 2},
        slices=[shown, shown],
        curves=[Curve("one", [10, 20], [0.2, 0.6], MODEL_COLORS[0])],
        curves_label="Dice",
        case_dice=[[0.5, 0.7], [0.6, 0.9], [0.55, 0.8]],
    )
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def test_picture_shows_both_classes_and_all_models_in_their_colors(tmp_path):
    picture = _draw(tmp_path / "a.png", lambda truth: truth)
    for color in (*CLASS_COLORS[:2], *MODEL_COLORS):
        assert _count(picture, color) > 100


def test_missed_class_has_no_contour(tmp_path):
    whole = _draw(tmp_path / "a.png", lambda truth: truth)
    missed = _draw(tmp_path / "b.png", lambda truth: np.where(truth == 2, 0, truth))
    assert _count(missed, CLASS_COLORS[1]) < _count(whole, CLASS_COLORS[1])
    assert _count(missed, CLASS_COLORS[0]) > 0.9 * _count(whole, CLASS_COLORS[0])
