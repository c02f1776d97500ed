"""What would be found wrong only after the training, found before it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ltkernels.evaluate import Card, make_card, read_model
from ltkernels.evaluate.sources import facts_of_run
from ltkernels.methods import CBE, METHODS, SubsetExpert
from ltkernels.predictions import Source
from ltkernels.train.config import Config, ConfigError
from ltkernels.train.run import LOGITS, hold_out, load_dataset
from ltkernels.train.text import check_inputs

from .contestants import Common, entry_name

if TYPE_CHECKING:
    from ltkernels.data import LongTailedDataset

    from .plan import Plan

__all__ = ["check_before_training"]

_UNREADABLE = (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, SafetensorError)


def check_before_training(
    plan: Plan,
    files: Mapping[str, Sequence[Path]],
    *,
    baseline: str = "",
    rule: str = "",
    posthoc: Sequence[str] = (),
    files_keep_prior: bool = False,
) -> None:
    """Whether the runs of a plan can take their data, the files fit it, and there is the baseline.

    Args:
        plan: with one run at least; all are of one split.
        files: name -> files of logits or folders of runs.
        baseline: a line of the tables; "" for the default.
        rule: which classes are many, medium and few, where it is forced.
        posthoc: the post-hoc rows wanted.
        files_keep_prior: whether the files' logits still carry the training prior.

    Raises:
        ConfigError: they cannot, do not, or there is not; it names which.
        OSError: the data set's files are not there.
    """
    configs = {job.folder: job.config for job in plan.jobs}
    config = next(iter(configs.values()))
    whole = load_dataset(config)
    _check_configurations(plan, whole)
    dataset, validation = hold_out(whole, config)
    common = Common(rule)
    common.complete(
        Source(
            f"the data set {config.dataset}",
            (),
            labels=dataset.test_labels.cpu(),
            class_counts=dataset.class_counts.cpu(),
            rule=config.shot_rule,
            split=dataset.split_hash,
        )
    )
    possible = []
    for name, runs in plan.rows.items():
        own = configs[next(iter(runs.values()))]
        rows = [row for row in posthoc if _has_row(own, row, validation is not None)]
        possible += [entry_name(name, row) for row in ("", *rows)]
    wanted = [row for row in posthoc if row != "tau_norm"]  # which predicts again
    unknown = {"keeps_prior": True} if files_keep_prior else {}
    for name, paths in files.items():
        found: set[str] = set()
        for path in paths:
            card = _check_file(name, path, common, wanted, unknown, configs)
            found |= set(posthoc if card is None else card.posthoc)
            if path.is_dir():
                found |= set(posthoc) & {"tau_norm"}
        possible += [entry_name(name, row) for row in ("", *posthoc) if not row or row in found]
    if baseline and baseline not in possible:
        raise ConfigError(
            f"--baseline: there will be no {baseline!r} (there are {', '.join(possible)})"
        )


def _check_configurations(plan: Plan, dataset: LongTailedDataset) -> None:
    names = {folder: name for name, runs in plan.rows.items() for folder in runs.values()}
    for job in plan.jobs:
        try:
            check_inputs(job.config, dataset)
        except ConfigError as error:
            raise ConfigError(f"{names.get(job.folder, job.name)}: {error}") from error


def _has_row(config: Config, row: str, has_validation: bool) -> bool:
    """Whether a run may have a post-hoc row; false only where it certainly has not."""
    method = METHODS[config.method]
    if row == "tau_norm":
        return config.model.head != "cosine" and not issubclass(method, (CBE, SubsetExpert))
    parts = row.split("+")
    return (method.keeps_prior or "logit_adjustment" not in parts) and (
        has_validation or "temperature" not in parts
    )


def _check_file(
    name: str,
    path: Path,
    common: Common,
    posthoc: Sequence[str],
    unknown: Mapping[str, Any],
    planned: Iterable[Path],
) -> Card | None:
    """The card of a file; None where its logits are still to come."""
    if path.is_dir() and path.resolve() in planned:
        return None
    try:
        if path.is_dir() and not (path / LOGITS).exists():  # it would predict, here and again
            split = facts_of_run(path).get("split_hash") or ""
            common.complete(Source(str(path), (), split=split))
            return None
        source, facts = read_model(path)
        return make_card(
            common.complete(source), facts or unknown, posthoc=posthoc, rule=common.rule
        )
    except _UNREADABLE as error:
        why = " ".join(str(error).split()) or "it is empty"
        where = "" if str(path) in why else f"{path}: "
        raise ConfigError(f"--logits {name}: {where}{why}") from error
