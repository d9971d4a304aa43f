import os

import pytest
import torch

from nnunet_mn.device import cpu_count, prepare_torch

DENORMAL = 1e-40


@pytest.fixture(autouse=True)
def _as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def test_cpus_are_those_of_this_process_not_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert cpu_count() == 2


def test_torch_takes_no_more_threads_than_this_process_has_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    torch.set_num_threads(4)
    prepare_torch()
    assert torch.get_num_threads() == 1


def test_denormal_numbers_are_flushed_to_zero() -> None:
    torch.set_flush_denormal(False)
    assert (torch.tensor([DENORMAL]) * 1.0).item() != 0
    prepare_torch()
    assert (torch.tensor([DENORMAL]) * 1.0).item() == 0
