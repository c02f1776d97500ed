"""The fusion table of class-balanced experts: strategies by mean and deviation over seeds.

    python bench/fusion_table.py runs/cbe/reject-0 runs/cbe/reject-1 ...

takes finished runs of `python -m ltkernels.train cbe`, groups them by what their experts learn
about images of other classes, and prints a Markdown table with their baselines first.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from ltkernels.train import load_result

GROUPS = ("overall", "many", "medium", "few")


def cell(values: list[float | None]) -> str:
    """Mean +- standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def lines_of(result: dict[str, Any], run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(mechanism, row) -> accuracy and ECE of one run and of its baseline."""
    fusion = result["fusion"]
    rows = {(fusion["mechanism"], name): row for name, row in fusion["strategies"].items()}
    rows[fusion["mechanism"], "oracle"] = {"accuracy": fusion["oracle"], "ece": None}
    folder = Path(result["start"]["run"])
    baseline = load_result(folder if folder.is_absolute() else run / "start") or {}
    if baseline:
        rows["baseline", "cross-entropy"] = baseline
        rows["baseline", "its logits adjusted after training"] = baseline["logit_adjusted"]
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    # Runs that share a baseline count it once.
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for run in parser.parse_args().runs:
        result = load_result(run)
        if result is None or "fusion" not in result:
            raise SystemExit(f"{run} holds no finished run of cbe")
        for key, row in lines_of(result, run).items():
            unit = str(result["seed"]) if key[0] == "baseline" else str(run)
            found[key][unit] = row
    print("| experts | fusion | overall | many | medium | few | ECE % |\n" + "|---" * 7 + "|")
    for (mechanism, name), runs in sorted(found.items(), key=lambda item: item[0][0] != "baseline"):
        rows = list(runs.values())
        accuracy = [cell([row["accuracy"][group] for row in rows]) for group in GROUPS]
        ece = cell([None if row["ece"] is None else 100 * row["ece"] for row in rows])
        print(f"| {mechanism} | {name} | " + " | ".join([*accuracy, ece]) + " |")


if __name__ == "__main__":
    main()
