import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from nnunet_mn.cotraining import CoTrainer, Student
from nnunet_mn.errors import MNError
from nnunet_mn.losses import DeepSupervisionLoss, SoftTargetLoss
from nnunet_mn.slices import SliceSampler
from nnunet_mn.targets import LabelSpace, SoftTarget
from nnunet_mn.teaching import FrozenPair, MeanOfBoth, OtherNetwork, Teacher, pseudo_mask

LABELS = LabelSpace(num_channels=3)


class TinyNetwork(nn.Module):
    """Logits at two scales, finest first, or at one."""

    def __init__(self, *, scales: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Tanh())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv3d(4, 3, 1)
        self.scales = scales
        self.calls: list[tuple[int, bool, bool]] = []  # samples, training, with gradient

    def forward(self, volume: Tensor) -> list[Tensor]:
        self.calls.append((len(volume), self.training, torch.is_grad_enabled()))
        features = self.dropout(self.layers(volume))
        return [self.head(nn.functional.avg_pool3d(features, 2**s)) for s in range(self.scales)]


def _student(network: nn.Module, *, rate: float = 0.1, weights: tuple[float, ...] = (1.0,)) -> Student:
    loss = DeepSupervisionLoss(loss=SoftTargetLoss(), weights=weights)
    return Student(name="3D", network=network, optimizer=torch.optim.SGD(network.parameters(), rate), loss=loss)


def _trainer(
    *,
    slice_step: int = 1,
    axes: tuple[int, ...] = (0,),
    dropout: float = 0.0,
    seed: int = 0,
    teacher: type[Teacher] = OtherNetwork,
    network_3d: nn.Module | None = None,
) -> CoTrainer:
    torch.manual_seed(seed)
    if network_3d is None:
        student_3d = _student(TinyNetwork(scales=2, dropout=dropout), weights=(0.7, 0.3))
    else:
        student_3d = _student(network_3d)
    student_2d = _student(TinyNetwork())
    sampler = SliceSampler(axes=axes, step=slice_step, generator=torch.Generator().manual_seed(seed))
    return CoTrainer(
        student_3d=student_3d,
        student_2d=student_2d,
        teacher=teacher(network_3d=student_3d.network, network_2d=student_2d.network, labels=LABELS, sampler=sampler),
        labels=LABELS,
        sampler=sampler,
    )


def _batch(seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.randn(4, 1, 4, 8, 8, generator=generator)
    return volumes, [torch.randint(0, 3, (4, 1, *(n // s for n in (4, 8, 8))), generator=generator) for s in (1, 2)]


def _weights(trainer: CoTrainer) -> list[Tensor]:
    networks = (trainer.student_3d.network, trainer.student_2d.network)
    return [p.detach().clone() for network in networks for p in network.parameters()]


def test_each_network_is_updated_from_the_others_state_before_the_step() -> None:
    trainer = _trainer()
    volumes, targets = _batch()
    net_3d, net_2d = trainer.student_3d.network, trainer.student_2d.network
    from_2d, from_3d = (pseudo_mask(net, volumes[1:], LABELS) for net in (net_2d, net_3d))
    one_hot = nn.functional.one_hot(targets[0][:1, 0], 3).movedim(-1, 1).float()
    expected = {}
    for name, net, pseudo in (("2d", net_2d, from_3d), ("3d", net_3d, from_2d)):
        student = trainer.student_2d if name == "2d" else trainer.student_3d
        finest = SoftTargetLoss()(net(volumes)[0], (target := SoftTarget(torch.cat([one_hot, pseudo]), None)))
        if name == "3d":
            coarse = torch.cat([_one_hot(targets[1][:1]), nn.functional.avg_pool3d(target.values[1:], 2)])
            finest = 0.7 * finest + 0.3 * SoftTargetLoss()(net(volumes)[1], SoftTarget(coarse, None))
        gradients = torch.autograd.grad(finest, list(net.parameters()))
        assert math.sqrt(sum(float(g.square().sum()) for g in gradients)) < student.clip_norm
        expected[name] = [p.detach() - 0.1 * g for p, g in zip(net.parameters(), gradients, strict=True)]
    trainer.step(volumes, targets, n_labeled=1)
    for name, net in (("2d", net_2d), ("3d", net_3d)):
        for now, wanted in zip(net.parameters(), expected[name], strict=True):
            torch.testing.assert_close(now.detach(), wanted)


def _one_hot(labels: Tensor) -> Tensor:
    return nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float()


def test_a_network_that_says_the_same_in_eval_mode_teaches_and_learns_in_one_pass() -> None:
    trainer = _trainer()
    trainer.step(*_batch(), n_labeled=1)
    assert trainer.student_3d.network.calls == [(4, True, True)]
    assert trainer.student_2d.network.calls == [(3, True, False), (4, True, True)]


def test_a_network_with_dropout_teaches_in_eval_mode_without_gradient() -> None:
    trainer = _trainer(dropout=0.5)
    trainer.step(*_batch(), n_labeled=1)
    assert trainer.student_3d.network.calls == [(4, True, True), (3, False, False)]


def test_a_teacher_with_a_3d_network_of_its_own_teaches_what_that_network_says() -> None:
    trainer = _trainer(teacher=MeanOfBoth)
    torch.manual_seed(1)
    trainer.teacher.network_3d = TinyNetwork()
    volumes, targets = _batch()
    taught: list[Tensor] = []
    trainer.teacher.mean = lambda of_2d, of_3d: taught.append(of_3d) or of_2d  # type: ignore[method-assign]
    trainer.step(volumes, targets, n_labeled=1)
    torch.testing.assert_close(taught[0], pseudo_mask(trainer.teacher.network_3d, volumes[1:], LABELS))


def test_without_unlabeled_samples_nobody_teaches() -> None:
    trainer = _trainer(dropout=0.5)
    trainer.step(*_batch(), n_labeled=4)
    assert trainer.student_3d.network.calls == trainer.student_2d.network.calls == [(4, True, True)]


def test_a_network_without_deep_supervision_gives_one_output() -> None:
    class OneOutput(TinyNetwork):
        def forward(self, volume: Tensor) -> Tensor:  # type: ignore[override]  # as nnU-Net's networks then do
            return super().forward(volume)[0]

    volumes, targets = _batch()
    losses = []
    for kind in (TinyNetwork, OneOutput):
        torch.manual_seed(0)
        trainer = _trainer(network_3d=kind())
        losses.append(trainer.step(volumes, targets[:1], 2))
    assert losses[0] == losses[1]


def test_the_second_student_may_return_a_tensor_too() -> None:
    class OneOutput(TinyNetwork):
        def forward(self, volume: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(volume)[0]

    volumes, targets = _batch()
    losses = []
    for kind in (TinyNetwork, OneOutput):
        trainer = _trainer(axes=(0, 1, 2))
        torch.manual_seed(5)
        trainer.student_2d = _student(kind())
        losses.append(trainer.step(volumes, targets, n_labeled=2))
    assert losses[0] == losses[1]


def test_a_step_that_an_error_cut_off_leaves_nothing_for_the_next_one() -> None:
    volumes, targets = _batch()
    losses = []
    for fails in (False, True):
        trainer = _trainer()
        if fails:
            with pytest.raises(MNError, match="must have one channel"):
                trainer.step(volumes, [*targets[:1], targets[1][:, 0]], n_labeled=4)
            trainer.student_3d.learn(trainer.student_3d.network(volumes), [LABELS.encode(one) for one in targets])
        trainer.teacher.sampler.generator.manual_seed(0)
        losses.append(trainer.step(volumes, targets, n_labeled=2))
    assert losses[0] == losses[1]


def test_a_batch_may_be_all_unlabeled() -> None:
    losses = _trainer().step(*_batch(), n_labeled=0)
    assert all(math.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("n_labeled", [-1, 9])
def test_a_number_of_labeled_samples_that_the_batch_does_not_have_is_refused(n_labeled: int) -> None:
    with pytest.raises(MNError, match=f"n_labeled is {n_labeled}, but the batch has 4 samples: .* from 0 to 4"):
        _trainer().step(*_batch(), n_labeled)


def test_masks_of_unlabeled_samples_change_no_bit() -> None:
    one, other = _trainer(slice_step=2), _trainer(slice_step=2)
    volumes, targets = _batch()
    scrambled = [t.clone() for t in targets]
    for t in scrambled:
        t[2:] = torch.randint(0, 3, t[2:].shape)
    for _ in range(3):
        one.step(volumes, targets, n_labeled=2)
        other.step(volumes, scrambled, n_labeled=2)
    assert all(torch.equal(a, b) for a, b in zip(_weights(one), _weights(other), strict=True))


def test_the_2d_network_learns_from_a_random_phase_of_slices() -> None:
    trainer, seen = _trainer(slice_step=2), set()
    volumes, targets = _batch()
    volumes = torch.arange(4.0).reshape(1, 1, 4, 1, 1).expand(4, 1, 4, 8, 8) + 0 * volumes
    trainer.student_2d.network.register_forward_pre_hook(
        lambda net, inputs: seen.add(tuple(inputs[0][0, 0, :, 0, 0].tolist())) if torch.is_grad_enabled() else None
    )
    for _ in range(20):
        trainer.step(volumes, targets, n_labeled=2)
    assert seen == {(0.0, 2.0), (1.0, 3.0)}


def test_a_volume_of_fewer_slices_than_a_step_gives_one() -> None:
    trainer, depths = _trainer(slice_step=9), []
    trainer.student_2d.network.register_forward_pre_hook(
        lambda net, inputs: depths.append(inputs[0].shape[2]) if torch.is_grad_enabled() else None
    )
    for _ in range(10):
        losses = trainer.step(*_batch(), n_labeled=2)
        assert all(math.isfinite(loss) for loss in losses.values())
    assert set(depths) == {1}


def test_no_network_waits_for_the_device_before_both_have_learned() -> None:
    trainer, order = _trainer(), []
    for student in trainer.students:
        learn, update, name = student.learn, student.update, "3D" if student is trainer.student_3d else "2D"
        student.learn = lambda *args, learn=learn, name=name, **kw: (order.append(f"{name} learns"), learn(*args, **kw))
        student.update = lambda update=update, name=name: (order.append(f"{name} waits"), update())[1]
    trainer.step(*_batch(), n_labeled=2)
    assert order == ["3D learns", "2D learns", "3D waits", "2D waits"]


def test_only_the_3d_network_lets_cudnn_search_for_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as nnU-Net does on a card
    trainer, seen = _trainer(teacher=MeanOfBoth), set()
    for student in trainer.students:
        is_3d = student is trainer.student_3d
        student.network.register_forward_hook(lambda *_, is_3d=is_3d: seen.add((is_3d, torch.backends.cudnn.benchmark)))
        weight = next(student.network.parameters())  # its gradient comes last
        weight.register_hook(lambda _, is_3d=is_3d: seen.add((is_3d, torch.backends.cudnn.benchmark)))
    for weight in (None, 1.0):
        trainer.step(*_batch(), n_labeled=2, unlabeled_weight=weight)
    assert seen == {(True, True), (False, False)}
    assert torch.backends.cudnn.benchmark


def test_a_step_that_is_not_finite_leaves_the_weights_alone_and_twenty_in_a_row_stop_the_training() -> None:
    trainer = _trainer()
    volumes, targets = _batch()
    before = _weights(trainer)
    for _ in range(19):
        trainer.step(volumes * math.nan, targets, n_labeled=2)
    assert all(torch.equal(a, b) for a, b in zip(before, _weights(trainer), strict=True))
    assert trainer.student_3d.skipped == trainer.student_2d.skipped == 19
    trainer.step(volumes, targets, n_labeled=2)
    assert trainer.student_3d.skipped_in_a_row == 0
    for _ in range(19):
        trainer.step(volumes * math.nan, targets, n_labeled=2)
    with pytest.raises(MNError, match=r"not finite 20 times in a row.*NaN"):
        trainer.step(volumes * math.nan, targets, n_labeled=2)


def test_teaching_restores_the_mode_and_keeps_no_graph() -> None:
    network = TinyNetwork(dropout=0.5)
    taught = pseudo_mask(network, _batch()[0], LABELS)
    assert network.training
    assert not taught.requires_grad
    torch.testing.assert_close(taught.sum(1), torch.ones(4, 4, 8, 8))


def test_both_networks_learn_from_the_mean_of_their_pseudo_masks_along_random_axes() -> None:
    trainer = _trainer(teacher=MeanOfBoth, axes=(0, 1, 2))
    volumes, targets = torch.randn(4, 1, 4, 6, 8), [torch.randint(0, 3, (4, 1, *s)) for s in ((4, 6, 8), (2, 3, 4))]
    net_3d, net_2d = trainer.student_3d.network, trainer.student_2d.network
    of_3d = pseudo_mask(net_3d, volumes[1:], LABELS)
    means = [
        trainer.teacher.mean(
            pseudo_mask(net_2d, volumes[1:].transpose(2, 2 + axis), LABELS).transpose(2, 2 + axis), of_3d
        )
        for axis in range(3)
    ]
    learned: dict[str, Tensor] = {}
    for student in (trainer.student_3d, trainer.student_2d):
        student.learn = lambda _, soft, weight=1.0, of=student: learned.update({str(id(of)): soft[0].values})
        student.update = lambda: 0.0
    seen = set()
    for _ in range(40):
        trainer.step(volumes, targets, n_labeled=1)
        by_3d, by_2d = (learned[str(id(student))][1:] for student in (trainer.student_3d, trainer.student_2d))
        (taught,) = (axis for axis, mean in enumerate(means) if torch.allclose(by_3d, mean, atol=1e-5))
        axis = {(4, 6, 8): 0, (6, 4, 8): 1, (8, 6, 4): 2}[tuple(by_2d.shape[2:])]
        torch.testing.assert_close(by_2d.transpose(2, 2 + axis), by_3d)
        seen.add((taught, axis))
    assert seen == {(taught, axis) for taught in range(3) for axis in range(3)}


def test_overflows_of_a_gradient_by_which_a_scaler_finds_its_scale_are_not_counted() -> None:
    student = _student(TinyNetwork(), weights=(1000.0,))
    student.scaler = GradScaler("cpu", init_scale=2.0**127, growth_interval=10)
    before = [p.detach().clone() for p in student.network.parameters()]
    volumes, targets = _batch()
    for _ in range(2):
        student.learn(student.network(volumes), [LABELS.encode(targets[0])])
        student.update()
    assert student.skipped == 0
    assert student.skipped_in_a_row == 2
    assert student.scaler.get_scale() == 2.0**125
    assert all(torch.equal(a, b) for a, b in zip(before, student.network.parameters(), strict=True))
    student.learn([output * math.nan for output in student.network(volumes)], [LABELS.encode(targets[0])])
    student.update()
    assert student.skipped == 1


def test_a_loss_that_is_not_finite_moves_no_weight_also_with_a_scaler_and_a_finite_gradient() -> None:
    student = _student(TinyNetwork())
    student.scaler = GradScaler("cpu", init_scale=2.0)
    before = [p.detach().clone() for p in student.network.parameters()]
    volumes, targets = _batch()
    student.learn(student.network(volumes), [LABELS.encode(targets[0])])
    student._losses[0] += math.inf
    student.update()
    assert student.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, student.network.parameters(), strict=True))


def test_the_host_waits_for_the_device_once_a_student_and_step() -> None:
    """Whatever reads a number from a tensor waits for a GPU."""
    waits: list[str] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(function, "__name__", "") in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu"):
                waits.append(function.__name__)
            return function(*args, **(kwargs or {}))

    trainer = _trainer()
    student, (volumes, targets) = trainer.student_3d, _batch()
    outputs, known = student.network(volumes), [LABELS.encode(target) for target in targets]
    with Watch():
        student.learn(outputs, known)
        student.update()
    assert waits == ["tolist"]


def test_a_scaler_that_looks_for_its_scale_is_not_counted_as_skipping() -> None:
    trainer = _trainer()
    volumes, targets = _batch()
    trainer.student_3d.scaler = GradScaler("cpu", init_scale=2.0**16)
    too_large = next(trainer.student_3d.network.parameters()).register_hook(lambda gradient: gradient + math.inf)
    before = _weights(trainer)[0]
    trainer.step(volumes, targets, n_labeled=2)
    assert torch.equal(_weights(trainer)[0], before)
    assert (trainer.student_3d.skipped, trainer.student_3d.skipped_in_a_row) == (0, 1)
    assert trainer.student_3d.scaler.get_scale() == 2.0**15
    too_large.remove()
    trainer.step(volumes * math.nan, targets, n_labeled=2)
    assert (trainer.student_3d.skipped, trainer.student_3d.skipped_in_a_row) == (1, 2)


def test_unlabeled_samples_on_top_leave_the_gradient_of_the_labeled_batch_whole() -> None:
    """The step is that of the labeled batch's loss plus the weighted loss of the unlabeled samples."""
    trainer = _trainer()
    volumes, targets = _batch()
    network = trainer.student_3d.network
    taught = pseudo_mask(trainer.student_2d.network, volumes[2:], LABELS)
    labeled = [LABELS.encode(target[:2]) for target in targets]
    pseudo = [SoftTarget(taught, None), SoftTarget(nn.functional.avg_pool3d(taught, 2), None)]
    loss = trainer.student_3d.loss(network(volumes[:2]), labeled)
    loss = loss + 0.25 * trainer.student_3d.loss(network(volumes[2:]), pseudo)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    expected = [p.detach() - 0.1 * g for p, g in zip(network.parameters(), gradients, strict=True)]
    network.calls.clear()
    losses = trainer.step(volumes, targets, n_labeled=2, unlabeled_weight=0.25)
    assert losses["3d"] == pytest.approx(float(loss.detach()))
    assert network.calls == [(2, True, True), (2, True, True)]  # never more samples at once than planned
    for now, wanted in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(now.detach(), wanted)


def test_a_batch_may_hold_unlabeled_samples_alone() -> None:
    trainer = _trainer()
    before = _weights(trainer)
    losses = trainer.step(*_batch(), n_labeled=0, unlabeled_weight=0.5)
    assert all(math.isfinite(loss) for loss in losses.values())
    assert not all(torch.equal(a, b) for a, b in zip(before, _weights(trainer), strict=True))
    assert [student.skipped for student in trainer.students] == [0, 0]


def test_without_weight_samples_on_top_change_nothing() -> None:
    with_some, without = _trainer(), _trainer()
    volumes, targets = _batch()
    with_some.step(volumes, targets, n_labeled=2, unlabeled_weight=0.0)
    without.step(volumes[:2], [target[:2] for target in targets], n_labeled=2, unlabeled_weight=0.0)
    assert all(torch.equal(a, b) for a, b in zip(_weights(with_some), _weights(without), strict=True))


def test_a_3d_network_may_learn_alone_from_a_frozen_pair() -> None:
    pair = _trainer()
    student = _student(TinyNetwork(scales=2), weights=(0.7, 0.3))
    frozen = FrozenPair(
        network_3d=pair.student_3d.network, network_2d=pair.student_2d.network, labels=LABELS, sampler=pair.sampler
    )
    trainer = CoTrainer(student_3d=student, teacher=frozen, labels=LABELS)
    before = _weights(pair)
    losses = trainer.step(*_batch(), n_labeled=2, unlabeled_weight=1.0)
    assert losses.keys() == {"3d"}
    assert trainer.students == (student,)
    assert all(torch.equal(a, b) for a, b in zip(before, _weights(pair), strict=True))


@pytest.mark.parametrize("n_labeled", [0, 1, 4])
def test_ranks_with_and_without_unlabeled_samples_draw_as_many_numbers(n_labeled: int) -> None:
    """Where unlabeled samples replace labeled ones, one rank may have none. All must see the same slices."""
    states = []
    for n in (n_labeled, 2):
        trainer = _trainer(axes=(0, 1, 2))
        volumes, targets = _batch()
        trainer.step(volumes, targets, n_labeled=n)
        states.append(trainer.sampler.generator.get_state())
    assert torch.equal(*states)
