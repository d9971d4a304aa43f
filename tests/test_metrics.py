import math

import pytest
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn

from nnunet_mn.metrics import Counts, count, dice_per_class
from nnunet_mn.targets import LabelSpace


@pytest.mark.parametrize("ignore", [None, 3])
def test_counts_are_nnunets(ignore: int | None) -> None:
    torch.manual_seed(0)
    labels = LabelSpace(num_channels=3, ignore_label=ignore)
    logits, target = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 4 if ignore else 3, (2, 1, 4, 5, 6))
    mine = count(logits, labels.encode(target), labels)
    hard = torch.nn.functional.one_hot(logits.argmax(1), 3).movedim(-1, 1).float()
    mask = (target != ignore).float() if ignore else None
    tp, fp, fn, _ = get_tp_fp_fn_tn(hard, target.masked_fill(target == 3, 0), axes=[0, 2, 3, 4], mask=mask)
    for ours, theirs in zip(mine, (tp, fp, fn), strict=True):
        torch.testing.assert_close(ours, theirs[1:])


def test_regions_may_overlap() -> None:
    labels = LabelSpace(num_channels=2, regions=True)
    truth = torch.tensor([[[1.0, 1, 0]], [[0, 1, 0]]]).reshape(1, 2, 1, 1, 3)
    counts = count(torch.tensor([[[5.0, 5, 5]], [[-5, 5, -5]]]).reshape(1, 2, 1, 1, 3), labels.encode(truth), labels)
    assert dice_per_class([counts]) == pytest.approx([0.8, 1.0])


def test_dice_is_taken_of_all_voxels_and_is_nan_for_an_absent_class() -> None:
    batches = [Counts(*(torch.tensor(v) for v in ([a, 0.0], [b, 0.0], [c, 0.0]))) for a, b, c in ((1, 1, 0), (3, 0, 2))]
    first, absent = dice_per_class(batches)
    assert first == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))
    assert math.isnan(absent)
