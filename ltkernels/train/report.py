"""Results as a file for programs and as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltkernels.train.evaluation import GROUPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["format_results"]


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _magnitude(value: float) -> str:
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    accuracy = result["accuracy"]
    leak = ""
    if result["selection"] == "best_test":
        leak = " (epoch chosen on the test set: a leak)"
    elif result.get("test_set_leak"):
        leak = " (trained by accuracies on the test set: a leak)"
    rows = [
        [
            result["method"] + leak,
            *(_number(accuracy[g]) for g in (*GROUPS, "overall")),
            _number(100 * result["ece"]),
            f"{result['seconds']:.0f}",
            _magnitude(result["macs"]),
            _magnitude(result["parameters"]),
        ]
    ]
    adjusted = result.get("logit_adjusted")
    if adjusted is not None:
        rows.append(
            [
                f"{result['method']} + logit adjustment",
                *(_number(adjusted["accuracy"][g]) for g in (*GROUPS, "overall")),
                _number(100 * adjusted["ece"]),
                *["same"] * 3,
            ]
        )
    fusion = result.get("fusion")
    if fusion is not None:
        others = {k: v for k, v in fusion["strategies"].items() if k != fusion["strategy"]}
        rows[0][0] = f"{result['method']}, {fusion['strategy']}{leak}"
        for name, row in {**others, "oracle": {"accuracy": fusion["oracle"]}}.items():
            values = [_number(row["accuracy"][g]) for g in (*GROUPS, "overall")]
            ece = _number(100 * row["ece"]) if "ece" in row else "-"
            rows.append([f"{result['method']}, {name}", *values, ece, *["same"] * 3])
    return rows


def format_results(results: Sequence[Mapping[str, Any]]) -> str:
    """A table of runs on one data set, aligned for a terminal.

    Args:
        results: contents of ``result.json`` files.

    Returns:
        Accuracy in percent by group, ECE in percent, seconds, multiply-accumulates an image,
        parameters; below it what the numbers mean.
    """
    first = results[0]
    sizes = first["splits"]
    header = [
        "method",
        *(f"{g} ({sizes[g]})" for g in GROUPS),
        "overall",
        "ECE",
        "seconds",
        "MACs",
        "parameters",
    ]
    rows = [header, *(row for result in results for row in _rows(result))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    selection = {
        "last": "last epoch",
        "best_val": "epoch chosen on images held out of training",
        "best_test": "epoch chosen on the test set: a leak",
    }[first["selection"]]
    unit = "texts" if "vocabulary" in first else "images"
    data = (
        f"{first['dataset']}: {first['train_images']:,} training {unit} of {first['classes']} "
        f"classes, split {first['split_hash']}; {first['test_images']:,} test {unit}."
    )
    meaning = (
        "Accuracy in percent, mean over classes; (n): classes of the group by rule "
        f"{first['shot_rule']}; {selection}; ECE in percent."
    )
    return "\n".join([*lines, "", data, meaning])
