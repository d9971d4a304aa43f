from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from nnunet_mn.cotraining import CoTrainer, Student
from nnunet_mn.device import autocast_type
from nnunet_mn.errors import MNError
from nnunet_mn.losses import DeepSupervisionLoss, SoftTargetLoss
from nnunet_mn.targets import LabelSpace, SoftTarget

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


def _trainer(network_3d: nn.Module, **options: object) -> CoTrainer:
    def student(name: str, network: nn.Module) -> Student:
        loss = DeepSupervisionLoss(loss=Watched())
        return Student(name=name, network=network, optimizer=torch.optim.SGD(network.parameters(), 0.1), loss=loss)

    return CoTrainer(
        student_3d=student("3D", network_3d),
        student_2d=student("2D", Network()),
        labels=LabelSpace(num_channels=3),
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
