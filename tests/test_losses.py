from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_mn.errors import MNError
from nnunet_mn.losses import DeepSupervisionLoss, SoftTargetLoss
from nnunet_mn.targets import LabelSpace, SoftTarget, combine

SHAPE = (3, 4, 5, 6, 7)  # (B, K, D, H, W)


def _value_and_gradient(loss: object, logits: Tensor, target: object) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target)
    value.backward()
    return value.detach(), leaf.grad


def _random_labels(ignore: bool) -> Tensor:
    return torch.randint(0, SHAPE[1] + ignore, (SHAPE[0], 1, *SHAPE[2:])).to(torch.int16)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
def test_hard_targets_give_nnunets_loss_and_gradient(batch_dice: bool, ignore: bool) -> None:
    torch.manual_seed(1)
    logits, target = torch.randn(SHAPE), _random_labels(ignore)
    theirs = DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        ignore_label=SHAPE[1] if ignore else None,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    space = LabelSpace(num_channels=SHAPE[1], ignore_label=SHAPE[1] if ignore else None)
    ours = SoftTargetLoss(batch_dice=batch_dice)
    for mine, stock in zip(
        _value_and_gradient(ours, logits, space.encode(target)),
        _value_and_gradient(theirs, logits, target),
        strict=True,
    ):
        torch.testing.assert_close(mine, stock, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ignore", [False, True])
def test_hard_regions_give_nnunets_loss_and_gradient(ignore: bool) -> None:
    torch.manual_seed(2)
    logits = torch.randn(SHAPE)
    target = torch.rand(SHAPE[0], SHAPE[1] + ignore, *SHAPE[2:]) > 0.7
    theirs = DC_and_BCE_loss(
        {},
        {"batch_dice": False, "do_bg": True, "smooth": 1e-5, "ddp": False},
        use_ignore_label=ignore,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    space = LabelSpace(num_channels=SHAPE[1], regions=True, ignore_label=9 if ignore else None)
    for mine, stock in zip(
        _value_and_gradient(SoftTargetLoss(regions=True), logits, space.encode(target)),
        _value_and_gradient(theirs, logits, target),
        strict=True,
    ):
        torch.testing.assert_close(mine, stock, rtol=1e-5, atol=1e-6)


def test_the_divergence_of_soft_targets_is_torchs() -> None:
    torch.manual_seed(3)
    logits, soft = torch.randn(SHAPE), torch.randn(SHAPE).softmax(1)
    loss = SoftTargetLoss()
    mine = loss(logits, SoftTarget(soft, None)) + loss._dice(logits.softmax(1), SoftTarget(soft, None))
    theirs = kl_divergence(Categorical(soft.movedim(1, -1)), Categorical(logits=logits.movedim(1, -1))).mean()
    torch.testing.assert_close(mine, theirs)
    regions = SoftTargetLoss(regions=True)
    mine = regions(logits, SoftTarget(soft, None)) + regions._dice(logits.sigmoid(), SoftTarget(soft, None))
    torch.testing.assert_close(mine, kl_divergence(Bernoulli(soft), Bernoulli(logits=logits)).mean())


@pytest.mark.parametrize("squared", [True, False])
def test_prediction_equal_to_its_soft_target_is_optimal_for_squared_dice_but_not_for_linear(squared: bool) -> None:
    soft = torch.randn(2, 3, 4, 4, 4).softmax(1)
    logits = soft.log().clone().requires_grad_()
    SoftTargetLoss(squared=squared, background=True)(logits, SoftTarget(soft, None)).backward()
    assert [bool(sample.abs().max() < 1e-6) for sample in logits.grad] == [squared, squared]


def test_masked_voxels_have_no_gradient() -> None:
    target = torch.full((1, 1, 2, 2, 2), 3)
    target[..., 0] = 1
    space = LabelSpace(num_channels=3, ignore_label=3)
    _, gradient = _value_and_gradient(SoftTargetLoss(), torch.randn(1, 3, 2, 2, 2), space.encode(target))
    assert gradient[..., 1].abs().max() == 0
    assert gradient[..., 0].abs().min() > 0


def test_a_batch_without_any_counted_voxel_gives_no_gradient() -> None:
    space = LabelSpace(num_channels=3, ignore_label=3)
    target = space.encode(torch.full((1, 1, 2, 2, 2), 3))
    value, gradient = _value_and_gradient(SoftTargetLoss(), torch.randn(1, 3, 2, 2, 2), target)
    assert torch.isfinite(value)
    assert gradient.abs().max() == 0


def test_deep_supervision_is_nnunets() -> None:
    weights = (0.6, 0.4, 0.0)
    outputs = [torch.randn(2, 3, s, s, s) for s in (8, 4, 2)]
    targets = [torch.randint(0, 3, (2, 1, s, s, s)) for s in (8, 4, 2)]
    stock = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    space = LabelSpace(num_channels=3)
    ours = DeepSupervisionLoss(loss=SoftTargetLoss(batch_dice=True), weights=weights)
    mine = ours(outputs, [space.encode(t) for t in targets])
    torch.testing.assert_close(mine, DeepSupervisionWrapper(stock, weights)(outputs, targets))


def test_a_mixed_target_holds_masks_first_and_pooled_pseudo_masks_last() -> None:
    space = LabelSpace(num_channels=3, ignore_label=3)
    target = torch.randint(0, 4, (3, 1, 4, 4, 4))
    pseudo = torch.randn(2, 3, 8, 8, 8).softmax(1)
    values, mask = combine(target, pseudo, space)
    torch.testing.assert_close(values[:1], space.encode(target[:1]).values)
    torch.testing.assert_close(values[1:, :, 0, 0, 0], pseudo[:, :, :2, :2, :2].mean((2, 3, 4)))
    assert mask[1:].min() == 1
    torch.testing.assert_close(values.sum(1), torch.ones(3, 4, 4, 4))


def test_pseudo_masks_are_pooled_without_an_operator_that_mps_lacks() -> None:
    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.add(func.name())
            return func(*args, **(kwargs or {}))

    names: set[str] = set()
    pseudo = torch.randn(2, 3, 8, 12, 6).softmax(1)
    with Operators():
        values, _ = combine(torch.zeros(2, 1, 8, 6, 2, dtype=torch.long), pseudo, LabelSpace(num_channels=3))
    assert "aten::mean.dim" in names
    assert not any("avg_pool" in name for name in names)
    torch.testing.assert_close(values, torch.nn.functional.avg_pool3d(pseudo, (1, 2, 3)))


def test_the_masks_of_unlabeled_samples_are_not_looked_at() -> None:
    space, pseudo = LabelSpace(num_channels=3), torch.randn(2, 3, 4, 4, 4).softmax(1)
    target = torch.randint(0, 3, (3, 1, 4, 4, 4))
    scrambled = target.clone()
    scrambled[1:] = 99
    assert torch.equal(combine(target, pseudo, space).values, combine(scrambled, pseudo, space).values)


def test_every_voxel_of_an_unlabeled_sample_counts_beside_ignored_ones_at_any_scale() -> None:
    space, pseudo = LabelSpace(num_channels=3, ignore_label=3), torch.randn(1, 3, 4, 4, 4).softmax(1)
    for size in (4, 2):
        target = torch.zeros(2, 1, size, size, size)
        target[0, ..., : size // 2] = 3
        mask = combine(target, pseudo, space).mask
        assert (mask[0, ..., : size // 2].max(), mask[0, ..., size // 2 :].min()) == (0, 1)
        assert mask[1:].min() == 1


@pytest.mark.parametrize(("num_channels", "regions"), [(1, False), (0, True)])
def test_too_few_channels_are_refused(num_channels: int, regions: bool) -> None:
    with pytest.raises(MNError, match=f"num_channels is {num_channels}: give at least 2 .* the background counts"):
        LabelSpace(num_channels=num_channels, regions=regions)
    assert LabelSpace(num_channels=1, regions=True).encode(torch.ones(1, 1, 2, 2, 2)).values.sum() == 8


@pytest.mark.parametrize(("ignore_label", "channels"), [(None, 2), (3, 3)])
def test_masks_that_do_not_fit_the_regions_are_refused(ignore_label: int | None, channels: int) -> None:
    labels = LabelSpace(num_channels=2, regions=True, ignore_label=ignore_label)
    assert labels.encode(torch.zeros(1, channels, 4, 4, 4)).values.shape == (1, 2, 4, 4, 4)
    for wrong in (1, channels + 1):
        with pytest.raises(MNError, match=rf"shape \(1, {wrong}, 4, 4, 4\), but must have {channels} channels"):
            labels.encode(torch.zeros(1, wrong, 4, 4, 4))


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (torch.zeros(1, 4, 4, 4), r"shape \(1, 4, 4, 4\), but must have one channel: \(B, 1, D, H, W\)"),
        (torch.full((1, 1, 4, 4, 4), 3), "labels from 3 to 3, but the classes are 0 to 2"),
        (torch.full((1, 1, 4, 4, 4), -1), "labels from -1 to -1, but the classes are 0 to 2"),
    ],
)
def test_masks_that_do_not_fit_the_classes_are_refused(mask: torch.Tensor, told: str) -> None:
    with pytest.raises(MNError, match=told):
        LabelSpace(num_channels=3).encode(mask)
