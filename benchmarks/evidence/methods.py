"""The methods compared by `accuracy.py`: the trainer of each, and its changes."""

from dataclasses import dataclass, field
from functools import partial

from evidence.workspace import CONFIGURATION, CONFIGURATION_2D

from nnunet_mn.bridge.model_folders import BASELINE_TRAINER as _LABELED_ONLY
from nnunet_mn.errors import MNError


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train the planned 3D network.

    Args:
        name: in tables and results.
        trainer: nnU-Net trainer class, ours or one of `evidence/trainers`. None: its code is gone, and the method is
            kept for its records.
        text: a description for the table's legend.
        settings: changed fields of MNConfig.
        all_labels: trains on every label of the pool (the upper bound) rather than on the fold's few.
        teaches_itself: the labeled-only model of the same fold and seed labels the unlabeled cases, and stock nnU-Net
            is trained again on both.
        taught_by: the method whose finished networks of the same fold and seed teach this one: two that were trained
            together, or a joint model.
        joins: the method whose networks of the same fold and seed predict together. Nothing is trained.
        ensemble_of: the methods whose networks of the same fold and seed `nnUNetv2_ensemble` puts together. Nothing
            is trained.
        configuration: of nnU-Net.
        length: updates, as a multiple of the comparison's.
        ablation_of: the method to compare it with; the two differ in one thing. None: it is no variant of M&N, and
            compared with `mn`.
    """

    name: str
    trainer: str | None
    text: str
    settings: dict[str, str] = field(default_factory=dict)
    all_labels: bool = False
    teaches_itself: bool = False
    taught_by: str | None = None
    joins: str | None = None
    ensemble_of: tuple[str, ...] = ()
    configuration: str = CONFIGURATION
    length: float = 1.0
    ablation_of: str | None = None


BASELINE = "nnunet"
FAIR_BASELINE = "nnunet-adamw"
UPPER_BOUND = "nnunet-upper-adamw"
OURS = "mn"
JOINT = "joint"
STUDENT = "student"
_STOCK = {"optimizer_3d": "sgd", "lr_3d": "none"}  # whatever rate the benchmark gives AdamW
_ADAMW = {"optimizer_3d": "adamw"}
_MN = "nnUNetTrainerMN"
_STUDENT = "nnUNetTrainerMNStudent"
_MN_SQUARED = "nnUNetTrainerMNSquaredDice"
_MN_LOGITS = "nnUNetTrainerMNSquaredDiceMeanOfLogits"
_REPLACING = "mn-replace"
_WITH_DIFFUSION = "mn-diffusion"
_SMALLER_SLICES = "mn-smaller-slices"
_64_PIXELS = "mn-64-pixels"
_48_PIXELS = "mn-48-pixels"
_STORED_TWICE = "student-of-stored-masks-twice-as-long"
_DIFFUSED = {"batch": "replace", "rounding": "diffusion"}
# Each default that an ablation may start from: its settings, and words about it.
_BASES = {
    OURS: ({}, ""),
    _REPLACING: ({"batch": "replace"}, f", where unlabeled samples replace labeled ones (`{_REPLACING}`)"),
    _WITH_DIFFUSION: (_DIFFUSED, f", under the earlier default `{_WITH_DIFFUSION}`"),
}


def _ablation(name: str, text: str, *, of: str = OURS, trainer: str = _MN, **settings: str) -> Method:
    shared, words = _BASES[of]
    return Method(name=name, trainer=trainer, text=f"{text}{words}", settings={**shared, **settings}, ablation_of=of)


def _kept(name: str, text: str, *, of: str) -> Method:
    """A method that the code trains no longer. It is kept for its records."""
    return Method(name=name, trainer=None, text=text, ablation_of=of)


_ablation_of_replacing = partial(_ablation, of=_REPLACING)  # the default before unlabeled samples came on top
_ablation_with_diffusion = partial(_ablation, of=_WITH_DIFFUSION)  # before that: their share was not rounded down

_ALL = (
    Method(name=BASELINE, trainer=_LABELED_ONLY, text="stock nnU-Net on the labeled cases (SGD)", settings=_STOCK),
    Method(
        name=FAIR_BASELINE,
        trainer=_LABELED_ONLY,
        text="nnU-Net on the labeled cases with the optimizer that M&N uses, to tell its share of the gain",
        settings=_ADAMW,
    ),
    Method(
        name="nnunet-adamw-equal-time",
        trainer=_LABELED_ONLY,
        text="`nnunet-adamw` with four times the updates: about the time of `mn` on hippocampus MRI",
        settings=_ADAMW,
        length=4,
    ),
    Method(
        name="nnunet-adamw-twice-as-long",
        trainer=_LABELED_ONLY,
        text="`nnunet-adamw` with twice the updates, more than the time of `mn` at a patch of 40x56x40 voxels on a CPU",
        settings=_ADAMW,
        length=2,
    ),
    Method(
        name="nnunet-adamw-twelve-times-as-long",
        trainer=_LABELED_ONLY,
        text="`nnunet-adamw` with twelve times the updates: about the time of `mn-four-times-as-long`",
        settings=_ADAMW,
        length=12,
    ),
    Method(
        name="nnunet-2d",
        trainer=_LABELED_ONLY,
        text="nnU-Net's 2D configuration on the labeled cases, with the optimizer that M&N uses",
        settings=_ADAMW,
        configuration=CONFIGURATION_2D,
    ),
    Method(
        name="nnunet-ensemble",
        trainer=_LABELED_ONLY,
        text=f"`{FAIR_BASELINE}` and `nnunet-2d` together, by `nnUNetv2_ensemble`",
        settings=_ADAMW,
        ensemble_of=(FAIR_BASELINE, "nnunet-2d"),
    ),
    Method(
        name="nnunet-upper",
        trainer=_LABELED_ONLY,
        text="stock nnU-Net with every label of the pool (SGD)",
        settings=_STOCK,
        all_labels=True,
    ),
    Method(
        name=UPPER_BOUND,
        trainer=_LABELED_ONLY,
        text="nnU-Net with every label of the pool (AdamW)",
        settings=_ADAMW,
        all_labels=True,
    ),
    Method(
        name="self-training",
        trainer=_LABELED_ONLY,
        text="the labeled-only model labels the unlabeled cases; nnU-Net is trained again on both (AdamW)",
        settings=_ADAMW,
        teaches_itself=True,
    ),
    Method(
        name="mean-teacher",
        trainer="nnUNetTrainerMeanTeacher",
        text="a 3D student, its moving average as teacher, consistency on unlabeled samples (AdamW)",
        settings={"batch": "replace"},
    ),
    Method(name=OURS, trainer=_MN, text="M&N, efficientnet-lite0 with ImageNet weights"),
    Method(
        name="mn-four-times-as-long",
        trainer=_MN,
        text="`mn` with four times the updates, as many as `nnunet-adamw-equal-time`",
        length=4,
    ),
    Method(name=JOINT, trainer="nnUNetTrainerMNJoint", text="both networks of `mn` predict together", joins=OURS),
    Method(
        name=STUDENT,
        trainer=_STUDENT,
        text="nnU-Net's 3D network trained anew, taught by both networks of `mn`",
        settings=_ADAMW,
        taught_by=OURS,
    ),
    Method(
        name="student-of-all-axes",
        trainer=None,
        text="`student`, but in each step the 2D network teaches along all axes, not along a random one; kept for its "
        "records",
        settings=_ADAMW,
        taught_by=OURS,
        ablation_of=STUDENT,
    ),
    Method(
        name="student-twice-as-long",
        trainer=_STUDENT,
        text="`student` with twice the updates",
        settings=_ADAMW,
        taught_by=OURS,
        length=2,
    ),
    Method(
        name="student-of-stored-masks",
        trainer=_STUDENT,
        text="`student`, but the hard masks of whole cases are made once and replace half of each batch",
        settings={**_ADAMW, "student_masks": "stored"},
        taught_by=OURS,
    ),
    Method(
        name=_STORED_TWICE,
        trainer=_STUDENT,
        text="`student-of-stored-masks` with twice the updates",
        settings={**_ADAMW, "student_masks": "stored"},
        taught_by=OURS,
        length=2,
    ),
    Method(
        name="joint-of-student",
        trainer="nnUNetTrainerMNJoint",
        text="the network of `student` and the 2D network that taught it predict together",
        joins=STUDENT,
    ),
    Method(
        name="joint-of-stored-student",
        trainer="nnUNetTrainerMNJoint",
        text=f"the same with the network of `{_STORED_TWICE}`",
        joins=_STORED_TWICE,
    ),
    Method(
        name="second-student",
        trainer=_STUDENT,
        text=f"`{_STORED_TWICE}` again, taught by the networks of `joint-of-stored-student`",
        settings={**_ADAMW, "student_masks": "stored"},
        taught_by="joint-of-stored-student",
        length=2,
    ),
    Method(
        name="mn-labeled-only",
        trainer="nnUNetTrainerMNWithoutUnlabeled",
        text="both networks of M&N on labeled samples alone: they teach each other nothing",
        ablation_of=OURS,
    ),
    Method(
        name="joint-of-labeled-only",
        trainer="nnUNetTrainerMNJoint",
        text="both networks of `mn-labeled-only` predict together",
        joins="mn-labeled-only",
    ),
    Method(
        name="student-of-labeled-only",
        trainer=_STUDENT,
        text="taught by both networks of `mn-labeled-only`, to tell what co-training is worth",
        settings=_ADAMW,
        taught_by="mn-labeled-only",
    ),
    _ablation("mn-sgd", "nnU-Net's SGD for the 3D network", **_STOCK),
    _ablation(
        "mn-other-teacher", "each network learns from the other's pseudo-masks, as in the paper", teacher="other"
    ),
    _ablation("mn-first-axis", "2D network along the first axis alone, as in the paper", slice_axes="first"),
    _ablation(
        "mn-mean-of-logits",
        "in the mean of both pseudo-masks the surer network has more say",
        trainer="nnUNetTrainerMNMeanOfLogits",
    ),
    _ablation(
        "mn-every-fourth-slice", "the 2D network learns from every fourth slice, not from every eighth", slice_step="4"
    ),
    _ablation(
        "mn-ends-on-labels",
        "the last tenth of the training is on labeled samples alone, as a student's",
        trainer="nnUNetTrainerMNEndsOnLabels",
    ),
    _ablation(
        "mn-half-weight",
        "with 16 labels unlabeled samples have half of the weight that they have with 4, not a quarter",
        unlabeled_weight="0.5",
    ),
    _ablation(
        "mn-whole-weight",
        "with 16 labels unlabeled samples have the whole weight that they have with 4 (earlier default)",
        unlabeled_weight="1",
    ),
    _kept("joint-of-whole-weight", "both networks of `mn-whole-weight` predict together", of=JOINT),
    _kept(
        "mn-strong-view",
        "the students see unlabeled samples with other contrast, brightness, sharpness and noise than the teacher",
        of=OURS,
    ),
    _kept(
        "student-of-strong-view",
        "taught by both networks of `mn-strong-view`, and sees such samples itself",
        of=STUDENT,
    ),
    _kept(
        _SMALLER_SLICES,
        "with 32 as the shortest side (`SHORTEST_SIDE` in `networks/geometry.py`) a slice of 24x40 voxels becomes "
        "32x56 pixels for the 2D network, not 96x160",
        of=OURS,
    ),
    _kept(
        _64_PIXELS,
        "a slice of 24x40 voxels becomes 64x112 pixels for the 2D network, not 96x160: it is enlarged by 8/3, not by 4",
        of=OURS,
    ),
    _kept(
        _48_PIXELS,
        "the same with 48x80 pixels: it is enlarged by 2",
        of=OURS,
    ),
    _kept("joint-of-48-pixels", f"both networks of `{_48_PIXELS}` predict together", of=JOINT),
    _kept("joint-of-64-pixels", f"both networks of `{_64_PIXELS}` predict together", of=JOINT),
    _kept("joint-of-smaller-slices", f"both networks of `{_SMALLER_SLICES}` predict together", of=JOINT),
    _kept(
        "mn-smaller-slices-other-teacher",
        f"`{_SMALLER_SLICES}`, and each network learns from the other's pseudo-masks",
        of=_SMALLER_SLICES,
    ),
    _kept(
        "mn-smaller-slices-weight",
        f"`{_SMALLER_SLICES}`, and the weight of unlabeled samples grows, not their number",
        of=_SMALLER_SLICES,
    ),
    _ablation("mn-fast-2d", "the 2D network learns three times as fast (`lr_2d = 3e-3`)", lr_2d="3e-3"),
    _ablation(
        "mn-weight", "half a batch of unlabeled samples, and their weight grows, not their number", guidance="weight"
    ),
    _ablation(_REPLACING, "unlabeled samples replace labeled ones (earlier default)", batch="replace"),
    _ablation_of_replacing(
        "mn-squared-half",
        "earlier defaults: the squared Dice and half of each batch",
        trainer="nnUNetTrainerMNSquaredDiceHalf",
    ),
    _ablation_of_replacing(
        "mn-logits-half",
        "earlier defaults: the squared Dice, the mean of logits and half of each batch",
        trainer="nnUNetTrainerMNSquaredDiceMeanOfLogitsHalf",
    ),
    _ablation_with_diffusion(
        "mn-logits", "earlier defaults: the squared Dice and the mean of logits", trainer=_MN_LOGITS
    ),
    _kept(
        "mn-logits-paste",
        "the first defaults: the squared Dice, the mean of logits and a box of a labeled sample in each unlabeled one; "
        "kept for its records",
        of=_WITH_DIFFUSION,
    ),
    _ablation_of_replacing(
        _WITH_DIFFUSION, "the unlabeled share's rest is carried to the next batch, not dropped", rounding="diffusion"
    ),
    _ablation_with_diffusion("mn-random-2d", "2D network with random weights", trainer="nnUNetTrainerMNRandom2D"),
    _ablation_with_diffusion("mn-two-3d", "a second 3D network in place of the 2D one", trainer="nnUNetTrainerMNTwo3D"),
    _ablation_of_replacing(
        "mn-half-unlabeled", "half of each batch is unlabeled", trainer="nnUNetTrainerMNHalfUnlabeled"
    ),
    _ablation_with_diffusion(
        "mn-grows-to-half", "the unlabeled share grows, but to half of the batch", trainer="nnUNetTrainerMNGrowsToHalf"
    ),
    _ablation_of_replacing("mn-paper", 'preset = "paper"', preset="paper", lr_3d="1e-4"),
    _ablation_with_diffusion(
        "mn-hard-masks", "each network votes for its likeliest class", trainer="nnUNetTrainerMNHardMasks"
    ),
    _ablation_with_diffusion("mn-squared-dice", "squared Dice on unlabeled samples", trainer=_MN_SQUARED),
    _ablation_with_diffusion("mn-no-supervised-stage", "no supervised stage", supervised_fraction="0"),
)
METHODS = {method.name: method for method in _ALL}


def find_method(name: str) -> Method:
    """The method of a name, for training.

    Raises:
        MNError: when there is none, or it can no longer be trained.
    """
    trained = [method.name for method in _ALL if method.trainer is not None]
    if name not in trained:
        raise MNError(f"there is no method '{name}' to train; choose from {', '.join(trained)}")
    return METHODS[name]
