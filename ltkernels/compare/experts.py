"""What several experts do alone, together, and for whom."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .document import Table
from .statistics import SHOWN

__all__ = ["experts_of", "experts_table"]

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def experts_of(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Of every run of several experts, by configuration.

    Args:
        results: contents of ``result.json`` files by configuration.

    Returns:
        Name -> a dict a run: ``alone`` (mean over the experts) and ``together``, accuracies in
        percent; ``gain``, their difference; and of routed ones ``asked``, the experts that an image
        asks by group, and ``time``, seconds over those of asking all.
    """
    found = {}
    for name, runs in results.items():
        own = [_of_run(run) for run in runs if isinstance(run.get("experts"), Mapping)]
        if own and len(own) == len(runs):
            found[name] = own
    return found


def _of_run(run: Mapping[str, Any]) -> dict[str, Any]:
    alone = statistics.mean(expert["overall"] for expert in run["experts"]["alone"])
    together = run["experts"]["first"][-1]["overall"]
    row: dict[str, Any] = {"alone": alone, "together": together, "gain": together - alone}
    routing = run.get("routing")
    if routing:
        shares = {group: routing["shares"][group] for group in SHOWN}
        row["asked"] = {
            group: sum(k * share for k, share in enumerate(of_group, 1)) or None  # no image
            for group, of_group in shares.items()
        }
        row["time"] = routing["seconds"] / routing["seconds_of_all"]
    return row


def experts_table(results: Results, cell: Callable[..., str]) -> Table | None:
    """The same as a table; None where no run has several experts."""
    rows = []
    for name, runs in experts_of(results).items():
        routed = [run for run in runs if "asked" in run]
        asked = [cell(run["asked"][group] for run in routed) for group in SHOWN]
        rows.append(
            [
                name,
                *(cell(run[key] for run in runs) for key in ("alone", "together", "gain")),
                " / ".join(asked) if routed else "all",
                cell(100 * run["time"] for run in routed),
            ]
        )
    titles = ["method", "one expert alone", "all together", "gain"]
    titles += [f"experts asked, {' / '.join(SHOWN)}", "time % of asking all"]
    return Table(titles, rows) if rows else None
