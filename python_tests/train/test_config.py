"""Configuration: order of its sources, types, errors that help, a file that brings it back."""

from __future__ import annotations

import pytest

from ltkernels.data import DATASETS
from ltkernels.methods import METHODS
from ltkernels.train.config import (
    CONFIG_KEYS,
    ConfigError,
    parse_assignment,
    parse_toml,
    recipe_names,
    resolve,
    to_toml,
)

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib


def test_contract_keys_exist():
    wanted = {"epochs", "batch_size", "lr", "weight_decay", "workers", "temperature", "experts"}
    assert wanted <= set(CONFIG_KEYS)


def test_later_sources_win():
    assert resolve({"dataset": "cifar10-lt"}).epochs == 200
    assert resolve({"dataset": "glyph-lt"}).epochs == 30
    assert resolve({"dataset": "fashion-mnist-lt", "recipe": "quick"}).epochs == 8
    assert resolve({"dataset": "digits-lt", "recipe": "quick", "epochs": 7}).epochs == 7
    assert resolve({"epochs": 7}, {"epochs": 8}).epochs == 8


def test_method_defaults_are_weaker_than_what_is_given():
    assert resolve({"method": "ldam_drw"}).model.head == "cosine"
    assert resolve({"method": "ldam_drw", "model.head": "linear"}).model.head == "linear"
    assert resolve({"method": "ce"}).model.head == "linear"


def test_recipe_of_one_method_and_of_a_variant():
    assert resolve({"method": "bkd", "dataset": "cifar10-lt"}).deferred_epoch == 160
    assert resolve({"method": "bkd", "dataset": "cifar100-lt"}).deferred_epoch == 0
    assert resolve({"method": "ce", "dataset": "cifar10-lt"}).loss.deferred == 0
    paper = {"method": "bkd", "dataset": "cifar10-lt", "recipe": "paper"}
    assert resolve(paper).mixup_alpha == 1.0
    assert resolve({**paper, "method": "ce"}).mixup_alpha == 0.0
    official = {"method": "kd", "dataset": "cifar100-lt", "recipe": "official"}
    assert resolve(official).loss.weighted_ce


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_recipe_resolves_and_survives_toml(dataset, method):
    for recipe in recipe_names(dataset):
        config = resolve({"dataset": dataset, "method": method, "recipe": recipe})
        assert resolve(tomllib.loads(to_toml(config))) == config


def test_toml_brings_back_what_differs_from_the_recipe():
    config = resolve(
        {"teacher": 'a "b"\\c', "model.stem_stride": None, "data.imbalance": 50, "lr": 1e-5}
    )
    assert config.model.stem_stride is None
    assert resolve(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("epochs=30", "epochs", 30),
        ("lr = 1e-2", "lr", 0.01),
        ("lr=1", "lr", 1.0),
        ("data.imbalance=none", "data.imbalance", None),
        ("data.imbalance=50", "data.imbalance", 50.0),
        ("optimizer.nesterov=true", "optimizer.nesterov", True),
        ("schedule.milestones=[0.6, 0.8]", "schedule.milestones", (0.6, 0.8)),
        ("schedule.milestones=0.6,0.8", "schedule.milestones", (0.6, 0.8)),
        ("teacher=a=b", "teacher", "a=b"),
        ("amp=bf16", "amp", "bf16"),
    ],
)
def test_assignments_take_the_type_of_their_key(text, key, value):
    parsed = parse_assignment(text)
    assert parsed == (key, value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch=3", "unknown key `epoch`; did you mean `epochs`"),
        ("momentum=0.9", "did you mean `contrast.momentum` or `optimizer.momentum`"),
        ("epochs=3.5", "`epochs`: expected an integer, got '3.5'"),
        ("epochs", "expects key=value"),
        ("amp=int8", "expected one of auto, off, bf16, fp16, got 'int8'"),
        ("channels_last=yes", "expected true or false"),
        ("lr=fast", "`lr`: expected number, got 'fast'"),
    ],
)
def test_wrong_assignments_name_what_is_expected(text, message):
    with pytest.raises(ConfigError) as error:
        parse_assignment(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"method": "bdk"}, "did you mean bkd"),
        (
            {"dataset": "digits-lt", "recipe": "offical"},
            "digits-lt has no recipe 'offical'; it has default, quick",
        ),
        ({"epochs": 0}, "`epochs`: expected at least 1, got 0"),
        ({"epochs": True}, "`epochs`: expected an integer, got True"),
        ({"lr": "0.1"}, "`lr`: expected number, got '0.1'"),
        ({"schedule": {"milestones": [0.9, 0.8], "factors": [0.1, 0.1]}}, "rising fractions"),
        ({"schedule": {"milestones": [160, 180]}}, "rising fractions of the run, 0 to 1"),
        ({"schedule": {"factors": [0.1]}}, "2 numbers, one a milestone"),
        ({"data.rotation": 180.5}, "`data.rotation`: expected degrees, 0 to 180, got 180.5"),
        ({"data.rotation": float("nan")}, "`data.rotation`: expected degrees, 0 to 180, got nan"),
        ({"data.rotation": float("inf")}, "`data.rotation`: expected degrees, 0 to 180, got inf"),
        ({"selection": "best_val"}, "`data.holdout`: expected above 0"),
        ({"loss": {"betta": 0.9}}, "unknown key `loss.betta`; did you mean `loss.beta`"),
    ],
)
def test_wrong_configurations_name_what_is_expected(table, message):
    with pytest.raises(ConfigError) as error:
        resolve(table)
    assert message in str(error.value)


def test_broken_and_missing_files_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        parse_toml(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = ")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        parse_toml(broken)
