"""Checkpoints are data. tests/test_bad_input.py has the malicious ones, as `nnUNetv2_train` answers to them."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_mn.bridge.reading import check_pretrained, handed_over, read, read_by_environment
from nnunet_mn.errors import MNError


def write(path: Path, **content: Any) -> Path:
    torch.save({"trainer_name": "nnUNetTrainer", **content}, path)
    return path


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_])
def test_numbers_of_numpy_come_back_as_they_were(tmp_path: Path, kind: type[np.generic]) -> None:
    (value,) = read(write(tmp_path / "a.pth", logging=[kind(1)]))["logging"]  # type: ignore[call-arg]  # of numpy
    assert (type(value), value) == (kind, 1)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_written_with_either_numpy_can_be_read(tmp_path: Path, module: bytes) -> None:
    file = write(tmp_path / "a.pth", logging=[np.float32(0.5)])
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            content = old.read(name).replace(b"cnumpy._core.multiarray", b"c" + module)
            new.writestr(name, content.replace(b"cnumpy.core.multiarray", b"c" + module))
    assert read(tmp_path / "b.pth")["logging"] == [np.float32(0.5)]


def test_what_nnunet_does_not_write_is_refused_by_name_and_loaded_only_on_wish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.pth", init_args={"folder": tmp_path})
    with pytest.raises(MNError, match=r"a\.pth was not loaded: it holds 'pathlib\S+'.*_trust_checkpoints=true"):
        read_by_environment(file)
    monkeypatch.setenv("nnUNet_mn_trust_checkpoints", "true")
    assert read_by_environment(file)["init_args"] == {"folder": tmp_path}


def test_a_missing_and_an_unreadable_checkpoint_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MNError, match=r"there is no checkpoint .*a\.pth: .*train this fold again"):
        read_by_environment(tmp_path / "a.pth")
    with pytest.raises(MNError, match=r"cannot be read .*look at its rights and its disk"):
        read(tmp_path)  # a folder


def test_stock_gets_what_was_read_whatever_the_file_holds_by_then(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pth", current_epoch=3)
    content = read(file)
    file.write_bytes(b"changed in between")
    with handed_over(content):
        assert torch.load(file)["current_epoch"] == 3
    with pytest.raises(RuntimeError, match="hand them over another way"), handed_over(content):
        pass


@pytest.mark.parametrize("arguments", [["-p"], ["-pretrain"], ["-pr", "3"], ["-d", "4"], ["-pretrained_weights"], []])
def test_a_script_with_options_of_its_own_is_not_ended(arguments: list[str]) -> None:
    check_pretrained(arguments, trust=False)


@pytest.mark.parametrize("given", [["-pretrained_weights", "gone.pth"], ["-pretrained_weights=gone.pth"]])
def test_the_file_of_pretrained_weights_is_found_among_all_arguments(given: list[str]) -> None:
    with pytest.raises(MNError, match=r"no checkpoint gone\.pth"):
        check_pretrained(["4", "3d_fullres", "0", "-p", "nnUNetPlans", *given, "--npz"], trust=False)
