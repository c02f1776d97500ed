"""Puts the results of gpu_report.sh's steps into one JSON and one Markdown file.

    python bench/report.py WORK OUT

WORK holds steps.tsv (name, outcome, seconds), a log a step, and what table.py and overhead.py
wrote. Nothing but the standard library: it must work where torch does not.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Where a step says in one line how it went.
SUMMARY = re.compile(
    r"\d+ (?:passed|failed|error|skipped|deselected).*|ERROR SUMMARY: .*|RACECHECK SUMMARY: .*"
    r"|\d+ of \d+ cases right.*|\d+ cases left out.*|all agree: \d+ cases"
)


@dataclass
class Step:
    name: str
    outcome: str
    seconds: int
    summary: str


def read_steps(work: Path) -> list[Step]:
    steps = []
    for line in (work / "steps.tsv").read_text("utf-8").splitlines():
        name, outcome, seconds = line.split("\t")
        steps.append(Step(name, outcome, int(seconds), summary(work / f"{name}.log", outcome)))
    return steps


def summary(log: Path, outcome: str) -> str:
    """The lines of a log that say how it went; of a failure without one, its last line."""
    if not log.exists():
        return ""
    lines = [line.strip(" =\n") for line in log.read_text("utf-8", "replace").splitlines()]
    found = [match[0].strip(" =") for line in lines if (match := SUMMARY.search(line))]
    if found:
        return "; ".join(found[-2:])
    last = next((line for line in reversed(lines) if line), "")
    return "" if outcome == "passed" else last


def read(path: Path, suffix: str) -> Any:
    """A result that may not be there: JSON, or the text of a Markdown file."""
    file = path.with_suffix(suffix)
    if not file.exists():
        return None
    text = file.read_text("utf-8")
    return json.loads(text) if suffix == ".json" else text


def markdown(steps: list[Step], parts: dict[str, str | None], machine: str | None) -> str:
    lines = ["# ltkernels on this machine", ""]
    if machine:
        lines += ["```", machine, "```", ""]
    lines += ["| step | outcome | s | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {step.name} | {step.outcome} | {step.seconds} | {step.summary.replace('|', '/')} |"
        for step in steps
    ]
    for title, text in parts.items():
        if text:
            lines += ["", f"## {title}", "", text.rstrip()]
    return "\n".join(lines) + "\n"


def main(work: Path, out: Path) -> None:
    steps = read_steps(work)
    imported = read(work / "import", ".log") if any(s.name == "import" for s in steps) else None
    results = {name: read(work / name, ".json") for name in ("table", "overhead")}
    document = {
        "steps": [asdict(step) for step in steps],
        "info": imported,
        "benchmark": results["table"],
        "overhead": results["overhead"],
    }
    parts = {
        "Speed": read(work / "table", ".md"),
        "Small batches, layer by layer": read(work / "overhead", ".md"),
    }
    (out / "report.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (out / "report.md").write_text(markdown(steps, parts, imported and imported.strip()), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
