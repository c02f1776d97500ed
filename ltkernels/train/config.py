"""From tables of keys to a `Config` and back: defaults, a recipe, a TOML file and ``--set``.

Later sources win: the dataclass defaults, the method's own defaults, the recipe of the data set
(``recipes/<dataset>.toml``: common part, then the method's table, then the same for the chosen
variant), the file given by ``--config``, and ``--set key=value``. The resolved configuration is
written beside the run as ``config.toml`` and is enough to run it again.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from ltkernels.data import OFFICIAL_VALIDATION

from .tables import Config

__all__ = [
    "Config",
    "ConfigError",
    "parse_toml",
    "recipe_names",
    "recipe_tables",
    "resolve",
    "to_toml",
]

Table = Mapping[str, Any]


class ConfigError(ValueError):
    """A configuration that cannot be run: an unknown key, a wrong type, an impossible value."""


# Keys that may differ between a run and its continuation: they say where it runs, not what.
RUNTIME_KEYS = frozenset({"device", "threads", "workers", "data.root", "keep_logits"})


# -- from tables to a Config ---------------------------------------------------------------------


def flatten(table: Table, prefix: str = "") -> dict[str, Any]:
    """Nested tables as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _fields(cls: type[Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> annotation of every leaf of a nested dataclass."""
    leaves: dict[str, Any] = {}
    for name, annotation in get_type_hints(cls).items():
        if dataclasses.is_dataclass(annotation):
            assert isinstance(annotation, type)
            leaves |= _fields(annotation, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = annotation
    return leaves


CONFIG_KEYS: Mapping[str, Any] = _fields(Config)


# TOML has no null, and a key left out would take the recipe's value again.
_NONE = "none"


def _describe(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}s"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return "none" if annotation is type(None) else names[annotation].replace("a number", "number")


def _check(key: str, value: Any, annotation: Any) -> Any:
    """``value`` as ``annotation`` says, or ConfigError; an integer passes for a float."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal and value in args:
        return value
    if origin in (Union, types.UnionType):
        if value == _NONE and type(None) in args:
            return None
        for member in args:
            try:
                return _check(key, value, member)
            except ConfigError:
                continue
    elif annotation is type(None) and value is None:
        return None
    elif origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_check(key, item, args[0]) for item in value)
    elif annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif annotation in (int, bool, str) and type(value) is annotation:
        return value
    raise ConfigError(f"`{key}`: expected {_describe(annotation)}, got {value!r}")


def _unknown_key(key: str) -> ConfigError:
    # A key of no table is meant by one without a dot, if there is such a key.
    alike = [k for k in CONFIG_KEYS if ("." in k) == ("." in key)]
    near = difflib.get_close_matches(key, alike, n=3, cutoff=0.6)
    near = near or difflib.get_close_matches(key, CONFIG_KEYS, n=3, cutoff=0.6)
    # A key given without its table ("momentum") is found by its last part.
    leaf = key.rsplit(".", 1)[-1]
    near += [k for k in CONFIG_KEYS if k.rsplit(".", 1)[-1] == leaf and k not in near]
    hint = f"; did you mean {' or '.join(f'`{k}`' for k in near)}?" if near else ""
    return ConfigError(f"unknown key `{key}`{hint}")


def parse_assignment(text: str) -> tuple[str, Any]:
    """One ``--set`` argument.

    Args:
        text: ``key=value``, nested keys with dots: ``epochs=30``, ``schedule.milestones=0.6,0.8``.

    Returns:
        The dotted key and the value in the key's type.

    Raises:
        ConfigError: no ``=``, an unknown key, or a value of another type.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals:
        raise ConfigError(f"--set expects key=value, got {text!r}")
    if key not in CONFIG_KEYS:
        raise _unknown_key(key)
    return key, _parse(key, value, CONFIG_KEYS[key])


def _parse(key: str, text: str, annotation: Any) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        if text.lower() == _NONE and type(None) in args:
            return None
        members = [a for a in args if a is not type(None)]
        if len(members) > 1:
            for member in members:
                try:
                    return _parse(key, text, member)
                except ConfigError:
                    continue
            return _check(key, text, annotation)
        annotation = members[0]
    if origin is tuple:
        items = [item for item in text.strip("[]() ").split(",") if item.strip()]
        return tuple(_parse(key, item.strip(), args[0]) for item in items)
    if annotation is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if annotation in (int, float):
        try:
            return annotation(text)
        except ValueError:
            pass  # the check below reports it with what was expected
    return _check(key, text, annotation)


def parse_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


# -- recipes --------------------------------------------------------------------------------------


def _recipe_file(dataset: str) -> Table:
    name = dataset.replace("-", "_")
    resource = resources.files("ltkernels.train") / "recipes" / f"{name}.toml"
    return tomllib.loads(resource.read_text(encoding="utf-8")) if resource.is_file() else {}


def recipe_names(dataset: str) -> tuple[str, ...]:
    """Names of the recipe variants a data set has; ``default`` is always one."""
    return ("default", *_recipe_file(dataset).get("variants", {}))


def recipe_tables(dataset: str, method: str, recipe: str) -> list[Table]:
    """The tables a recipe consists of, weakest first.

    Args:
        dataset: name of the data set.
        method: name of the method.
        recipe: name of the variant, one of :func:`recipe_names`.

    Returns:
        Common keys, the method's keys, the variant's common keys, the variant's keys of the method.

    Raises:
        ConfigError: the data set has no such variant.
    """
    file = _recipe_file(dataset)
    if recipe not in recipe_names(dataset):
        have = ", ".join(recipe_names(dataset))
        raise ConfigError(f"{dataset} has no recipe {recipe!r}; it has {have}")
    tables: list[Table] = []
    for table in (file, file.get("variants", {}).get(recipe, {})):
        tables.append({k: v for k, v in table.items() if k not in ("methods", "variants")})
        tables.append(table.get("methods", {}).get(method, {}))
    return tables


def resolve(*overrides: Table, method_defaults: Mapping[str, Table] | None = None) -> Config:
    """The configuration that a set of overrides means.

    Args:
        *overrides: nested tables or dotted keys, weakest first: ``--config``, then ``--set``.
        method_defaults: method name -> the method's own defaults, which also names the methods
            that exist; None: those of ``ltkernels.methods``.

    Returns:
        The resolved configuration.

    Raises:
        ConfigError: an unknown key (near matches are named), a wrong type, an impossible value.
    """
    if method_defaults is None:
        from ltkernels.methods import METHODS

        method_defaults = {name: method.defaults for name, method in METHODS.items()}
    given: dict[str, Any] = {}
    for table in overrides:
        given |= _checked(table)
    dataset = given.get("dataset", Config.dataset)
    method = given.get("method", Config.method)
    if method not in method_defaults:
        near = difflib.get_close_matches(method, method_defaults, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"unknown method {method!r}{hint} (there are {', '.join(method_defaults)})"
        )
    flat: dict[str, Any] = {}
    recipe = recipe_tables(dataset, method, given.get("recipe", Config.recipe))
    for table in (method_defaults[method], *recipe):
        flat |= _checked(table)
    config: Config = _build(Config, flat | given)
    _validate(config)
    return config


def _checked(table: Table) -> dict[str, Any]:
    flat = flatten(table)
    for key, value in flat.items():
        if key not in CONFIG_KEYS:
            raise _unknown_key(key)
        flat[key] = _check(key, value, CONFIG_KEYS[key])
    return flat


def _build(cls: type[Any], flat: Mapping[str, Any], prefix: str = "") -> Any:
    arguments = {}
    for name, annotation in get_type_hints(cls).items():
        if dataclasses.is_dataclass(annotation):
            assert isinstance(annotation, type)
            arguments[name] = _build(annotation, flat, f"{prefix}{name}.")
        elif f"{prefix}{name}" in flat:
            arguments[name] = flat[f"{prefix}{name}"]
    return cls(**arguments)


def _validate(config: Config) -> None:
    flat = flatten(dataclasses.asdict(config))

    def need(condition: bool, key: str, expected: str) -> None:
        if not condition:
            raise ConfigError(f"`{key}`: expected {expected}, got {flat[key]!r}")

    for key in ("epochs", "batch_size", "experts", "routing.batch_size", "routing.z"):
        need(flat[key] >= 1, key, "at least 1")
    need(flat["routing.hidden"] >= 1, "routing.hidden", "at least 1")
    need(flat["ride.teacher_experts"] >= 1, "ride.teacher_experts", "at least 1")
    for key in (
        "lr",
        "temperature",
        "model.scale",
        "model.expert_width",
        "ride.temperature",
        "ride.distill_temperature",
        "routing.lr",
        "routing.pos_weight",
    ):
        need(flat[key] > 0, key, "a number above 0")
    for key in (
        "weight_decay",
        "workers",
        "threads",
        "eval_every",
        "mixup_alpha",
        "loss.alpha",
        "routing.epochs",
        "routing.weight_decay",
    ):
        need(flat[key] >= 0, key, "a number not below 0")
    for key in ("contrast.width", "contrast.queue"):
        need(flat[key] >= 1, key, "at least 1")
    for key in ("ecl.temperature", "ecl.eps", "contrast.temperature"):
        need(flat[key] > 0, key, "a number above 0")
    for key in (
        "ecl.alpha",
        "ecl.beta",
        *(f"ncl.{k}" for k in ("hard", "ce", "hard_ce", "transfer", "hard_transfer", "contrast")),
    ):
        need(flat[key] >= 0, key, "a number not below 0")
    for key in ("contrast.hidden", "views.cutout"):
        need(flat[key] is None or flat[key] >= 0, key, "none or at least 0")
    need(0 <= flat["contrast.momentum"] <= 1, "contrast.momentum", "a number from 0 to 1")
    need(0 < flat["views.crop"] <= 1, "views.crop", "a part of the image, above 0 to 1")
    need(0 < flat["routing.threshold"] < 1, "routing.threshold", "a probability, 0 to 1")
    need(0 <= flat["ride.gamma"] <= 1, "ride.gamma", "a number from 0 to 1")
    for key in ("schedule.warmup", "loss.deferred"):
        need(0 <= flat[key] <= 1, key, "a fraction of the run, 0 to 1")
    for key in ("loss.beta", "optimizer.momentum", "data.holdout"):
        need(0 <= flat[key] < 1, key, "a number from 0 to below 1")
    _validate_text(config, need)
    _validate_subsets(config, need)
    _validate_cbe(config, need)
    milestones = config.schedule.milestones
    need(
        list(milestones) == sorted(milestones) and all(0 <= m <= 1 for m in milestones),
        "schedule.milestones",
        "rising fractions of the run, 0 to 1",
    )
    need(
        len(config.schedule.factors) == len(milestones),
        "schedule.factors",
        f"{len(milestones)} numbers, one a milestone",
    )
    if config.optimizer.nesterov:
        need(config.optimizer.momentum > 0, "optimizer.momentum", "above 0 with nesterov")
    if config.selection == "best_val":
        need(_validates(config), "data.holdout", "above 0 with selection = best_val")
    need(config.data.image_size >= 1, "data.image_size", "at least 1")
    need(0 < config.data.crop <= 1, "data.crop", "a part of the image, above 0 to 1")
    if config.data.jitter is not None:
        need(0 <= config.data.jitter <= 1, "data.jitter", "none or a number from 0 to 1")


def _validates(config: Config) -> bool:
    """Whether there are images to validate on: held out of training, or the data set's own."""
    return config.data.holdout > 0 or config.dataset in OFFICIAL_VALIDATION


def _validate_text(config: Config, need: Callable[[bool, str, str], None]) -> None:
    text, model = config.text, config.model
    for key in ("max_length", "min_count", "max_words"):
        value = getattr(text, key)
        need(value is None or value >= 1, f"text.{key}", "at least 1")
    for key in ("embedding_width", "feature_maps"):
        need(getattr(model, key) >= 1, f"model.{key}", "at least 1")
    widths = model.filter_widths
    need(min(widths, default=0) >= 1, "model.filter_widths", "a list of numbers, at least 1")
    need(0 <= model.dropout < 1, "model.dropout", "a probability, 0 to below 1")


def _validate_subsets(config: Config, need: Callable[[bool, str, str], None]) -> None:
    subsets, lfme = config.subsets, config.lfme
    thresholds = subsets.thresholds
    need(
        bool(thresholds) and list(thresholds) == sorted(set(thresholds)) and thresholds[0] >= 1,
        "subsets.thresholds",
        "rising numbers, at least 1",
    )
    most = len(thresholds)
    need(0 <= subsets.index <= most, "subsets.index", f"a number from 0 to {most}")
    need(lfme.images_per_class >= 1, "lfme.images_per_class", "at least 1")
    if lfme.alpha is not None:
        need(0 <= lfme.alpha < 1, "lfme.alpha", "a number from 0 to below 1")
    if lfme.instance_span is not None:
        need(lfme.instance_span > 0, "lfme.instance_span", "a number above 0")
    if lfme.expert_epochs is not None:
        need(lfme.expert_epochs > 0, "lfme.expert_epochs", "a number above 0")
    if config.method != "lfme":
        return
    if lfme.validation == "holdout":
        need(_validates(config), "data.holdout", "above 0 with lfme.validation = holdout")
    if lfme.instance_selection:
        # A mixed image has no weight of its own, in the paper or in the code.
        need(config.mixup_alpha == 0, "mixup_alpha", "0 with lfme.instance_selection")


def _validate_cbe(config: Config, need: Callable[[bool, str, str], None]) -> None:
    cbe = config.cbe
    need(0 <= config.data.rotation <= 180, "data.rotation", "degrees, 0 to 180")
    need(config.data.holdout_min >= 0, "data.holdout_min", "a number not below 0")
    if config.data.holdout_min:
        need(config.data.holdout > 0, "data.holdout", "above 0 with data.holdout_min")
    for key in ("epochs", "batch_size", "outlier_ratio"):
        need(getattr(cbe, key) >= 1, f"cbe.{key}", "at least 1")
    need(cbe.lr > 0, "cbe.lr", "a number above 0")
    for key in ("weight_decay", "exposure", "calibration_decay"):
        need(getattr(cbe, key) >= 0, f"cbe.{key}", "a number not below 0")
    need(
        bool(cbe.open_ratio) and min(cbe.open_ratio) >= 1,
        "cbe.open_ratio",
        "a list of numbers, at least 1",
    )
    need(
        bool(cbe.learnable) and all(n == -1 or n >= 1 for n in cbe.learnable),
        "cbe.learnable",
        "a list of numbers of blocks, at least 1, or -1 for all",
    )
    if config.method == "cbe":
        need(_validates(config), "data.holdout", "above 0: the fusion is fitted on the images")
        need(config.selection == "last", "selection", "last with cbe")


# -- a Config as TOML -----------------------------------------------------------------------------


def _toml_value(value: Any) -> str:
    if value is None:
        return json.dumps(_NONE)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return repr(value)


def to_toml(config: Config) -> str:
    """A configuration as a TOML document that :func:`resolve` reads back to the same one."""
    lines: list[str] = []
    tables: list[str] = []
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, Mapping):
            tables += ["", f"[{name}]"]
            tables += [f"{k} = {_toml_value(v)}" for k, v in value.items()]
        else:
            lines.append(f"{name} = {_toml_value(value)}")
    return "\n".join([*lines, *tables, ""])
