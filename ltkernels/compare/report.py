"""One report of a comparison: report.md, report.html and report.json."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import ltkernels
from ltkernels.train.checkpoint import write_atomic
from ltkernels.train.plots import can_plot

from .contestants import SAME_PREDICTIONS, Contestant, Entry, Field
from .document import Block, Code, Figure, Heading, Items, Table, Text, to_html, to_markdown
from .experts import experts_of, experts_table
from .statistics import (
    ALPHA,
    RESAMPLES,
    SHOWN,
    Difference,
    differences,
    holm,
    image_weights,
)

__all__ = ["NO_PLOTS", "Comparison", "compare", "write_report"]

NO_PLOTS = "no plots: `pip install matplotlib`, then run the command again"
_TIE = 1e-9  # percentage points
_NO_WIDTH = (
    " An interval without width is no certainty: all resamples of these images and seeds give the "
    "same, other images or seeds may not."
)
_SELECTION = {
    "last": "last epoch",
    "best_val": "epoch chosen on images held out of training",
    "best_test": "epoch chosen on the test set: a leak",
}


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Args:
        found: all that is compared.
        baseline: the entry that the others are compared with.
        differences: name of an entry -> group -> difference; None where there is no such group.
        stands: name of an entry -> group -> whether it is significant by Holm's rule among the
            entries' differences in that group.
        resamples: of the bootstrap.
        command: what was typed.
        settings: what the grid sets for each configuration.
        common: what is set for all.
        missing: runs that there are not: name, seed, why.
        notes: what must be said.
    """

    found: Field
    baseline: Entry
    differences: dict[str, dict[str, Difference | None]]
    stands: dict[str, dict[str, bool]]
    resamples: int
    command: str = ""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[tuple[str, int, str]] = ()
    notes: Sequence[str] = ()


def compare(
    found: Field, baseline: str = "", *, resamples: int = RESAMPLES, **said: Any
) -> Comparison:
    """Compare every entry with the baseline.

    Args:
        found: all that is compared.
        baseline: name of an entry; by default ``ce``, or the first.
        resamples: of the bootstrap.
        **said: more fields of :class:`Comparison`.

    Raises:
        ValueError: there is no such entry.
    """
    names = [entry.name for entry in found.entries]
    chosen = baseline or ("ce" if "ce" in names else names[0])
    if chosen not in names:
        raise ValueError(f"there is no baseline {chosen!r} (there are {', '.join(names)})")
    base = found.entries[names.index(chosen)]
    pairs: dict[str, npt.NDArray[np.int8]] = {}
    for entry in found.entries:
        seeds = sorted(entry.runs.keys() & base.runs.keys())
        if entry is base or entry.row in SAME_PREDICTIONS or not seeds:
            continue
        pairs[entry.name] = np.stack(
            [
                entry.runs[s].right.numpy().astype(np.int8) - base.runs[s].right.numpy()
                for s in seeds
            ]
        ).astype(np.int8)
    weights = image_weights(found.labels, found.class_counts, found.rule)
    differ = differences(pairs, found.labels, weights, resamples=resamples)
    stands: dict[str, dict[str, bool]] = {name: {} for name in differ}
    for group in SHOWN:
        known = {name: d.p for name, own in differ.items() if (d := own[group]) is not None}
        for name, stays in holm(known).items():
            stands[name][group] = stays
    return Comparison(found, base, differ, stands, resamples, **said)


# -- tables ---------------------------------------------------------------------------------------


def cell(values: Iterable[float | None], digits: int = 1) -> str:
    """Mean ± standard deviation over the seeds; "-" where nothing is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


def _percent(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]


def accuracy_table(found: Field) -> Table:
    """Accuracy by group and calibration, in percent."""
    rows = []
    for entry in found.entries:
        if entry.row in SAME_PREDICTIONS:
            continue
        runs = entry.runs.values()
        rows.append(
            [
                entry.name,
                *(cell(run.accuracy[group] for run in runs) for group in SHOWN),
                cell(_percent(run.ece["overall"] for run in runs)),
                str(len(runs)),
            ]
        )
    return Table(["method", *SHOWN, "ECE", "seeds"], rows)


def calibration_table(found: Field) -> Table:
    """Expected calibration error by group, in percent."""
    rows = [
        [e.name, *(cell(_percent(run.ece[g] for run in e.runs.values())) for g in SHOWN)]
        for e in found.entries
    ]
    return Table(["method", *(f"ECE {group}" for group in SHOWN)], rows)


def _facts(contestant: Contestant, key: str) -> list[Any]:
    """What the cards say of something, where they do."""
    values = [card.facts.get(key) for card in contestant.cards.values()]
    return [value for value in values if value is not None]


def _memory(contestant: Contestant) -> str:
    values = _facts(contestant, "peak_memory_bytes")
    if not values:
        return "-"
    kinds = {"cuda_allocated": "GPU", "process_rss": "process"}
    kind = ", ".join(sorted({kinds[k] for k in _facts(contestant, "peak_memory_kind")}))
    return f"{max(values) / 2**20:,.0f} ({kind})"


def _mean(values: Sequence[float], form: str, scale: float = 1.0) -> str:
    return format(statistics.mean(values) / scale, form) if values else "-"


def _seconds(values: Sequence[float]) -> str:
    return cell(values, 0 if values and min(values) >= 10 else 1)


def cost_table(found: Field) -> Table:
    """What a network and its training cost."""
    rows = [
        [
            c.name,
            _mean(_facts(c, "parameters"), ",.1f", 1e3),
            _mean(_facts(c, "macs"), ",.2f", 1e6),
            _seconds(_facts(c, "seconds")),
            _seconds(_facts(c, "seconds_total")),
            _memory(c),
        ]
        for c in found.contestants
    ]
    titles = ["method", "parameters, k", "MMACs", "seconds", "with what it starts from"]
    return Table([*titles, "peak MiB"], rows)


def _interval(difference: Difference | None, stands: bool) -> str:
    if difference is None:
        return "-"
    mark = "**" if stands else "*" if difference.excludes_zero else ""
    return f"{difference.points:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]{mark}"


def difference_table(c: Comparison) -> Table:
    """Differences to the baseline with their intervals, in percentage points."""
    rows = [
        [
            name,
            *(_interval(own[group], c.stands[name].get(group, False)) for group in SHOWN),
            str(next((d.seeds for d in own.values() if d is not None), 0)),
        ]
        for name, own in c.differences.items()
    ]
    return Table([f"minus {c.baseline.name}", *SHOWN, "pairs"], rows)


# -- words ----------------------------------------------------------------------------------------


def _several(found: Field, key: str) -> str:
    """The value of all, or each with those that have it."""
    who: dict[str, list[str]] = {}
    for contestant in found.contestants:
        for value in dict.fromkeys(map(str, _facts(contestant, key))):
            who.setdefault(value, []).append(contestant.name)
    if len(who) == 1:
        return next(iter(who))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in who.items()) or "not known"


def _title(found: Field) -> str:
    names = ", ".join(contestant.name for contestant in found.contestants)
    datasets = set(_facts(found.contestants[0], "dataset"))
    return f"{', '.join(sorted(datasets))}: {names}" if datasets else names


def _conditions(c: Comparison) -> list[str]:
    found = c.found
    first = found.contestants[0]
    card = next(iter(first.cards.values()))
    sizes = ", ".join(f"{g} {n}" for g, n in card.groups.items() if n is not None) or "not known"
    unknown = [x.name for x in found.contestants if found.split and not _facts(x, "split_hash")]
    split = f"`{found.split}`" if found.split else "not known"
    split += f" (not known of {', '.join(unknown)})" if unknown else ""
    common = ", ".join(f"`{key} = {value}`" for key, value in c.common.items())
    lines = [
        f"data: {_several(found, 'dataset')}, split {split}, {_several(found, 'train_images')} "
        f"training images, {len(found.labels):,} test images of {card.facts['classes']} classes",
        f"groups: rule {found.rule} on the training images a class; classes: {sizes}",
        f"recipe: {_several(found, 'recipe')}, {_several(found, 'epochs')} epochs"
        + (f"; set for all: {common}" if common else ""),
    ]
    for name, own in c.settings.items():
        if own:
            lines.append(f"{name}: " + ", ".join(f"`{k} = {v}`" for k, v in own.items()))
    selection = [_SELECTION[s] for s in _SELECTION if s in _several(found, "selection")]
    lines += [
        f"selection: {'; '.join(selection) or 'not known'}",
        "seeds: " + ", ".join(map(str, sorted({s for x in found.contestants for s in x.cards}))),
        f"trained with torch {_several(found, 'torch')}, ltkernels {_several(found, 'ltkernels')}, "
        f"backend {_several(found, 'backend')}, on {_several(found, 'device')}, threads "
        f"{_several(found, 'threads')}",
    ]
    return lines


def _remarks(c: Comparison) -> list[str]:
    remarks = [*c.notes, *c.found.notes]
    for contestant in c.found.contestants:
        said = {note for card in contestant.cards.values() for note in card.notes}
        remarks += [f"{contestant.name}: {note}" for note in sorted(said)]
    absent: dict[tuple[str, str], list[str]] = {}
    for contestant in c.found.contestants:
        for card in contestant.cards.values():
            for row, why in card.absent.items():
                names = absent.setdefault((why, row), [])
                if contestant.name not in names:
                    names.append(contestant.name)
    by_reason: dict[tuple[str, str], list[str]] = {}
    for (why, row), names in absent.items():
        by_reason.setdefault((why, ", ".join(names)), []).append(row.replace("_", " "))
    remarks += [f"no {', '.join(r)} of {names}: {why}" for (why, names), r in by_reason.items()]
    return remarks


def _meaning(c: Comparison) -> str:
    known = [d for own in c.differences.values() for d in own.values() if d is not None]
    pairs = {d.seeds for d in known}
    covers = f"test images and seeds ({c.resamples:,} resamples of both)"
    if pairs == {1}:
        one = (
            "one seed" if len({tuple(e.runs) for e in c.found.entries}) == 1 else "one common seed"
        )
        covers = (
            f"test images only ({c.resamples:,} resamples), as there is {one}: it says nothing "
            "of another training"
        )
    elif 1 in pairs:
        covers += "; where there is one pair, test images only"
    return (
        f"Percentage points, the same seeds and the same test images on both sides, and the "
        f"{100 * (1 - ALPHA):.0f} % bootstrap interval over {covers}. "
        f"* the interval excludes 0; ** so does the {len(c.differences)}-fold comparison in this "
        f"column (Holm, {100 * ALPHA:.0f} %). Without a mark the difference may be chance."
        + (" With so few seeds it takes a great one to stand." if max(pairs) in (2, 3) else "")
        + (_NO_WIDTH if any(d.high - d.low < _TIE for d in known) else "")
    )


def blocks_of(c: Comparison, figures: Sequence[Figure]) -> list[Block]:
    """The report."""
    found = c.found
    blocks: list[Block] = [
        Heading(_title(found), 1),
        *([Code(c.command)] if c.command else []),
        Items(_conditions(c)),
    ]
    if c.missing:
        blocks += [
            Heading("Missing runs"),
            Items([f"{name}, seed {seed}: {why}" for name, seed, why in c.missing]),
        ]
    blocks += [
        Heading("Accuracy"),
        accuracy_table(found),
        Text(
            "Percent, mean over the classes of a group, mean ± standard deviation over the seeds. "
            "A line with + is the same trained weights with other logits, for nothing."
        ),
        Heading(f"Differences to {c.baseline.name}"),
    ]
    if c.differences:
        blocks += [difference_table(c), Text(_meaning(c))]
    else:
        blocks.append(Text("There is nothing else with a seed of the baseline."))
    blocks += [
        Heading("Calibration"),
        calibration_table(found),
        Text("Expected calibration error in percent, 15 bins, of a group's test images."),
        Heading("Cost"),
        cost_table(found),
        Text(
            "Multiply-accumulates an image. Seconds of a run, and with all runs that it needs "
            "(teacher, start, experts), which others may share. Peak memory of training: tensors "
            "on a GPU, or the whole process."
        ),
    ]
    experts = experts_table({x.name: list(x.results.values()) for x in found.contestants}, cell)
    if experts is not None:
        blocks += [
            Heading("Single experts"),
            experts,
            Text(
                "Accuracy in percent of a single expert (mean over them) and of all together; how "
                "many experts an image asks, by group, and the time that takes."
            ),
        ]
    if figures:
        blocks += [Heading("Plots"), *figures]
    remarks = _remarks(c) + ([] if can_plot() else [NO_PLOTS])
    if remarks:
        blocks += [Heading("Remarks"), Items(remarks)]
    return blocks


# -- for programs ---------------------------------------------------------------------------------


def _statistic(values: Iterable[float | None]) -> dict[str, Any]:
    listed = list(values)
    known = [value for value in listed if value is not None]
    return {
        "mean": statistics.mean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
        "values": listed,
    }


def to_dict(c: Comparison) -> dict[str, Any]:
    """The report as JSON takes it."""
    found = c.found
    entries = []
    for entry in found.entries:
        runs = entry.runs.values()
        entries.append(
            {
                "name": entry.name,
                "contestant": entry.contestant.name,
                "row": entry.row or None,
                "seeds": list(entry.runs),
                "accuracy": {g: _statistic(run.accuracy[g] for run in runs) for g in SHOWN},
                "ece": {g: _statistic(run.ece[g] for run in runs) for g in SHOWN},
            }
        )
    card = next(iter(found.contestants[0].cards.values()))
    return {
        "command": c.command,
        "ltkernels": ltkernels.__version__,
        "torch": torch.__version__,
        "split_hash": found.split or None,
        "shot_rule": found.rule,
        "groups": dict(card.groups),
        "test_images": len(found.labels),
        "common": dict(c.common),
        "settings": {name: dict(own) for name, own in c.settings.items()},
        "entries": entries,
        "baseline": c.baseline.name,
        "bootstrap": {"resamples": c.resamples, "level": 1 - ALPHA, "correction": "holm"},
        "differences": {
            name: {
                group: None
                if d is None
                else {
                    **dataclasses.asdict(d),
                    "excludes_zero": d.excludes_zero,
                    "holm": c.stands[name][group],
                }
                for group, d in own.items()
            }
            for name, own in c.differences.items()
        },
        "runs": {
            x.name: {str(seed): card.to_dict() for seed, card in x.cards.items()}
            for x in found.contestants
        },
        "experts": experts_of({x.name: list(x.results.values()) for x in found.contestants}),
        "missing": [{"name": n, "seed": s, "why": why} for n, s, why in c.missing],
        "remarks": _remarks(c),
    }


def write_report(out: Path, c: Comparison) -> list[Path]:
    """Write report.md, report.html, report.json and, with matplotlib, plots/*.png.

    Returns:
        The files.
    """
    figures: list[Figure] = []
    if can_plot():
        from .plots import draw

        figures = draw(c)
    blocks = blocks_of(c, figures)
    texts = {
        "report.md": to_markdown(blocks),
        "report.html": to_html(blocks),
        "report.json": json.dumps(to_dict(c), indent=2) + "\n",
    }
    out.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        (out / figure.file).parent.mkdir(exist_ok=True)
        write_atomic(out / figure.file, figure.png)
    for name, text in texts.items():
        write_atomic(out / name, text)
    return [out / name for name in texts]


def summary(c: Comparison) -> str:
    """The tables that answer the question, aligned for a terminal."""
    blocks = [accuracy_table(c.found)]
    if c.differences:
        blocks.append(difference_table(c))
    return "\n\n".join([*map(_aligned, blocks), *([_meaning(c)] if c.differences else [])])


def _aligned(table: Table) -> str:
    lines = [table.titles, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.titles))]
    text = [
        "  ".join([x[0].ljust(widths[0]), *map(str.rjust, x[1:], widths[1:])]).rstrip()
        for x in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])
