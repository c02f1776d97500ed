"""A card as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .card import Card
from .grouped import GROUPS

__all__ = ["ROW_NAMES", "format_card"]

ROW_NAMES = {
    "logit_adjustment": "+ logit adjustment",
    "temperature": "+ temperature",
    "logit_adjustment+temperature": "+ logit adjustment + temperature",
    "tau_norm": "+ tau-normalisation",
}
"""Post-hoc rows in words."""

_SHOWN = (*GROUPS[1:], "overall")


def format_card(card: Card) -> str:
    """The card of one model, aligned for a terminal."""
    sizes = [f"{g} ({_text(card.groups[g])})" for g in GROUPS[1:]]
    head = ["", *sizes, "overall", *(f"ECE {g}" for g in _SHOWN), ""]
    table = [head, ["as trained", *_numbers(card.accuracy, card.ece), ""]]
    for name, row in card.posthoc.items():
        numbers = _numbers(row.accuracy, row.ece)
        table.append([ROW_NAMES[name], *numbers, _setting(row.setting)])
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [_line(row, widths) for row in table]
    lines.insert(1, "-" * len(lines[0]))
    lines += [f"{ROW_NAMES[name]}: none, {why}" for name, why in card.absent.items()]
    lines += [f"note: {note}" for note in card.notes]
    facts = [f"{name:<12}{value}" for name, value in _facts(card)]
    return "\n".join([card.name, "", *lines, "", *facts])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]]
    return "  ".join(cells).rstrip()


def _numbers(accuracy: dict[str, float | None], ece: dict[str, float | None]) -> list[str]:
    percent = [100 * e if e is not None else None for e in map(ece.get, _SHOWN)]
    return [_text(v, ".1f") for v in (*map(accuracy.get, _SHOWN), *percent)]


def _setting(setting: dict[str, Any]) -> str:
    parts = [f"{k} {setting[k]:.3g}" for k in ("tau", "temperature") if k in setting]
    parts += [str(setting[k]) for k in ("fitted_on", "chosen_on") if k in setting]
    return ", ".join(parts)


def _text(value: Any, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _facts(card: Card) -> list[tuple[str, str]]:
    f = card.facts
    before = f["seconds_before"] or {}
    seconds = _text(f["seconds"], ".1f")
    if before:
        parts = ", ".join(f"{name} {value:.1f}" for name, value in before.items())
        seconds += f"; before it {parts}; in total {_text(f['seconds_total'], '.1f')}"
    memory = "-"
    if f["peak_memory_bytes"] is not None:
        what = {"cuda_allocated": "tensors on the GPU", "process_rss": "resident, whole process"}
        memory = f"{f['peak_memory_bytes'] / 2**20:,.0f} MiB ({what[f['peak_memory_kind']]})"
    selection = _text(f["selection"])
    if f["selected_epoch"] is not None:
        selection += f" (epoch {f['selected_epoch']})"
    images = (
        f"{_text(f['train_images'], ',')} training, {_text(f['validation_images'], ',')} "
        f"validation, {f['test_images']:,} test images of {f['classes']} classes"
    )
    return [
        ("method", f"{_text(f['method'])}, recipe {_text(f['recipe'])}, seed {_text(f['seed'])}"),
        ("data", f"{_text(f['dataset'])}, split {_text(f['split_hash'])}; {images}"),
        ("groups", f"rule {_text(f['shot_rule'])}"),
        ("training", f"{_text(f['epochs'])} epochs, selection {selection}"),
        ("network", f"{_text(f['parameters'], ',')} parameters, {_text(f['macs'], ',')} MACs"),
        ("seconds", seconds),
        ("memory", memory),
        (
            "made with",
            f"torch {_text(f['torch'])}, ltkernels {_text(f['ltkernels'])}, backend "
            f"{_text(f['backend'])}, on {_text(f['device'])}",
        ),
    ]
