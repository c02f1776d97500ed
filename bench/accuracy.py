"""Accuracy of the methods on one data set, mean and standard deviation over seeds.

    python bench/accuracy.py --dataset glyph-lt --seeds 3 --out runs/accuracy

trains what is missing in --out (a run that was interrupted continues), lets kd and bkd share the
cross-entropy run of their seed as teacher, and prints the table of the README.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltkernels.methods import METHODS
from ltkernels.train import load_result, resolve, train

GROUPS = ("overall", "many", "medium", "few")
DISTILLED = ("kd", "bkd")  # taught by the cross-entropy run of the same seed


def result_of(method: str, seed: int, dataset: str, out: Path, threads: int) -> dict[str, Any]:
    """The result of a run in OUT/<method>-<seed>, trained or continued where it is missing."""
    folder = out / f"{method}-{seed}"
    settings: dict[str, Any] = {"method": method, "dataset": dataset, "seed": seed}
    if threads:
        settings["threads"] = threads
    if method in DISTILLED:
        settings["teacher"] = str(out / f"ce-{seed}")
    return load_result(folder) or train(resolve(settings), folder, resume=folder.exists())


def rows(results: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each method's results, followed by those of its free logit adjustment after training."""
    for method, runs in results.items():
        yield method, runs
        if all(run.get("logit_adjusted") for run in runs):
            adjusted = [{**run, **run["logit_adjusted"], "seconds": None} for run in runs]
            yield f"{method}, logits adjusted after training", adjusted


def cell(values: list[float | None]) -> str:
    """Mean +- standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The results as a Markdown table."""
    lines = ["| method | overall | many | medium | few | ECE % | seconds |", "|---" * 7 + "|"]
    for name, runs in rows(results):
        accuracy = [cell([run["accuracy"][group] for run in runs]) for group in GROUPS]
        ece = cell([100 * run["ece"] for run in runs])
        seconds = [run["seconds"] for run in runs]
        time = "" if None in seconds else f"{statistics.mean(seconds):.0f}"
        lines.append(f"| {name} | {' | '.join(accuracy)} | {ece} | {time} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="glyph-lt")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: one for every core")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for method in args.methods.split(","):
        for seed in range(args.seeds):
            if method in DISTILLED:
                result_of("ce", seed, args.dataset, args.out, args.threads)
            results.setdefault(method, []).append(
                result_of(method, seed, args.dataset, args.out, args.threads)
            )
    first = results[next(iter(results))][0]
    sizes = ", ".join(f"{group} {n}" for group, n in first["splits"].items())
    print(
        f"\n{args.dataset}, {args.seeds} seeds, {first['epochs']} epochs, shot rule "
        f"{first['shot_rule']} (classes: {sizes}), split {first['split_hash']}, last epoch\n"
    )
    print(table(results))


if __name__ == "__main__":
    main()
