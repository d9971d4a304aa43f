"""Results for a page, made from generated masks in a moment."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from nnunet_mn.bridge.prediction.fold import Loaded
from nnunet_mn.bridge.prediction.predictor import Predicted
from nnunet_mn.bridge.prediction.structures import Structure
from nnunet_mn.quality import Pair, sums_of
from nnunet_mn.report.cases import CaseResult, assess
from nnunet_mn.report.page import Content
from nnunet_mn.report.ranking import rank
from nnunet_mn.report.reference import Usual
from nnunet_mn.report.training import Training

STRUCTURES = (Structure("head", (1,), "1", 1), Structure("<b>tail</b>", (2,), "2", 2))
SPACING = (3.0, 1.0, 1.5)
IGNORED = 9
USUAL = {structure.name: Usual((0.5, 1.0), (1, 1)) for structure in STRUCTURES}
TRAINING = Training(
    state="finished and validated",
    epochs=3,
    planned_epochs=4,
    cases={"labeled": 2, "unlabeled": 9, "val": 2},
    settings={"backbone": "efficientnet-lite0", "seed": None},
    versions={"nnunetv2": "2.8.1"},
    batch_size=2,
    skipped=(0, 1),
    seconds=(2.0, 2.5, 2.25),
    log={key: [0.5, 0.4, 0.3] for key in ("train_losses", "val_losses", "train_losses_2d", "mean_fg_dice", "lrs")},
)


def labels(shape: tuple[int, int, int], *, shift: float = 0.0) -> np.ndarray:
    """An ellipsoid of two halves: 1 above the middle, 2 below."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = ((grid - np.array([0, shift, 0])[:, None, None, None]) ** 2).sum(0) < 0.3
    return np.where(inside, np.where(grid[1] < 0, 1, 2), 0).astype(np.uint8)


def probabilities(segmentation: np.ndarray, sure: float) -> np.ndarray:
    """Of each structure."""
    return np.stack([np.where(segmentation == s.labels[0], sure, (1 - sure) / 2) for s in STRUCTURES])


def case(
    name: str,
    role: str = "unlabeled",
    *,
    shift: float = 0.1,
    shape: tuple[int, int, int] = (12, 20, 16),
    sure: float = 0.9,
    ignored: bool = False,
) -> CaseResult:
    """A case whose 2D network is off by a shift. The truth is that of the 3D network.

    With `ignored`, voxels do not count where the networks differ.
    """
    truth, other = labels(shape), labels(shape, shift=shift)
    known = np.where(ignored & (truth != other), IGNORED, truth)
    return assessed(name, role, truth=known, networks=(truth, other, truth), sure=sure, ignored=ignored)


def assessed(
    name: str,
    role: str,
    *,
    truth: np.ndarray,
    networks: tuple[np.ndarray, np.ndarray, np.ndarray],
    sure: float = 0.9,
    ignored: bool,
) -> CaseResult:
    """A case with this truth, and with these masks of the 3D network, the 2D network and both."""
    mask_3d, mask_2d, joint = networks
    pair = Pair(
        probabilities(mask_3d, sure), probabilities(mask_2d, sure - 0.05),
        *(np.stack([mask == s.labels[0] for s in STRUCTURES]) for mask in networks),
    )  # fmt: skip
    noise = np.random.default_rng(0).normal(0, 0.2, joint.shape)
    image = (joint + noise)[None].astype(np.float32)
    uncertainty = (100 * (mask_3d != mask_2d)).astype(np.uint8)
    said = Predicted(mask_3d, mask_2d, joint, uncertainty, sums_of(pair), np.zeros((3, *joint.shape), np.float16))
    made_by: Any = SimpleNamespace(
        structures=STRUCTURES,
        labels=SimpleNamespace(has_ignore_label=ignored, ignore_label=IGNORED),
        configuration=SimpleNamespace(spacing=SPACING),
    )
    hd95 = {"head": 1.5, "<b>tail</b>": float("nan")} if role == "val" else {}
    return assess(name, role, Loaded(image, truth, {}), said, made_by, hd95)


def content(unlabeled: list[CaseResult], val: list[CaseResult] | None = None) -> Content:
    """A page's content."""
    val = [case("val_0", "val"), case("val_1", "val", shift=0.3)] if val is None else val
    official = {one.name: {structure.name: 0.7 + 0.1 * i for structure in STRUCTURES} for i, one in enumerate(val)}
    return Content(
        title="Dataset004_Test, fold 0",
        training=TRAINING,
        official=official,
        val=val,
        ranked=rank(unlabeled, USUAL),
        usual=USUAL,
        ignores=False,
        held_out=True,
        channel="the image (MR)",
        spacing=SPACING,
        warnings=("WARNING: a <i>warning</i>",),
        mirroring=True,
        masks="/somewhere/masks",
    )
