"""Memory and arithmetic of a step, against networks whose cost is known by hand."""

import torch
from torch import nn

from nnunet_mn.bridge.planning.measure import measure_cost, weight_bytes


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
