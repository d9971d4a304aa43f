import pytest
import torch
from torch import Tensor, nn

from nnunet_mn.slices import SliceWise, along_axis, every_nth_slice, slices_to_volume, volume_to_slices


class TinySliceNetwork(nn.Module):
    """Two convolutions; counts its forward passes, and the slices of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))
        self.most = self.calls = 0

    def forward(self, slices: Tensor) -> Tensor:
        self.calls += 1
        self.most = max(self.most, len(slices))
        return self.layers(slices)

    def input_pixels(self, height: int, width: int) -> int:
        return height * width


def test_slices_and_volume_are_inverse() -> None:
    volume = torch.randn(2, 3, 4, 5, 6)
    slices = volume_to_slices(volume)
    assert slices.shape == (8, 3, 5, 6)
    torch.testing.assert_close(slices[5], volume[1, :, 1])
    torch.testing.assert_close(slices_to_volume(slices, 2), volume)


@pytest.mark.parametrize(("step", "first", "left"), [(1, 0, 7), (2, 0, 4), (2, 1, 3), (9, 3, 1)])
def test_every_nth_slice_is_one_of_the_volumes(step: int, first: int, left: int) -> None:
    volume = torch.arange(7.0).reshape(1, 1, 7, 1, 1)
    assert every_nth_slice(volume, step, first).flatten().tolist() == list(range(first, 7, step))[:left]


@pytest.mark.parametrize("chunk", [1, 3, 10, 11, None])
def test_output_and_gradients_do_not_depend_on_the_slices_in_flight(chunk: int | None) -> None:
    torch.manual_seed(0)
    network = TinySliceNetwork().double()
    volume = torch.randn(2, 2, 5, 6, 7, dtype=torch.double)

    def run(slices_per_forward: int | None) -> list[Tensor]:
        network.zero_grad()
        (logits,) = SliceWise(network, slices_per_forward=slices_per_forward)(volume)
        assert logits.shape == (2, 3, 5, 6, 7)
        logits.square().mean().backward()
        return [logits.detach(), *(p.grad.clone() for p in network.parameters())]

    for ours, whole in zip(run(chunk), run(10), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-12)


def test_no_more_slices_than_told_are_in_flight() -> None:
    network = TinySliceNetwork()
    SliceWise(network, slices_per_forward=4)(torch.zeros(3, 2, 5, 6, 7))
    assert network.most == 4


@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 4, 5)), (1, (4, 3, 5)), (2, (5, 4, 3))])
def test_along_axis_puts_an_axis_first_and_is_its_own_inverse(axis: int, shape: tuple[int, ...]) -> None:
    volume = torch.randn(2, 1, 3, 4, 5)
    seen = along_axis(volume, axis)
    assert tuple(seen.shape[2:]) == shape
    assert torch.equal(along_axis(seen, axis), volume)


SAVED_OF_A_SLICE = 4 * (2 + 4) * 6 * 7  # bytes of the input and of tanh's output


def _card_with(monkeypatch: pytest.MonkeyPatch, slices: float) -> None:
    """A card with twice the free memory that some slices of 6x7 need."""
    monkeypatch.setattr("nnunet_mn.slices.free_bytes", lambda _: int(2 * slices * SAVED_OF_A_SLICE))


@pytest.mark.parametrize(("fitting", "most"), [(0.5, 1), (4, 4), (7.9, 5), (10, 10), (1000, 10)])
def test_as_many_slices_are_in_flight_as_fit_into_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, fitting: float, most: int
) -> None:
    network = TinySliceNetwork()
    slice_wise, volume = SliceWise(network), torch.randn(2, 2, 5, 6, 7)
    _card_with(monkeypatch, fitting)
    slice_wise(volume)  # measures one and two slices
    network.most = network.calls = 0
    slice_wise(volume)[0].mean().backward()
    assert network.most == most  # in equal chunks: 10 slices are 5 and 5, not 7 and 3
    assert (network.calls == 1) == (fitting >= 10)  # nothing is computed twice if all fit


@pytest.mark.parametrize("learns", [True, False])
def test_slices_in_flight_follow_the_memory_that_is_free_at_each_pass(
    monkeypatch: pytest.MonkeyPatch, learns: bool
) -> None:
    """A validation finds a nearly empty card. A teacher's pass has the 3D network's activations beside it."""
    network = TinySliceNetwork()
    slice_wise, volume = SliceWise(network), torch.randn(2, 2, 5, 6, 7)
    for fitting, most in ((1000, 10), (4, 4), (7.9, 5)):
        _card_with(monkeypatch, fitting)
        slice_wise(volume)  # measures one and two slices
        network.most = 0
        with torch.set_grad_enabled(learns):
            slice_wise(volume)
        assert network.most == most


@pytest.mark.parametrize("trained", [True, False])
def test_measuring_the_memory_of_a_slice_changes_neither_statistics_nor_random_numbers(
    monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    network = TinySliceNetwork()
    network.layers.extend([nn.BatchNorm2d(3), nn.Dropout(0.5)])
    network.requires_grad_(trained)
    whole, volume = SliceWise(network, slices_per_forward=10), torch.randn(2, 2, 5, 6, 7)
    torch.manual_seed(0)
    (expected,) = whole(volume)
    statistics = network.layers[3].running_mean.clone()
    network.layers[3].reset_running_stats()
    _card_with(monkeypatch, 1000)
    torch.manual_seed(0)
    with torch.inference_mode(not trained):
        (logits,) = SliceWise(network)(volume)
    assert torch.equal(logits, expected)
    assert torch.equal(network.layers[3].running_mean, statistics)
    assert network.training


def test_the_memory_of_a_slice_is_measured_with_weights_that_were_moved_in_inference_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """nnU-Net's predictor moves a network to the card in inference mode. Autograd refuses such weights."""
    network, volume = TinySliceNetwork().requires_grad_(False), torch.randn(2, 2, 5, 6, 7)
    slice_wise = SliceWise(network)
    _card_with(monkeypatch, 4)
    with torch.inference_mode():
        slice_wise.double().float()  # as a move does, it puts new tensors in place of the old ones
        slice_wise(volume)
        network.most = 0
        slice_wise(volume)
    assert next(network.parameters()).is_inference()
    assert network.most == 4
