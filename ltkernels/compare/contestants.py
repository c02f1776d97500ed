"""What is compared: the runs of the plan and saved logits, on the same test images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltkernels.evaluate import POSTHOC, Card, PosthocRow, make_card, read_model
from ltkernels.evaluate.table import ROW_NAMES
from ltkernels.metrics import Reliability, reliability
from ltkernels.predictions import Source
from ltkernels.train.config import ConfigError
from ltkernels.train.run import load_config, load_dataset, load_result

if TYPE_CHECKING:
    from ltkernels.data import LongTailedDataset

__all__ = [
    "SAME_PREDICTIONS",
    "Common",
    "Contestant",
    "Entry",
    "Field",
    "Measured",
    "entry_name",
    "gather",
    "parse_logits",
]

SAME_PREDICTIONS = frozenset({"temperature", "logit_adjustment+temperature"})
"""Post-hoc rows that change probabilities, but predict as another row does."""


@dataclass(frozen=True)
class Measured:
    """One run with its logits as they are, or as a post-hoc row makes them.

    Args:
        accuracy: by group, in percent; None where there is no such group.
        ece: by group, a fraction.
        right: which test images it predicts right, bool ``[M]``.
        bins: of the reliability diagram.
    """

    accuracy: dict[str, float | None]
    ece: dict[str, float | None]
    right: Tensor
    bins: Reliability


@dataclass(frozen=True)
class Entry:
    """A line of the tables.

    Args:
        name: ``ce``, or ``ce + logit adjustment``.
        row: the post-hoc row; "" for the model as it was trained.
        contestant: whose line it is.
        runs: by seed.
    """

    name: str
    row: str
    contestant: Contestant
    runs: dict[int, Measured]


@dataclass(frozen=True)
class Contestant:
    """A configuration with its seeds, or a name for files of logits.

    Args:
        name: as the grid or ``--logits`` has it.
        cards: by seed, without the post-hoc rows' logits and its own.
        results: ``result.json`` by seed; empty for files.
    """

    name: str
    cards: dict[int, Card]
    results: dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Field:
    """All that is compared.

    Args:
        contestants: in their order.
        entries: each contestant followed by its post-hoc rows.
        labels: int64 ``[M]`` of the common test images.
        class_counts: int64 ``[C]``; None where nobody knows them.
        rule: which classes are many, medium and few.
        split: hash of the common training images; "" where nobody knows it.
        notes: what must be said.
    """

    contestants: list[Contestant]
    entries: list[Entry]
    labels: Tensor
    class_counts: Tensor | None
    rule: str
    split: str
    notes: list[str]


def entry_name(name: str, row: str) -> str:
    """The name of a line of the tables."""
    return f"{name} {ROW_NAMES[row]}" if row else name


def gather(
    runs: Mapping[str, Mapping[int, Path]],
    files: Mapping[str, Sequence[Path]],
    *,
    rule: str = "",
    posthoc: Sequence[str] = POSTHOC,
    files_keep_prior: bool = False,
    device: str = "auto",
) -> Field:
    """Read and measure everything; only what is needed of the logits is kept.

    Args:
        runs: name -> seed -> folder of a finished run.
        files: name -> files of logits (or folders of runs), paired with the seeds in their order.
        rule: which classes are many, medium and few; by default the runs' own.
        posthoc: the post-hoc rows wanted.
        files_keep_prior: whether the files' logits still carry the training prior.
        device: where runs predict that left no logits.

    Raises:
        ValueError: there is nothing, or not all are of the same split and test images.
    """
    paths = [(name, seed, path) for name, own in runs.items() for seed, path in own.items()]
    paths += [(name, k, path) for name, own in files.items() for k, path in enumerate(own)]
    notes: list[str] = []
    dataset, posthoc = _dataset([p for name, _, p in paths if name in runs], posthoc, notes)
    common = Common(rule)
    cards: dict[str, dict[int, Card]] = {}
    results: dict[str, dict[int, dict[str, Any]]] = {}
    measured: dict[str, dict[str, dict[int, Measured]]] = {}
    if not runs:  # whose first one knows all; a file may leave out what a later one says
        for _, _, path in paths:
            common.complete(read_model(path, device=device)[0])
    for name, seed, path in paths:
        source, facts = read_model(path, device=device, dataset=dataset if name in runs else None)
        source = common.complete(source)
        if not facts and files_keep_prior:
            facts = {"keeps_prior": True}
        card = make_card(
            source,
            facts,
            posthoc=posthoc,
            rule=common.rule,
            device=device,
            dataset=dataset if name in runs else None,
        )
        rows: dict[str, Card | PosthocRow] = {"": card, **card.posthoc}
        for row, of_row in rows.items():
            seeds = measured.setdefault(name, {}).setdefault(row, {})
            seeds[seed] = _measure(of_row.logits, card.labels, of_row.accuracy, of_row.ece)
        nothing = torch.empty(0, 0)
        kept = {row: replace(of_row, logits=nothing) for row, of_row in card.posthoc.items()}
        cards.setdefault(name, {})[seed] = replace(card, logits=nothing, posthoc=kept)
        results.setdefault(name, {})
        if path.is_dir():
            results[name][seed] = load_result(path) or {}
    if not cards or common.labels is None:
        raise ValueError("there is nothing to compare: no finished run and no file of logits")
    contestants = [Contestant(name, own, results[name]) for name, own in cards.items()]
    return Field(
        contestants,
        list(_entries(contestants, measured)),
        common.labels,
        common.class_counts,
        common.rule or "kang",
        common.split,
        notes,
    )


def _entries(
    contestants: Sequence[Contestant], measured: Mapping[str, Mapping[str, dict[int, Measured]]]
) -> Iterator[Entry]:
    for contestant in contestants:
        for row, runs in measured[contestant.name].items():
            yield Entry(entry_name(contestant.name, row), row, contestant, runs)


def _measure(
    logits: Tensor,
    labels: Tensor,
    accuracy: dict[str, float | None],
    ece: dict[str, float | None],
) -> Measured:
    bins = reliability(logits.softmax(1), labels)
    return Measured(accuracy, ece, logits.argmax(1) == labels, bins)


def _dataset(
    folders: Sequence[Path], posthoc: Sequence[str], notes: list[str]
) -> tuple[LongTailedDataset | None, Sequence[str]]:
    """The data set of the plan's runs, read once; without its files there is no tau-norm."""
    if not folders or "tau_norm" not in posthoc:
        return None, posthoc
    try:
        return load_dataset(load_config(folders[0])), posthoc
    except OSError as error:
        notes.append(f"no tau-normalisation, as the images are not there: {error}")
        return None, [row for row in posthoc if row != "tau_norm"]


class Common:
    """What all must share, known from the first that says it."""

    def __init__(self, rule: str) -> None:
        self.rule, self._forced = rule, bool(rule)
        self.split = ""
        self.labels: Tensor | None = None
        self.class_counts: Tensor | None = None
        self._who: dict[str, str] = {}

    def complete(self, source: Source) -> Source:
        """The source with what it leaves out.

        Raises:
            ValueError: it says something else than another one; both are named.
        """
        self._same(source, "split", source.split, "trained on another split of the data")
        self._same(source, "labels", source.labels, "of other test images")
        self._same(source, "class_counts", source.class_counts, "of other training images a class")
        if not self._forced:
            self._same(source, "rule", source.rule, "of another rule for many, medium and few")
        return replace(source, labels=self.labels, class_counts=self.class_counts)

    def _same(self, source: Source, key: str, value: Tensor | str | None, what: str) -> None:
        if value is None or (isinstance(value, str) and not value):
            return
        have = getattr(self, key)
        if have is None or (isinstance(have, str) and not have):
            setattr(self, key, value)
            self._who[key] = source.name
            return
        if not (torch.equal(value, have) if isinstance(value, Tensor) else value == have):
            both = "" if isinstance(value, Tensor) else f" ({value}, there {have})"
            raise ValueError(f"{source.name} is {what} than {self._who[key]}{both}")


def parse_logits(texts: Sequence[str]) -> dict[str, list[Path]]:
    """``name=a.npz,b.npz`` of the command line.

    Raises:
        ConfigError: no name, or one twice, or a file that is not there.
    """
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, equals, paths = text.partition("=")
        if not (name and equals and paths):
            raise ConfigError(f"--logits expects name=FILE[,FILE], got {text!r}")
        if name in found:
            raise ConfigError(f"--logits names {name!r} twice; give its files as one list")
        found[name] = [Path(path) for path in paths.split(",")]
        for path in found[name]:
            if not path.exists():
                raise ConfigError(f"--logits: there is no run and no file {path}")
    return found
