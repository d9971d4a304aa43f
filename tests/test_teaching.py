from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from nnunet_mn.slices import SliceSampler
from nnunet_mn.targets import LabelSpace
from nnunet_mn.teaching import FrozenPair, MeanOfBoth, MovingAverage, OtherNetwork, Teacher, pseudo_mask, same_in_eval

LABELS = LabelSpace(num_channels=3)


class Network(nn.Module):
    """Logits that depend on the order of the axes."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 3, (3, 1, 1), padding=(1, 0, 0))
        self.dropout = nn.Dropout(dropout)

    def forward(self, volume: Tensor) -> list[Tensor]:
        return [self.dropout(self.conv(volume))]


def _teacher(kind: type[Teacher], *, axes: tuple[int, ...] = (0,), dropout: float = 0.0, seed: int = 0) -> Teacher:
    torch.manual_seed(seed)
    sampler = SliceSampler(axes=axes, generator=torch.Generator().manual_seed(seed))
    return kind(network_3d=Network(dropout=dropout), network_2d=Network(), labels=LABELS, sampler=sampler)


def _volumes() -> Tensor:
    return torch.randn(2, 1, 4, 6, 8, generator=torch.Generator().manual_seed(1))


def _taught(teacher: Teacher, volumes: Tensor) -> tuple[Tensor, Tensor]:
    return teacher(volumes, teacher.network_3d(volumes)[0].detach())


def test_the_other_network_teaches_each_student() -> None:
    teacher, volumes = _teacher(OtherNetwork), _volumes()
    for_3d, for_2d = _taught(teacher, volumes)
    assert torch.equal(for_3d, pseudo_mask(teacher.network_2d, volumes, LABELS))
    assert torch.equal(for_2d, pseudo_mask(teacher.network_3d, volumes, LABELS))


@pytest.mark.parametrize("kind", [OtherNetwork, MeanOfBoth, MovingAverage, FrozenPair])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_masks_are_probabilities_without_a_gradient_also_for_no_volumes(kind: type[Teacher], dropout: float) -> None:
    teacher = _teacher(kind, dropout=dropout)
    for volumes in (_volumes(), _volumes()[:0]):
        for masks in _taught(teacher, volumes):
            assert not masks.requires_grad
            torch.testing.assert_close(masks.sum(1), torch.ones(len(volumes), 4, 6, 8))
    assert teacher.network_3d.training


def test_the_surer_network_has_no_more_say() -> None:
    unsure, sure = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.999, 0.001]])
    mean = _teacher(MeanOfBoth).mean(unsure, sure)
    torch.testing.assert_close(mean, torch.tensor([[0.5495, 0.4505]]))


def test_a_moving_average_follows_the_students_and_starts_fast() -> None:
    teacher = _teacher(MovingAverage)
    student, slow = teacher.students[0], teacher.network_3d
    start = slow.conv.bias.clone()
    with torch.no_grad():
        student.conv.bias.add_(1)
    taken = []
    for _ in range(400):
        before = slow.conv.bias.clone()
        teacher.follow()
        taken.append(float(((slow.conv.bias - before) / (student.conv.bias.detach() - before)).mean()))
    assert taken[0] == pytest.approx(1 / 2)
    assert taken[1] == pytest.approx(1 / 3)
    assert taken[200] == pytest.approx(0.01, abs=1e-3)
    torch.testing.assert_close(slow.conv.bias, start + 1, atol=0.02, rtol=0)
    assert not any(parameter.requires_grad for parameter in slow.parameters())


def test_a_resumed_moving_average_goes_on_where_it_stopped() -> None:
    first, second = _teacher(MovingAverage), _teacher(MovingAverage, seed=5)
    for parameter in first.students[1].parameters():
        parameter.data.add_(1)
    first.follow()
    second.load_state_dict(deepcopy(first.state_dict()))
    assert second.steps == 1
    assert all(torch.equal(a, b) for a, b in zip(_taught(first, _volumes()), _taught(second, _volumes()), strict=True))


def test_a_frozen_pair_looks_along_each_axis_in_turn() -> None:
    teacher, volumes = _teacher(FrozenPair, axes=(0, 1, 2)), _volumes()
    of_3d = pseudo_mask(teacher.network_3d, volumes, LABELS)
    means = [(teacher.masks_along(volumes, axis) + of_3d) / 2 for axis in range(3)]
    seen = set()
    for _ in range(20):
        masks = teacher(volumes, None)  # its 3D network is not the student
        assert masks.for_3d is masks.for_2d
        seen |= {axis for axis, mean in enumerate(means) if torch.allclose(masks.for_3d, mean)}
    assert seen == {0, 1, 2}


@pytest.mark.parametrize(
    ("layer", "same"),
    [
        (nn.InstanceNorm3d(2), True),
        (nn.InstanceNorm3d(2, track_running_stats=True), False),
        (nn.GroupNorm(1, 2), True),
        (nn.BatchNorm3d(2), False),
        (nn.Dropout3d(0.1), False),
        (nn.Dropout3d(0.0), True),
    ],
)
def test_which_networks_say_the_same_in_train_and_eval_mode(layer: nn.Module, same: bool) -> None:
    assert same_in_eval(nn.Sequential(layer)) is same
    assert same_in_eval(nn.Sequential(layer).eval())


def test_a_frozen_layer_keeps_its_mode_when_its_network_teaches() -> None:
    network = nn.Sequential(nn.BatchNorm3d(1).eval(), nn.Dropout(0.5), nn.Conv3d(1, 3, 1))
    pseudo_mask(network, _volumes(), LABELS)
    assert [layer.training for layer in network] == [False, True, True]

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    network.append(nn.Identity()).register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        pseudo_mask(network, _volumes(), LABELS)
    assert [layer.training for layer in network] == [False, True, True, True]


def test_modes_are_switched_only_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    monkeypatch.setattr(Network, "train", lambda self, mode=True: modes.append(mode) or nn.Module.train(self, mode))
    for dropout, expected in ((0.0, []), (0.5, [False])):
        network = Network(dropout=dropout)
        pseudo_mask(network, _volumes(), LABELS)
        assert modes == expected
        assert all(layer.training for layer in network.modules())


def test_a_rate_that_a_layer_applies_itself_counts() -> None:
    class Attention(nn.Module):
        attention_dropout = 0.1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x, self.attention_dropout, self.training)

    class StochasticDepth(nn.Module):  # as in torchvision
        p = 0.1

    for kind in (Attention, StochasticDepth):
        assert not same_in_eval(kind())
        assert same_in_eval(kind().eval())
