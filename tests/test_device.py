import os
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._functorch import config

from nnunet_mn.cotraining import CoTrainer, Student
from nnunet_mn.device import autocast_type, compile_anew, cpu_count, prepare_torch
from nnunet_mn.errors import MNError
from nnunet_mn.losses import DeepSupervisionLoss, SoftTargetLoss
from nnunet_mn.slices import SliceSampler
from nnunet_mn.targets import LabelSpace, SoftTarget
from nnunet_mn.teaching import MeanOfBoth, MovingAverage, OtherNetwork, Teacher, pseudo_mask

DENORMAL = 1e-40
CUDA, CPU, MPS = (torch.device(name) for name in ("cuda", "cpu", "mps"))


class Watched(SoftTargetLoss):
    """Notes the types that come in and go out."""

    seen: list[torch.dtype] = []  # noqa: RUF012  shared on purpose

    def __call__(self, logits: Tensor, target: SoftTarget) -> Tensor:
        value = super().__call__(logits, target)
        self.seen.extend([logits.dtype, target.values.dtype, value.dtype])
        return value


@pytest.fixture
def seen() -> Iterator[list[torch.dtype]]:
    Watched.seen.clear()
    yield Watched.seen
    Watched.seen.clear()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.LeakyReLU())
        self.head = nn.Conv3d(4, 3, 1)

    def forward(self, volume: Tensor) -> list[Tensor]:
        return [self.head(self.layers(volume))]


def _trainer(network_3d: nn.Module, *, teacher: type[Teacher] = OtherNetwork, **options: object) -> CoTrainer:
    def student(name: str, network: nn.Module) -> Student:
        loss = DeepSupervisionLoss(loss=Watched())
        return Student(name=name, network=network, optimizer=torch.optim.SGD(network.parameters(), 0.1), loss=loss)

    network_2d, labels, sampler = Network(), LabelSpace(num_channels=3), SliceSampler()
    return CoTrainer(
        student_3d=student("3D", network_3d),
        student_2d=student("2D", network_2d),
        teacher=teacher(network_3d=network_3d, network_2d=network_2d, labels=labels, sampler=sampler),
        labels=labels,
        sampler=sampler,
        **options,
    )


def _batch() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, 4, 8, 8)
    return torch.randn(shape, generator=generator), [torch.randint(0, 3, shape, generator=generator)]


def test_networks_compute_in_bf16_and_losses_and_targets_in_fp32(seen: list[torch.dtype]) -> None:
    trainer = _trainer(Network(), autocast=partial(torch.autocast, "cpu", dtype=torch.bfloat16))
    losses = trainer.step(*_batch(), n_labeled=1)
    assert seen == 2 * [torch.bfloat16, torch.float32, torch.float32]
    assert all(torch.isfinite(torch.tensor(loss)) for loss in losses.values())
    assert all(p.grad.dtype == torch.float32 for p in trainer.student_3d.network.parameters())


class TwoPasses(Network):
    """Says something else in evaluation mode, so that teaching needs a pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.append(nn.Dropout3d(0.1))


@pytest.mark.parametrize("network_3d", [Network, TwoPasses])
@pytest.mark.parametrize("teacher", [OtherNetwork, MeanOfBoth, MovingAverage])
def test_every_trained_weight_gets_a_gradient_in_bf16(
    network_3d: type[Network], teacher: type[Teacher], seen: list[torch.dtype]
) -> None:
    trainer = _trainer(network_3d(), teacher=teacher, autocast=partial(torch.autocast, "cpu", dtype=torch.bfloat16))
    trainer.step(*_batch(), n_labeled=1)
    for student in (trainer.student_3d, trainer.student_2d):
        without = [
            name for name, p in student.network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
        ]
        assert [name for name in without if name != "layers.0.bias"] == []  # an instance norm takes it out again


def test_a_teaching_pass_leaves_no_cast_weights_for_a_training_pass() -> None:
    """torch up to 2.10 keeps them without a graph, and the training pass in the same context gets no gradient."""
    network = Network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pseudo_mask(network, _batch()[0], LabelSpace(num_channels=3))
        loss = network(_batch()[0])[0].float().square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_compiled_3d_network_learns_as_a_plain_one_does(seen: list[torch.dtype]) -> None:
    torch.manual_seed(0)
    networks = [Network(), Network()]
    networks[1].load_state_dict(networks[0].state_dict())
    losses = []
    for network in (networks[0], torch.compile(networks[1], backend="eager")):
        torch.manual_seed(1)
        trainer = _trainer(network)
        losses.append([trainer.step(*_batch(), n_labeled=1) for _ in range(2)])
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16)]
)
def test_auto_is_bf16_where_the_card_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert autocast_type("auto", CUDA) == expected
    assert autocast_type("fp16", CUDA) == torch.float16
    assert autocast_type("fp32", CUDA) is None


def test_auto_is_fp32_without_cuda() -> None:
    assert autocast_type("auto", CPU) is None
    assert autocast_type("auto", MPS) is None


def test_what_a_device_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    for wanted, device in (("fp16", CPU), ("fp16", MPS), ("bf16", MPS), ("bf16", CUDA)):
        with pytest.raises(MNError, match=f"precision is '{wanted}'.*'{device}'.*use auto or fp32"):
            autocast_type(wanted, device)


@pytest.fixture
def _torch_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def test_cpus_are_those_of_this_process_not_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert cpu_count() == 2


@pytest.mark.usefixtures("_torch_as_before")
def test_torch_takes_no_more_threads_than_this_process_has_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    torch.set_num_threads(4)
    prepare_torch()
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("_torch_as_before")
def test_denormal_numbers_are_flushed_to_zero() -> None:
    torch.set_flush_denormal(False)
    assert (torch.tensor([DENORMAL]) * 1.0).item() != 0
    prepare_torch()
    assert (torch.tensor([DENORMAL]) * 1.0).item() == 0


@pytest.mark.parametrize(
    ("version", "kept"),
    [("2.6.0", True), ("2.7.1+cu128", False), ("2.12.1+cu130", False), ("2.13.0", True), ("2.14.1+cu130", True)],
)
def test_no_compiled_step_of_another_precision_is_taken_from_disk(
    monkeypatch: pytest.MonkeyPatch, version: str, kept: bool
) -> None:
    """With torch 2.12.1 a layer compiled under bf16, then under fp16, gave bf16 both times."""
    monkeypatch.setattr(torch, "__version__", version)
    with config.patch(enable_autograd_cache=True):
        compile_anew()
        assert config.enable_autograd_cache == kept
