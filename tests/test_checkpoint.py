import errno
import io
import random
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from nnunet_mn.bridge.reading import mn_part, read
from nnunet_mn.bridge.training.checkpoint import (
    keep_earlier,
    random_state,
    remove_leftovers,
    restore_random_state,
    save,
)
from nnunet_mn.bridge.training.state import keep_own_options
from nnunet_mn.errors import MNError

STOCK = {"network_weights": {"w": torch.ones(2)}, "trainer_name": "nnUNetTrainerMN", "init_args": {"device": "cpu"}}


def load_mn(path: Path) -> dict[str, Any]:
    return mn_part(read(path), path)


def _write_stock(file: io.BytesIO) -> None:
    torch.save(STOCK, file)


def _stock_bytes() -> bytes:
    stock = io.BytesIO()
    _write_stock(stock)
    return stock.getvalue()


def test_what_earlier_trainings_left_is_kept_in_a_folder_of_each(tmp_path: Path) -> None:
    (tmp_path / "progress.png").write_bytes(b"picture")
    (tmp_path / "validation").mkdir()
    (tmp_path / "foreground_epoch_0125_iteration_0000.npz").write_bytes(b"locations")
    assert keep_earlier(tmp_path) is None
    (tmp_path / "checkpoint_latest.pth").write_bytes(b"epoch 900")
    assert keep_earlier(tmp_path) == tmp_path / "before_restart_1"
    for name in ("latest", "best", "final"):
        (tmp_path / f"checkpoint_{name}.pth").write_bytes(b"epoch 5")
    assert keep_earlier(tmp_path) == tmp_path / "before_restart_2"
    assert (tmp_path / "before_restart_1/checkpoint_latest.pth").read_bytes() == b"epoch 900"
    assert (tmp_path / "before_restart_1/validation").is_dir()
    assert (tmp_path / "before_restart_1/foreground_epoch_0125_iteration_0000.npz").is_file()
    assert len(list((tmp_path / "before_restart_2").iterdir())) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"progress.png", "before_restart_1", "before_restart_2"}


def test_a_checkpoint_is_stocks_with_one_more_key_and_a_built_in_trainer(tmp_path: Path) -> None:
    save(_write_stock, tmp_path / "checkpoint_latest.pth", mn={"iteration": 3})
    stored = torch.load(tmp_path / "checkpoint_latest.pth", weights_only=False)
    assert stored.keys() == STOCK.keys() | {"mn"}
    assert stored["trainer_name"] == "nnUNetTrainer"
    assert load_mn(tmp_path / "checkpoint_latest.pth") == {"iteration": 3}
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint_latest.pth"]


def test_a_trainer_with_a_network_of_its_own_keeps_its_name(tmp_path: Path) -> None:
    save(_write_stock, tmp_path / "checkpoint_latest.pth", mn={}, is_of_plans=False)
    stored = torch.load(tmp_path / "checkpoint_latest.pth", weights_only=False)
    assert stored["trainer_name"] == STOCK["trainer_name"] != "nnUNetTrainer"


@pytest.mark.parametrize("failing", ["torch.save", "pathlib.Path.replace", "os.fsync"])
def test_a_failed_writing_leaves_the_previous_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    save(_write_stock, path, mn={"iteration": 1})

    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    stock = _stock_bytes()
    monkeypatch.setattr(failing, full)
    with pytest.raises(MNError, match=r"checkpoint_latest\.pth could not be written.*No space left.*previous one"):
        save(lambda file: file.write(stock), path, mn={"iteration": 2})
    assert load_mn(path) == {"iteration": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint_latest.pth"]


def test_a_first_checkpoint_that_cannot_be_written_promises_no_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> NoReturn:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")

    stock = _stock_bytes()
    monkeypatch.setattr(torch, "save", fail)
    told = r"best\.pth could not be written \(the disk may be full; .*, and there is no earlier one: .*start again$"
    with pytest.raises(MNError, match=told):
        save(lambda file: file.write(stock), tmp_path / "checkpoint_best.pth", mn={"iteration": 2})
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writings_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "masks_of_1").mkdir()
    left = (".checkpoint_latest.pth.7.tmp", ".foreground_epoch_1.npz.a.tmp", "masks_of_1/.a.npz.b.tmp")
    kept = ("checkpoint_latest.pth", "masks_of_1/a.npz", "my.tmp")
    for name in (*left, *kept):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert not any((tmp_path / name).exists() for name in left)
    assert all((tmp_path / name).exists() for name in kept)


def test_a_checkpoint_of_another_trainer_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"trainer_name": "nnUNetTrainer"}, tmp_path / "checkpoint_latest.pth")
    with pytest.raises(MNError, match=r"checkpoint_latest\.pth holds no M&N state.*stock nnU-Net"):
        load_mn(tmp_path / "checkpoint_latest.pth")


def test_random_states_load_safely_and_restore_every_generator(tmp_path: Path) -> None:
    torch.save(random_state(), tmp_path / "state.pth")

    def draw() -> tuple[float, ...]:
        return (random.random(), float(np.random.standard_normal()), float(torch.rand(())))

    expected = draw()
    restore_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert draw() == expected


def test_an_optimizer_keeps_its_own_peak_rates_and_kernels_when_it_loads_a_state() -> None:
    """A checkpoint of an earlier version, or of a training that began on a CPU, has an unfused optimizer."""

    def optimizer(rates: tuple[float, float], *, fused: bool) -> torch.optim.AdamW:
        groups = [{"params": [torch.ones(3, requires_grad=True)], "lr": rate, "peak_lr": rate} for rate in rates]
        made = torch.optim.AdamW(groups, fused=fused)
        torch.stack([group["params"][0].square().sum() for group in made.param_groups]).sum().backward()
        return made

    earlier, now = optimizer((1.0, 2.0), fused=False), optimizer((3.0, 4.0), fused=True)
    earlier.step()
    stored = earlier.state_dict()
    keep_own_options(stored, now)
    now.load_state_dict(stored)
    assert [(group["peak_lr"], group["lr"], group["fused"]) for group in now.param_groups] == [
        (3.0, 1.0, True),
        (4.0, 2.0, True),
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))  # begins to scale
    scaler.step(now)
    assert now.state[now.param_groups[0]["params"][0]]["step"] == 2


def test_a_checkpoint_without_an_optimizer_leaves_an_optimizer_alone() -> None:
    optimizer = torch.optim.AdamW([torch.ones(1, requires_grad=True)], fused=True)
    before = deepcopy(optimizer.state_dict())
    keep_own_options(None, optimizer)
    assert optimizer.state_dict() == before
