"""What `nnUNetv2_train` answers to something bad: one sentence, no traceback, and nothing changed on disk."""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.slow

Site = Any  # of training_site.py


def volume(seed: int = 0, shape: tuple[int, ...] = (24, 20, 22)) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32)


# ---- images --------------------------------------------------------------------------------------


def truncated(site: Site) -> None:
    site.write(volume())
    file = site.unlabeled_image()
    file.write_bytes(file.read_bytes()[:-2000])


def with_voxel(value: float) -> Callable[[Site], None]:
    def spoil(site: Site) -> None:
        array = volume()
        array[3, 4, 5] = value
        site.write(array)

    return spoil


def with_header(offset: int, content: bytes) -> Callable[[Site], None]:
    """A NIfTI file with other bytes in its header."""

    def spoil(site: Site) -> None:
        site.write(volume())
        file = site.unlabeled_image()
        data = bytearray(gzip.decompress(file.read_bytes()))
        data[offset : offset + len(content)] = content
        file.write_bytes(gzip.compress(bytes(data)))

    return spoil


def label_among_images(site: Site) -> None:
    shutil.copy(next((site.raw / "labelsTr").iterdir()), site.unlabeled_image("label.nii.gz"))


def copy_of_val(site: Site) -> None:
    shutil.copy(site.raw / "imagesTr" / "val_00_0000.nii.gz", site.unlabeled_image("another_0000.nii.gz"))


def only_second_channel(site: Site) -> None:
    site.write(volume(), "bad_0001.nii.gz")


def surplus_channel(site: Site) -> None:
    site.write(volume(), "bad_0000.nii.gz")
    site.write(volume(1), "bad_0001.nii.gz")


def link_without_target(site: Site) -> None:
    site.unlabeled_image().symlink_to("/mnt/archive/bad_0000.nii.gz")


def folder_linked_to_nothing(site: Site) -> None:
    (site.raw / "imagesUn").symlink_to("/mnt/archive")


def only_folders_beside_test_images(site: Site) -> None:
    site.split(site.entry(unlabeled=[]))
    (site.raw / "imagesTs").mkdir()
    shutil.copy(site.raw / "imagesTr" / "unlabeled_00_0000.nii.gz", site.raw / "imagesTs" / "t_0000.nii.gz")
    site.unlabeled_image("patient_1").mkdir()


def name_not_utf_8(site: Site) -> None:
    site.write(volume())
    site.unlabeled_image().rename(site.unlabeled_image(os.fsdecode(b"M\xfcller_0000.nii.gz")))


def huge_voxels(site: Site) -> None:
    array = volume()
    array[3, 4, 5:8] = 3e38
    site.write(array)


def colors(site: Site) -> None:
    array = np.random.default_rng(0).integers(0, 255, (24, 20, 22, 3), dtype=np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=True), str(site.unlabeled_image()))


IMAGES: dict[str, tuple[Callable[[Site], Any], str]] = {
    "truncated": (truncated, "bad_0000.nii.gz cannot be read"),
    "empty": (lambda site: site.unlabeled_image().touch(), "bad_0000.nii.gz cannot be read"),
    "text": (lambda site: site.unlabeled_image().write_text("not an image"), "bad_0000.nii.gz cannot be read"),
    "NaN": (with_voxel(np.nan), "bad_0000.nii.gz has 1 voxels that are NaN or infinite"),
    "infinite": (with_voxel(np.inf), "bad_0000.nii.gz has 1 voxels that are NaN or infinite"),
    "constant": (lambda site: site.write(np.ones((8, 8, 8), np.float32)), "bad_0000.nii.gz has the same value, 1, in"),
    "2D": (lambda site: site.write(volume(shape=(24, 20))), "bad_0000.nii.gz .*M&N needs 3D volumes"),
    "one slice": (lambda site: site.write(volume(shape=(1, 20, 22))), "shape .1, 20, 22., but M&N needs 3D volumes"),
    "zero-size axis": (with_header(42, b"\0\0"), "bad_0000.nii.gz cannot be read"),
    "four-dimensional": (
        lambda site: SimpleITK.WriteImage(
            SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(volume(s)) for s in (0, 1)]), str(site.unlabeled_image())
        ),
        "bad_0000.nii.gz has 2 channel.s., but dataset.json names 1",
    ),
    "only second channel": (only_second_channel, "case 'bad' in .* lacks bad_0000.nii.gz and has in surplus bad_0001"),
    "surplus channel": (surplus_channel, "case 'bad' in .* has in surplus bad_0001.nii.gz"),
    "label in imagesUn": (label_among_images, "label.nii.gz, but image files are called NAME_0000.nii.gz"),
    "name ends in _seg": (lambda site: site.write(volume(), "a_seg_0000.nii.gz"), "names a case 'a_seg'"),
    "bad name with spaces and umlauts": (
        lambda site: site.unlabeled_image("Fräulein Müller 1_0000.nii.gz").write_text(""),
        "Fräulein Müller 1_0000.nii.gz cannot be read",
    ),
    "link without a target": (link_without_target, "bad_0000.nii.gz is a link to /mnt/archive/bad_0000.nii.gz, which"),
    "imagesUn linked to nothing": (
        folder_linked_to_nothing,
        "imagesUn is a link to /mnt/archive, which does not exist",
    ),
    "only folders in imagesUn": (only_folders_beside_test_images, "imagesUn is not empty, but holds none .*patient_1"),
    "name not UTF-8": (name_not_utf_8, r"the name of .*M\\xfcller_0000.nii.gz is not UTF-8"),
    "huge voxels": (huge_voxels, "bad_0000.nii.gz .* after normalization .its voxels reach from .* to 3e.38.; clip"),
    "colors": (colors, "bad_0000.nii.gz has 3 values per voxel, as a color image"),
    "spacing in µm": (lambda site: site.write(volume(), Spacing=(1000.0,) * 3), "spacing 1000 mm against 1 mm of the"),
    "spacing in m": (
        lambda site: site.write(volume(), Spacing=(0.001,) * 3),
        "would make 0 voxels a side: check the u",
    ),
    "copy of a val image": (copy_of_val, "unlabeled cases are copies of validation cases: 'another' .of 'val_00'."),
    "called like a val image": (lambda site: site.write(volume(), "val_00_0000.nii.gz"), "val_00.* validation"),
    "called like a labeled image": (lambda site: site.write(volume(), "labeled_00_0000.nii.gz"), "labeled_00"),
    "duplicate over two sources": (lambda site: site.write(volume(), "unlabeled_00_0000.nii.gz"), "unlabeled_00"),
}


# ---- channels that do not fit each other, in a dataset of two ------------------------------------


def two(second: np.ndarray, **geometry: Any) -> Callable[[Site], None]:
    def spoil(site: Site) -> None:
        site.write(volume(), "bad_0000.nii.gz")
        site.write(second, "bad_0001.nii.gz", **geometry)

    return spoil


CHANNELS: dict[str, tuple[Callable[[Site], Any], str]] = {
    "spacing": (two(volume(1), Spacing=(1.0, 1.0, 3.0)), "the channels of one case differ in geometry: .*bad_0001"),
    "shape": (two(volume(1, (24, 20, 20))), "the channels of one case differ in geometry: .*bad_0001"),
    "direction": (two(volume(1), Direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)), "their directions differ; align them"),
    "missing": (lambda site: site.write(volume(), "bad_0000.nii.gz"), "case 'bad' in .* lacks bad_0001.nii.gz"),
}


# ---- splits_final.json ---------------------------------------------------------------------------

SPLITS: dict[str, tuple[Callable[[Site], Any], str]] = {
    "no JSON": (lambda site: site.split("[{"), "splits_final.json cannot be read as JSON"),
    "no fold": (lambda site: site.split([]), "splits_final.json must hold a list of folds"),
    "no list": (lambda site: site.split({"train": []}), "splits_final.json must hold a list of folds"),
    "no val": (lambda site: site.split(site.entry(val=None)), "must be a dictionary with the lists 'train' and 'val'"),
    "string for a list": (lambda site: site.split(site.entry(unlabeled="unlabeled_00")), "'unlabeled' in fold 0 .*li"),
    "numbers for names": (lambda site: site.split(site.entry(unlabeled=[1, 2])), "'unlabeled' in fold 0 .*case names"),
    "labeled and unlabeled": (
        lambda site: site.split(site.entry(unlabeled=["labeled_00"])), "lists labeled_00 under 'unlabeled' and 'train'",
    ),
    "val and unlabeled": (
        lambda site: site.split(site.entry(unlabeled=["val_00"])), "lists val_00 under 'unlabeled' and 'val'",
    ),
    "unlabeled case without image": (lambda site: site.split(site.entry(unlabeled=["nobody"])), "nobody"),
    "path in a name": (lambda site: site.split(site.entry(unlabeled=["../x"])), "names a case '../x', which is no"),
    "labeled case that was not preprocessed": (
        lambda site: site.split(site.entry(train=["labeled_00", "nobody"])), "split names nobody, of which .* no prep",
    ),
    "val case that was not preprocessed": (lambda site: site.split(site.entry(val=["nobody"])), "split names nobody"),
    "nothing labeled": (lambda site: site.split(site.entry(train=[])), "fold 0 has no labeled case to train on"),
    "nothing unlabeled": (lambda site: site.split(site.entry(unlabeled=[])), "fold 0 has no unlabeled case"),
}  # fmt: skip


# ---- plans and settings --------------------------------------------------------------------------


def other_configuration(name: str) -> Callable[[Site], None]:
    return lambda site: setattr(site, "configuration", name)


def pickle_bomb(site: Site) -> None:
    """A model folder whose weights run a command when they are unpickled."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {site.root / 'exploded'}",)

    folder = site.root / "model"
    folder.mkdir()
    config = {"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"]}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    site.set(backbone=folder, adaptation="auto")


def model_folder(**files: str) -> Callable[[Site], None]:
    """A folder of a model as backbone, with these files beside a good configuration."""

    def spoil(site: Site) -> None:
        folder = site.root / "model"
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "segformer"}')
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(content)
        site.set(backbone=folder)

    return spoil


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SHARDS = {"config__json": "{}", "pytorch_model__bin__index__json": '{"weight_map": {"a": "pytorch_model-00001.bin"}}'}


def sharded(site: Site, **files: str) -> None:
    model_folder(**(SHARDS | files))(site)
    (site.root / "model" / "model.safetensors").unlink()


def without_gpu(site: Site) -> None:
    site.arguments += ["-device", "cuda"]
    site.environment["CUDA_VISIBLE_DEVICES"] = ""


SETTINGS_AND_PLANS: dict[str, tuple[Callable[[Site], Any], str]] = {
    "unknown field": (lambda site: site.set(epoch=3), "'epoch' to '3', but M&N has no such field"),
    "wrong type": (lambda site: site.set(epochs="many"), "sets 'epochs' to 'many'; allowed is an integer"),
    "out of range": (lambda site: site.set(supervised_fraction=1.5), "sets 'supervised_fraction' to 1.5"),
    "negative epochs": (lambda site: site.set(epochs=-1), "sets 'epochs' to -1; allowed is an integer of at least 1"),
    "unknown source": (lambda site: site.set(unlabeled_sources="imagesX"), "sets 'unlabeled_sources' to"),
    "unknown choice": (lambda site: site.set(preset="mine"), "sets 'preset' to 'mine'; allowed is one of"),
    "results in a file": (
        lambda site: (site.root / "nnUNet_results").touch(), r"nnUNet_results.* cannot be used \(Not a directory\)",
    ),
    "no GPU": (without_gpu, "-device is 'cuda' .* but torch finds no such GPU: use -device cpu"),
    "fp16 without CUDA": (lambda site: site.set(precision="fp16"), "precision is 'fp16', which needs a CUDA card"),
    "backbone that nobody has": (
        lambda site: site.set(backbone="nobody/has-this"), "The weights of 'nobody/has-this' are not on this machine",
    ),
    "folder without a model": (lambda site: site.set(backbone=site.raw), "holds no model that save_pretrained wrote"),
    "empty backbone": (lambda site: site.set(backbone=""), "sets 'backbone' to ''; allowed is a name"),
    "pointer of git-lfs": (
        model_folder(model__safetensors=POINTER), "model.safetensors is a pointer of git-lfs.* run `git lfs pull` in",
    ),
    "pointer of git-lfs for a shard": (
        lambda site: sharded(site, **{"pytorch_model-00001__bin": POINTER}), "model-00001.bin is a pointer of git-lfs",
    ),
    "missing shard": (sharded, "index of shards in .* names pytorch_model-00001.bin, which is missing"),
    "broken index of shards": (
        lambda site: sharded(site, pytorch_model__bin__index__json="{"), "bin.index.json cannot be read as JSON",
    ),
    "broken preprocessor": (
        model_folder(preprocessor_config__json="{"), "preprocessor_config.json cannot be read as JSON",
    ),
    "broken configuration": (model_folder(config__json="{"), "model/config.json cannot be read as JSON"),
    "folder of timm": (
        model_folder(config__json='{"architecture": "resnet18"}'), "no class in transformers; use timm:resnet18@/",
    ),
    "model without feature maps": (model_folder(config__json='{"model_type": "bert"}'), "'bert' .*use one such as Seg"),
    "hub of timm": (lambda site: site.set(backbone="timm:hf-hub:owner/model"), "use timm:NAME@FILE"),
    "pickle bomb": (pickle_bomb, "pytorch_model.bin"),
    "trust in plans": (
        lambda site: site.plans(mn={"trust_checkpoints": True}),
        "'mn' in the plans' .* sets 'trust_checkpoints', but only the environment .* may do that",
    ),
    "damaged pretrained weights": (
        lambda site: site.arguments.extend(["-pretrained_weights", str(site.raw / "dataset.json")]),
        "dataset.json cannot be read .*: give another file to -pretrained_weights",
    ),
    "field in plans": (lambda site: site.plans(mn={"lr2d": 1}), "'mn' in the plans' configuration .* 'lr2d' to 1"),
    "type in plans": (lambda site: site.plans(mn={"lr_2d": "fast"}), "sets 'lr_2d' to 'fast'"),
    "settings in plans that are no dictionary": (lambda site: site.plans(mn=["epochs"]), "'mn' in .* a dictionary"),
    "batch of one": (
        lambda site: site.plans(batch_size=1, mn={"batch": "replace"}),
        "plans a batch of 1, but M&N needs room for a labeled and",
    ),
    "batch of one, rounded down": (
        lambda site: site.plans(batch_size=1, mn={"rounding": "floor"}),
        "a batch of 1; with nnUNet_mn_rounding=floor no unlabeled sample would ever be drawn",
    ),
    "batch in words": (lambda site: site.plans(batch_size="two"), "batch_size in .* is 'two'"),
    "patch that the network cannot halve": (lambda site: site.plans(patch_size=[17, 16, 16]), "must be multiples of"),
    "patch of words": (lambda site: site.plans(patch_size="all"), "patch_size in .* is 'all'"),
    "missing configuration": (other_configuration("3d_nothing"), "no configuration '3d_nothing'; they have: 2d"),
    "2d": (other_configuration("2d"), "'2d' does not allow: use 3d_fullres or 3d_lowres"),
    "inherits from nothing": (lambda site: site.plans(inherits_from="nothing"), "cannot be read .*nothing"),
}  # fmt: skip


# ---- preprocessed files --------------------------------------------------------------------------


def overwritten(pattern: str, content: bytes) -> Callable[[Site], None]:
    def spoil(site: Site) -> None:
        files = sorted(site.cases.glob(pattern))
        assert files
        for file in files:
            file.write_bytes(content)

    return spoil


def flat(name: str, value: float) -> Callable[[Site], None]:
    """A preprocessed case as a huge voxel of its raw image makes it."""

    def spoil(site: Site) -> None:
        file = site.cases / f"{name}.b2nd"
        volume = np.full(blosc2.open(str(file)).shape, value, np.float32)
        blosc2.asarray(volume, urlpath=str(file), mode="w")

    return spoil


def without_raw_data(site: Site) -> None:
    shutil.rmtree(site.raw)


PREPROCESSED: dict[str, tuple[Callable[[Site], Any], str]] = {
    "image": (overwritten("labeled_*[0-9].b2nd", b"x" * 500), "'labeled_0[0-2]' in .* run nnUNetv2_preprocess"),
    "empty image": (overwritten("labeled_*[0-9].b2nd", b""), "'labeled_0[0-2]' in .* run nnUNetv2_preprocess"),
    "mask": (overwritten("labeled_*_seg.b2nd", b"x"), "'labeled_0[0-2]' in .* run nnUNetv2_preprocess"),
    "properties": (overwritten("labeled_*.pkl", b"\x80\x04no"), "'labeled_0[0-2]' in .* run nnUNetv2_preprocess"),
    "empty properties": (overwritten("labeled_*.pkl", b""), "'labeled_0[0-2]' in .* run nnUNetv2_preprocess"),
    "val image": (overwritten("val_*[0-9].b2nd", b"x" * 500), "'val_00' in .* cannot be read .*nnUNetv2_preprocess"),
    "collapsed": (flat("labeled_00", 0.0), "'labeled_00' has the same value in nearly all voxels; look for huge"),
    "NaN": (flat("labeled_01", np.nan), "'labeled_01' holds voxels that are NaN or infinite; look for huge"),
    "collapsed val case": (flat("val_00", 0.0), "'val_00' has the same value in nearly all voxels; look for huge"),
    "strange file": (lambda site: (site.cases / "notes.txt").touch(), "not hold preprocessed cases and nothing"),
    "no folder": (lambda site: shutil.rmtree(site.cases), "does not hold preprocessed cases and nothing else"),
    "no raw data": (without_raw_data, "their raw images are not on this machine: run `nnunet-mn preprocess`"),
}  # fmt: skip


# ---- checkpoints ---------------------------------------------------------------------------------


def checkpoint(change: Callable[[dict[str, Any]], Any] | None = None, **settings: Any) -> Callable[[Site], None]:
    """Continue from a checkpoint that was changed, or with other settings."""

    def spoil(site: Site) -> None:
        site.fold.mkdir(parents=True)
        content = torch.load(site.root.parent / "checkpoint.pth", weights_only=False)
        if change is not None:
            change(content)
        torch.save(content, site.fold / "checkpoint_latest.pth")
        site.arguments.append("--c")
        site.set(**settings)

    return spoil


def checkpoint_bytes(make: Callable[[bytes], bytes]) -> Callable[[Site], None]:
    def spoil(site: Site) -> None:
        site.fold.mkdir(parents=True)
        whole = (site.root.parent / "checkpoint.pth").read_bytes()
        (site.fold / "checkpoint_latest.pth").write_bytes(make(whole))
        site.arguments.append("--c")

    return spoil


def other_classes(content: dict[str, Any]) -> None:
    weights = content["network_weights"]
    for name in [name for name in weights if "seg_layers" in name]:
        weights[name] = torch.cat([weights[name], weights[name][:1]])


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def payload(site: Site, kind: str = "system") -> Payload:
    """Something that creates a file when it is unpickled."""
    command = f"touch {site.root / 'exploded'}"
    if kind == "system":
        return Payload(os.system, (command,))
    if kind == "eval":
        return Payload(eval, (f"__import__('os').system({command!r})",))
    nested = io.BytesIO()
    torch.save(payload(site), nested)
    return Payload(torch.storage._load_from_bytes, (nested.getvalue(),))


def malicious(place: str, kind: str = "system", *, how: str = "--c") -> Callable[[Site], None]:
    """A checkpoint with a payload under a key of one of its parts, or beside them."""

    def spoil(site: Site) -> None:
        checkpoint(lambda content: content.setdefault(place, {}).update(x=payload(site, kind)))(site)
        latest = site.fold / "checkpoint_latest.pth"
        if how == "--val":
            latest.rename(site.fold / "checkpoint_final.pth")
            site.arguments[:] = ["--val"]
        if how == "-pretrained_weights":
            site.arguments[:] = [how, str(latest)]

    return spoil


CHECKPOINTS: dict[str, tuple[Callable[[Site], Any], str]] = {
    "truncated": (checkpoint_bytes(lambda whole: whole[:-5000]), "checkpoint_latest.pth cannot be read"),
    "empty": (checkpoint_bytes(lambda _: b""), "checkpoint_latest.pth cannot be read"),
    "text": (checkpoint_bytes(lambda _: b"no checkpoint at all"), "checkpoint_latest.pth cannot be read"),
    "of another program": (checkpoint_bytes(lambda _: pickle.dumps([1, 2])), "checkpoint_latest.pth"),
    "of the stock trainer": (checkpoint(lambda c: c.pop("mn")), "holds no M&N state"),
    "of another dataset": (checkpoint(lambda c: c["mn"].update(dataset="Dataset999_X")), "is of Dataset999_X, not of"),
    "of more classes": (
        checkpoint(other_classes),
        "do not fit the network: .*seg_layers.* trained with other",
    ),
    "of another backbone": (
        checkpoint(backbone="segformer-b0"),
        "backbone is 'segformer-b0' but the checkpoint was .* not on this mach",
    ),
    "of another backbone, without a hash of its weights": (
        checkpoint(lambda c: c["mn"].pop("pretrained_hash"), backbone="timm:tf_efficientnet_lite0"),
        "backbone is 'timm:tf_efficientnet_lite0' but the checkpoint was",
    ),
    "of another backbone that is here": (
        checkpoint(lambda c: c["mn"].update(config=c["mn"]["config"] | {"backbone": "x"}, pretrained_hash="0")),
        "backbone is 'efficientnet-lite0' but the checkpoint was trained with 'x'; put that back",
    ),
    "of another adaptation": (checkpoint(adaptation="full"), "adaptation is 'full' but the checkpoint was"),
    "of another preset": (checkpoint(preset="paper"), "preset is 'paper' but the checkpoint was"),
    "of another batch": (
        checkpoint(lambda c: c["mn"].update(batch_size=7)),
        "batch size is 2 but the checkpoint was",
    ),
    "with a command": (malicious("extra"), "pth was not loaded: it holds '(posix|os).system'.*trust_checkpoints=true"),
    "with eval": (malicious("extra", "eval"), "pth was not loaded: it holds '(\\w+\\.)?eval'"),
    "with a checkpoint inside": (malicious("extra", "nested"), "it holds 'torch.storage._load_from_bytes'"),
    "with a command in the optimizer": (malicious("optimizer_state"), "pth was not loaded: it holds"),
    "with a command in the log": (malicious("logging"), "pth was not loaded: it holds"),
    "with a command in the arguments": (malicious("init_args"), "pth was not loaded: it holds"),
    "with a command, for validation": (malicious("logging", how="--val"), "final.pth was not loaded: it holds"),
    "with a command, as pretrained weights": (
        malicious("logging", how="-pretrained_weights"),
        "latest.pth was not loaded: it holds",
    ),
    "with other frozen weights": (
        checkpoint(lambda c: c["mn"].update(frozen_hash="0")),
        "frozen weights of",
    ),
}


# ---- how they are run ----------------------------------------------------------------------------


def contents(*folders: Path) -> dict[str, str]:
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def check(site: Site, train: Callable[[Site], tuple[int, str]], sentence: str) -> None:
    before = contents(site.raw, site.preprocessed, site.fold)
    code, output = train(site)
    last = output.strip().splitlines()[-1]
    assert code not in (0, None), output[-2000:]
    assert last.startswith("ERROR: "), output[-3000:]
    assert re.search(sentence, last), last
    assert "Traceback" not in output, output[-3000:]
    after = contents(site.raw, site.preprocessed, site.fold)
    assert {file: after.get(file) for file in before} == before
    new = [Path(file) for file in after.keys() - before.keys()]
    finished = [file for file in new if f"{site.cases.name}_unlabeled" in str(file)]  # good cases, which are kept
    assert not [file for file in new if file not in finished and not file.name.startswith(("training_log_", "debug"))]
    assert not [file for file in finished if "staging" in str(file)]
    assert not (site.root / "exploded").exists()


@pytest.mark.parametrize("name", IMAGES)
def test_bad_images(name: str, site_of: Callable[..., Site], train: Callable[[Site], tuple[int, str]]) -> None:
    spoil, sentence = IMAGES[name]
    spoil(site := site_of())
    check(site, train, sentence)


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_that_do_not_fit(
    name: str, site_of: Callable[..., Site], train: Callable[[Site], tuple[int, str]]
) -> None:
    spoil, sentence = CHANNELS[name]
    spoil(site := site_of(channels=2))
    check(site, train, sentence)


@pytest.mark.parametrize("name", SPLITS)
def test_bad_split_files(name: str, site_of: Callable[..., Site], train: Callable[[Site], tuple[int, str]]) -> None:
    spoil, sentence = SPLITS[name]
    spoil(site := site_of())
    check(site, train, sentence)


@pytest.mark.parametrize("name", SETTINGS_AND_PLANS)
def test_bad_settings_and_plans(
    name: str, site_of: Callable[..., Site], train: Callable[[Site], tuple[int, str]]
) -> None:
    spoil, sentence = SETTINGS_AND_PLANS[name]
    spoil(site := site_of())
    check(site, train, sentence)


@pytest.mark.parametrize("name", PREPROCESSED)
def test_damaged_preprocessed_files(
    name: str, site_of: Callable[..., Site], train: Callable[[Site], tuple[int, str]]
) -> None:
    spoil, sentence = PREPROCESSED[name]
    spoil(site := site_of())
    check(site, train, sentence)


@pytest.fixture(scope="module")
def trained(planned_dataset: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return []


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_that_cannot_be_continued(
    name: str, site_of: Callable[..., Site], train: Callable[[Site], tuple[int, str]], trained: list[Path]
) -> None:
    if not trained:
        good = site_of()
        good.validate = False
        code, output = train(good)
        trained.append(good.fold / "checkpoint_best.pth")
        assert trained[0].is_file(), output[-3000:]
        assert code == 0, output[-3000:]
    spoil, sentence = CHECKPOINTS[name]
    site = site_of()
    shutil.copy(trained[0], site.root.parent / "checkpoint.pth")
    spoil(site)
    check(site, train, sentence)
