"""Memory and arithmetic of a step, against networks whose cost is known by hand."""

import pytest
import torch
from torch import nn

from nnunet_mn.bridge.planning.measure import measure_cost, slice_cost, teaching_bytes, weight_bytes


def test_a_chain_of_layers_keeps_what_its_backward_pass_needs() -> None:
    network = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Sigmoid())
    rows = torch.zeros(10, 8)
    cost = measure_cost(lambda: network(rows).sum(), network)
    assert cost.saved == 4 * (10 * 8 + 10 * 4)  # the input, and the sigmoid's output; the weights are not counted
    assert cost.forward == 2 * 10 * 8 * 4
    assert cost.backward == cost.forward  # the weights' gradient alone: the input needs none


def test_views_of_one_tensor_count_once() -> None:
    x = torch.ones(6, requires_grad=True)
    cost = measure_cost(lambda: (x.exp() * x.view(2, 3).flatten()).sum(), nn.Module())
    assert cost.saved == 4 * 6 * 2  # x and its exponential


def test_the_meta_device_gives_the_same_figures() -> None:
    costs = []
    for device in ("cpu", "meta"):
        network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4), nn.LeakyReLU(inplace=True)).to(device)
        volume = torch.zeros(2, 1, 8, 8, 8, device=device)
        costs.append(measure_cost(lambda n=network, v=volume: n(v).sum(), network))
    assert costs[0] == costs[1]


def test_measuring_leaves_no_gradient() -> None:
    network = nn.Linear(3, 1)
    measure_cost(lambda: network(torch.ones(1, 3)).sum(), network)
    assert network.weight.grad is None


def test_frozen_weights_have_neither_gradient_nor_state() -> None:
    network = nn.Linear(10, 10, bias=False)
    assert weight_bytes(network, optimizer_states=2) == 4 * 100 * 4
    network.requires_grad_(False)
    assert weight_bytes(network, optimizer_states=2) == 4 * 100


@pytest.mark.parametrize(
    ("layer", "operations"),  # a multiplication and an addition for each weight that meets a pixel
    [
        (nn.Conv2d(8, 4, 3, padding=1), 2 * 100 * 4 * 8 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 2 * 100 * 8 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=2), 2 * 25 * 8 * 4 * 9),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), 2 * 100 * 8 * 4 * 4),
        (nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), 2 * 100 * 8 * 4),
    ],
)
def test_a_convolution_counts_once_forward_and_twice_backward(layer: nn.Module, operations: int) -> None:
    maps = torch.zeros(1, 8, 10, 10, requires_grad=True)
    cost = measure_cost(lambda: layer(maps).sum(), layer)
    assert (cost.forward, cost.backward) == (operations, 2 * operations)


def test_autocast_keeps_norms_in_fp32_and_copies_weights() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.GroupNorm(4, 4), nn.Conv2d(4, 2, 1, bias=False))
    in_fp32, _ = slice_cost(network, (1, 10, 10), precision=None)
    cost, fixed = slice_cost(network, (1, 10, 10), precision=torch.bfloat16)
    # fp32: input, both of the norm's sides, mean and deviation. bf16: the norm's input is cast, its output, too.
    assert in_fp32.saved == 4 * (100 + 400 + 400 + 4 + 4)
    assert cost.saved == 2 * 100 + 4 * 400 + 2 * 400 + 4 * (4 + 4)
    assert fixed == 2 * (4 + 8)
    assert not torch.is_autocast_enabled("cuda")
    assert network[0].weight.grad is None


def test_weights_in_half_precision_take_half_of_the_bytes() -> None:
    network = nn.Linear(10, 10, bias=False).to(torch.bfloat16).requires_grad_(False)
    assert weight_bytes(network, optimizer_states=2) == 2 * 100


def test_a_pass_that_teaches_holds_a_layers_input_and_output() -> None:
    network = nn.Sequential(*(nn.Conv2d(n, m, 1, bias=False) for n, m in ((1, 8), (8, 16), (16, 1))))
    maps = 4 * 10 * 10 * (8 + 16)  # bytes of the two largest neighbors, in fp32
    assert teaching_bytes(network, (1, 10, 10), precision=None) == (maps, 0)
    half, copies = teaching_bytes(network, (1, 10, 10), precision=torch.bfloat16)
    assert maps / 2 <= half < maps
    assert copies >= 2 * 8 * 16  # of the largest layer's weights
