"""Accuracy and cost of configurations on one data set, mean and standard deviation over seeds.

    python bench/accuracy.py --dataset glyph-lt --seeds 3                  # every method
    python bench/accuracy.py --dataset glyph-lt --seeds 3 --grid ride      # grids/ride.toml

trains what is missing in --out (a run that was interrupted continues) and prints the table. A grid
is a TOML file of configurations; those that name another one as their `teacher` or `start` share
its run of the same seed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltkernels.methods import METHODS
from ltkernels.train import Config, load_config, load_result, resolve
from ltkernels.train.config import flatten, parse_assignment, parse_toml, to_toml

GROUPS = ("overall", "many", "medium", "few")
GRIDS = Path(__file__).parent / "grids"
SHARED = ("teacher", "start")
Results = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Job:
    """One configuration of a grid with one seed, in a folder of its own."""

    name: str
    seed: int
    settings: dict[str, Any]
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / f"{self.name}-{self.seed}"

    @property
    def needs(self) -> list[str]:
        """Configurations of the grid whose runs it starts from."""
        return [self.settings[key] for key in SHARED if key in self.settings]

    def config(self) -> Config:
        """The configuration; the runs it needs must be there."""
        shared = {
            key: str((self.out / f"{self.settings[key]}-{self.seed}").resolve())
            for key in SHARED
            if key in self.settings
        }
        method = {"method": self.settings.get("method", self.name)}
        config = resolve({**method, **self.settings, **shared, "seed": self.seed})
        return METHODS[config.method].complete(config)

    def run(self) -> None:
        """Train what is missing, in a process of its own."""
        if load_result(self.folder) is not None:
            return
        config = self.config()
        if (self.folder / "config.toml").exists():
            there = load_config(self.folder)
            if replace(there, threads=config.threads) != config:
                raise SystemExit(f"{self.folder} holds another configuration; choose another --out")
        else:
            self.folder.mkdir(parents=True)
            (self.folder / "config.toml").write_text(to_toml(config), encoding="utf-8")
        command = [sys.executable, "-m", "ltkernels.train", "--resume", "--out", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        result = load_result(self.folder)
        if done.returncode or result is None:
            raise SystemExit(f"{self.folder}: {done.stderr.strip() or 'no message'}")
        overall, seconds = result["accuracy"]["overall"], result["seconds"]
        print(f"{self.folder.name}: {overall:.1f} %, {seconds:.0f} s", file=sys.stderr, flush=True)


def read_grid(path: Path, only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Configurations by name; where some are named, those and what they need."""
    grid = {name: flatten(table) for name, table in parse_toml(path).items()}
    wanted = list(only) or list(grid)
    for name in wanted:
        if name not in grid:
            raise SystemExit(f"{path} has no {name!r}; it has {', '.join(grid)}")
        wanted += [grid[name][k] for k in SHARED if grid[name].get(k, name) not in wanted]
    return {name: settings for name, settings in grid.items() if name in wanted}


def waves(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """The jobs in an order in which each finds the runs it needs."""
    done: set[str] = set()
    while left := [job for job in jobs if job.name not in done]:
        ready = [job for job in left if done.issuperset(job.needs)]
        if not ready:
            raise SystemExit(f"these need each other: {', '.join({job.name for job in left})}")
        yield ready
        done |= {job.name for job in ready}


def train_all(jobs: Sequence[Job], at_a_time: int) -> None:
    """Train what is missing, so many runs at a time."""
    for wave in waves(jobs):
        with ThreadPoolExecutor(at_a_time) as pool:
            futures = [pool.submit(job.run) for job in wave]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def rows(results: Results) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each configuration's results, followed by those of its free logit adjustment."""
    for name, runs in results.items():
        yield name, runs
        if all(run.get("logit_adjusted") for run in runs):
            adjusted = [{**run, **run["logit_adjusted"], "seconds": None} for run in runs]
            yield f"{name}, logits adjusted after training", adjusted


def cell(values: Iterable[float | None]) -> str:
    """Mean +- standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def seconds(run: dict[str, Any]) -> float:
    """Training time, that of the run it starts from included."""
    return run["seconds"] + (seconds(run["start"]) if run.get("start") else 0)


def table(results: Results) -> str:
    """The results as a Markdown table."""
    titles = ["configuration", *GROUPS, "ECE %", "MMACs", "parameters", "seconds"]
    lines = [titles, ["---"] * len(titles)]
    for name, runs in rows(results):
        macs = statistics.mean(run["macs"] for run in runs) / 1e6
        free = any(run["seconds"] is None for run in runs)
        lines.append(
            [
                name,
                *(cell(run["accuracy"][group] for run in runs) for group in GROUPS),
                cell(100 * run["ece"] for run in runs),
                f"{macs:.2f}",
                f"{runs[0]['parameters'] / 1e3:.0f}k",
                "" if free else f"{statistics.mean(map(seconds, runs)):.0f}",
            ]
        )
    return markdown(lines)


def experts_table(results: Results) -> str:
    """What several experts do alone, together, and for whom; empty where there are none."""
    lines = []
    for name, runs in results.items():
        if not all(run.get("experts") for run in runs):
            continue
        alone = [[e["overall"] for e in run["experts"]["alone"]] for run in runs]
        together = [run["experts"]["first"][-1]["overall"] for run in runs]
        routing = [run["routing"] for run in runs if "routing" in run]
        used = [
            [sum(k * share for k, share in enumerate(r["shares"][group], 1)) for r in routing]
            for group in GROUPS
        ]
        time = [100 * r["seconds"] / r["seconds_of_all"] for r in routing]
        gain = [t - statistics.mean(a) for t, a in zip(together, alone, strict=True)]
        lines.append(
            [
                name,
                cell(map(statistics.mean, alone)),
                cell(together),
                cell(gain),
                " / ".join(cell(of_group) for of_group in used) if routing else "all",
                cell(time) if routing else "",
            ]
        )
    if not lines:
        return ""
    titles = ["configuration", "one expert alone", "all together", "gain"]
    titles += [f"experts asked, {' / '.join(GROUPS)}", "time % of asking all"]
    return "\n\nAccuracy of single experts:\n\n" + markdown([titles, ["---"] * 6, *lines])


def markdown(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--dataset", default="glyph-lt")
    add("--grid", default="methods", help="a TOML file, or the name of one in bench/grids")
    add("--only", type=lambda text: text.split(","), default=[], help="configurations of the grid")
    add("--seeds", type=int, default=3)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="of every configuration")
    add("--threads", type=int, default=0, help="of a run; 0: one for every core")
    add("--jobs", type=int, default=1, help="runs at a time (give --threads, too)")
    add("--out", type=Path, default=Path("runs/accuracy"))
    args = parser.parse_args()
    path = Path(args.grid) if args.grid.endswith(".toml") else GRIDS / f"{args.grid}.toml"
    common = {"dataset": args.dataset, "threads": args.threads}
    common |= dict(parse_assignment(text) for text in args.set)
    jobs = [
        Job(name, seed, {**common, **settings}, args.out)
        for seed in range(args.seeds)
        for name, settings in read_grid(path, args.only).items()
    ]
    train_all(jobs, args.jobs)
    results: Results = {}
    for job in jobs:
        result = load_result(job.folder)
        assert result is not None
        results.setdefault(job.name, []).append(result)
    first = results[jobs[0].name][0]
    sizes = ", ".join(f"{group} {n}" for group, n in first["splits"].items())
    print(
        f"{args.dataset}, {args.seeds} seeds, {first['epochs']} epochs, shot rule "
        f"{first['shot_rule']} (classes: {sizes}), split {first['split_hash']}, last epoch\n"
    )
    print(table(results) + experts_table(results))


if __name__ == "__main__":
    main()
