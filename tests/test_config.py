import json
from typing import Any

import pytest

from nnunet_mn.bridge.training.state import changed_settings, changed_state_fields
from nnunet_mn.config import PRESETS, Layer, MNConfig, environment_layer, resolve
from nnunet_mn.errors import MNError


def test_later_layers_win_over_earlier_ones_and_over_defaults() -> None:
    config = resolve(Layer("variant", {"epochs": 5, "seed": 1}), Layer("plans", {"epochs": 7}))
    assert (config.epochs, config.seed, config.rounding) == (7, 1, "auto")


def test_a_preset_changes_defaults_but_not_what_the_user_sets() -> None:
    config = resolve(Layer("environment", {"preset": "paper", "lr_3d": "0.25"}))
    assert (config.rounding, config.slice_step, config.lr_3d) == ("floor", 1, 0.25)


def test_nnunets_optimizer_keeps_its_own_rate_under_the_papers_preset() -> None:
    assert resolve(Layer("trainer", {"optimizer_3d": "sgd"}), Layer("shell", {"preset": "paper"})).lr_3d is None
    assert resolve(Layer("shell", {"preset": "paper", "optimizer_3d": "sgd", "lr_3d": "0.1"})).lr_3d == 0.1


def test_whole_numbers_and_blanks_after_a_comma_are_accepted() -> None:
    assert MNConfig(lr_2d=1, dropout_2d=0).lr_2d == 1
    config = resolve(Layer("shell", {"unlabeled_sources": "split, imagesUn"}))
    assert config.unlabeled_sources == ("split", "imagesUn")


def test_a_preset_is_resolved_to_explicit_settings() -> None:
    stored = resolve(Layer("environment", {"preset": "paper"})).to_dict()
    assert {name: stored[name] for name in PRESETS["paper"]} == PRESETS["paper"]
    assert (stored["schedule"], stored["loss"], stored["dropout_2d"]) == ("cosine", "paper", 0.1)


def test_environment_variables_are_read_by_prefix_and_converted() -> None:
    variables = {
        "nnUNet_mn_epochs": "3",
        "nnUNet_mn_lr_2d": "5e-4",
        "nnUNet_mn_unlabeled_sources": "split,imagesTs",
        "nnUNet_mn_foreground_crops": "false",
        "nnUNet_mn_seed": "None",
        "nnUNet_results": "/somewhere",
    }
    config = resolve(Layer("plans", {"seed": 3}), environment_layer(variables))
    assert config == MNConfig(
        epochs=3, lr_2d=5e-4, unlabeled_sources=("split", "imagesTs"), foreground_crops=False, seed=None
    )


@pytest.mark.parametrize(
    "name",
    [
        "nnunet_mn_epochs",
        "NNUNET_MN_EPOCHS",
        "nnUnet_mn_Epochs",
        "nnUNet_mn_EPOCHS",
        "nnUNetMN_epochs",
        "nnUNet_mnepochs",
        "nnUNet_mn-epochs",
    ],
)
def test_a_variable_in_other_letters_is_refused_and_its_right_name_told(name: str) -> None:
    with pytest.raises(MNError, match=f"sets {name}, which M&N does not read: name it nnUNet_mn_epochs"):
        environment_layer({name: "3"})


def test_variables_of_others_are_left_alone() -> None:
    assert environment_layer({"NNUNETMN_CACHE": "x", "nnUNet_raw": "y", "nnunet_mnist_epochs": "3"}).values == {}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("NNUNET_MN_EPOCH", "sets 'EPOCH' to '1', but M&N has no such field; did you mean 'epochs'"),
        ("nnUnet_mn_seeds", "sets 'seeds' to '1', but M&N has no such field; did you mean 'seed'"),
        ("nnUNet_mn_Copy_Paste", "sets 'Copy_Paste' to '1', but M&N no longer has it: boxes"),
        ("NNUNET_MN_LORA_ALPHA", "sets 'LORA_ALPHA' to '1', but M&N no longer has it: it equals lora_rank"),
    ],
)
def test_a_misspelled_variable_in_other_letters_is_refused(name: str, told: str) -> None:
    with pytest.raises(MNError, match=told):
        resolve(environment_layer({name: "1"}))


def test_a_configuration_survives_json() -> None:
    config = MNConfig(epochs=3, unlabeled_sources=("split",), seed=0)
    assert resolve(Layer("file", json.loads(json.dumps(config.to_dict())))) == config


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("epoch", 3, "has no such field; did you mean 'epochs'?"),
        ("slice_setp", 3, "has no such field; did you mean 'slice_step'?"),
        ("colour", 3, "has no such field; allowed: backbone, "),
        ("join", "maybe", "allowed is true or false"),
        ("epochs", 0, "an integer of at least 1"),
        ("epochs", "many", "an integer of at least 1"),
        ("epochs", 2.5, "an integer of at least 1"),
        ("epochs", True, "an integer of at least 1"),
        ("rounding", "ceil", "one of auto, diffusion, floor"),
        ("adaptation", None, "one of auto, lora, full, frozen"),
        ("supervised_fraction", 1.0, "[0, 1)"),
        ("supervised_fraction", "nan", "[0, 1)"),
        ("foreground_share", 1.5, "[0, 1]"),
        ("unlabeled_share", 0.5, "no longer has it: the share grows as the learning rate decays"),
        ("lora_alpha", 64, "no longer has it: it equals lora_rank"),
        ("lora_dropout", 0.1, "no longer has it: dropout_2d takes its place"),
        ("batch_statistics", "adapt", "no longer has it"),
        ("gradient_checkpointing", True, "no longer has it: slices_per_forward bounds"),
        ("copy_paste", True, "no longer has it"),
        ("lr_2d", -1e-3, "(0, 10]"),
        ("seed", -1, "an integer from 0 to 4294967295"),
        ("seed", 1.5, "an integer from 0 to 4294967295"),
        ("backbone", 3, "of type str"),
        ("unlabeled_sources", "imagesVal", "split, imagesUn, imagesTs"),
        ("unlabeled_sources", 3, "split, imagesUn, imagesTs"),
        ("foreground_crops", "yes", "true or false"),
    ],
)
def test_a_bad_value_is_named_with_its_field_source_and_remedy(field: str, value: object, allowed: str) -> None:
    with pytest.raises(MNError) as error:
        resolve(Layer("the plans", {field: value}))
    assert all(part in str(error.value) for part in ("the plans", f"'{field}'", allowed))


@pytest.mark.parametrize("field", [{"guidance": "weight"}, {"unlabeled_weight": 0.5}])
def test_samples_that_replace_labeled_ones_take_no_weight(field: dict[str, Any]) -> None:
    with pytest.raises(MNError, match=r"have no weight of their own: set batch to 'add'"):
        resolve(Layer("the plans", {"batch": "replace", **field}))


def test_only_fields_that_shape_the_state_stop_a_continuation() -> None:
    then = MNConfig(epochs=3, backbone="a").to_dict()
    (sentence,) = changed_state_fields(MNConfig(epochs=9, backbone="b"), then)
    assert "backbone is 'b' but the checkpoint was trained with 'a'" in sentence


def test_an_earlier_training_tells_the_settings_that_it_did_not_have() -> None:
    weight = {name: value for name, value in MNConfig().to_dict().items() if name != "unlabeled_weight"}
    assert changed_settings({"config": weight}, MNConfig()) == ["unlabeled_weight changes from 1.0 to None"]
    first = {name: value for name, value in weight.items() if name not in ("batch", "guidance", "student_masks")}
    assert "batch changes from 'replace' to 'add'" in changed_settings({"config": first}, MNConfig())
    assert changed_settings({"config": first}, MNConfig(batch="replace")) == []
