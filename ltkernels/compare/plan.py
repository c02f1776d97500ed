"""From a grid of configurations to the runs there must be, each of them once.

A grid is a TOML file with a table a configuration; its keys are those of
``python -m ltkernels.train --set``, and a table without ``method`` is the method of its name.
``teacher`` and ``start`` name another configuration of the grid, whose run of the same seed it is;
what a method needs and the grid does not name (``Method.prerequisites``) becomes a run of its own.
Runs that are the same (:mod:`.identity`) are one, also those that an earlier comparison left in the
folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ltkernels.data import DATASETS
from ltkernels.methods import METHODS, SubsetExpert
from ltkernels.train.checkpoint import write_atomic
from ltkernels.train.config import (
    CONFIG_KEYS,
    Config,
    ConfigError,
    flatten,
    parse_toml,
    resolve,
    to_toml,
)
from ltkernels.train.run import load_config

from .identity import fingerprint, given_folder, what_counts

__all__ = ["Grid", "Job", "Plan", "grid_names", "make_plan", "method_grid", "read_grid"]

Grid = Mapping[str, Mapping[str, Any]]

NAMED = ("teacher", "start")
"""Keys of a grid that name another configuration of it."""
_TRAINED = ("checkpoint.pt", "metrics.jsonl", "model.safetensors", "result.json")


# -- grids ----------------------------------------------------------------------------------------


def grid_names() -> list[str]:
    """The grids that ship with the package."""
    folder = resources.files("ltkernels.compare") / "grids"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def read_grid(name: str, only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Configurations by name.

    Args:
        name: a grid of the package, or a file .toml.
        only: configurations to take, with those they name; empty: all.

    Raises:
        ConfigError: no such grid, unknown keys or names, or configurations that need each other.
    """
    if name.endswith(".toml"):
        path = Path(name)
    elif name in grid_names():
        path = Path(str(resources.files("ltkernels.compare") / "grids" / f"{name}.toml"))
    else:
        have = ", ".join(grid_names())
        raise ConfigError(f"there is no grid {name!r}: expected a file .toml, or one of {have}")
    grid: dict[str, dict[str, Any]] = {}
    for title, table in parse_toml(path).items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{path}: expected tables [NAME], got the key `{title}`")
        grid[title] = flatten(table)
    return _choose(grid, only, str(path))


def method_grid(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The grid of some methods, each as its recipe has it, with those they start from.

    Raises:
        ConfigError: a method that does not exist.
    """
    grid = read_grid("methods")
    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"unknown method {name!r} (there are {', '.join(METHODS)})")
        grid.setdefault(name, {})
    return _choose(grid, methods, "the grid of methods")


def _choose(
    grid: dict[str, dict[str, Any]], only: Sequence[str], where: str
) -> dict[str, dict[str, Any]]:
    """The wanted configurations and what they name, in an order in which each finds what it needs.

    Apart from that the order is the wanted one, or that of the file.
    """
    ordered: dict[str, dict[str, Any]] = {}

    def take(name: str, asked_by: tuple[str, ...]) -> None:
        if name not in grid:
            raise ConfigError(f"{where} has no {name!r}; it has {', '.join(grid)}")
        if name in asked_by:
            raise ConfigError(f"{where}: {', '.join(asked_by)} need each other")
        for key in NAMED:
            if grid[name].get(key):
                take(grid[name][key], (*asked_by, name))
        ordered.setdefault(name, grid[name])

    for name in only or grid:
        take(name, ())
    if not ordered:
        raise ConfigError(f"{where} has no configuration")
    return ordered


# -- the plan -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A run in a folder of its own.

    Args:
        name: for people: the folder's, relative to that of the comparison.
        folder: absolute.
        config: complete; the folders it names are those of other jobs.
        needs: folders of the runs that must be finished before.
    """

    name: str
    folder: Path
    config: Config
    needs: tuple[Path, ...]


@dataclass(frozen=True)
class Plan:
    """What is compared, and the runs that takes.

    Args:
        rows: name of a configuration -> seed -> folder of its run.
        jobs: the runs, each after those it needs.
        settings: name -> what the grid sets.
        common: what is set for all.
        notes: what was decided, for people.
    """

    rows: dict[str, dict[int, Path]]
    jobs: list[Job]
    settings: dict[str, dict[str, Any]]
    common: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def make_plan(grid: Grid, seeds: int, common: Mapping[str, Any], out: Path) -> Plan:
    """The runs of a grid.

    Writes the ``config.toml`` of runs that others start from, which read it.

    Args:
        grid: configurations, each after those it names.
        seeds: every configuration is trained with the seeds 0 to ``seeds - 1``.
        common: keys of all configurations, weaker than the grid's.
        out: folder of the runs.

    Raises:
        ConfigError: a configuration that cannot be run, configurations that do not train on the
            same images, or a folder that holds another run.
    """
    common, notes = _one_split(grid, common)
    builder = _Builder(out.resolve(), grid, common)
    rows: dict[str, dict[int, Path]] = {name: {} for name in grid}
    for seed in range(seeds):
        for name in grid:
            rows[name][seed] = builder.add(name, seed, rows)
    settings = {name: dict(table) for name, table in grid.items()}
    return Plan(rows, list(builder.jobs.values()), settings, dict(common), notes)


def _method(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The method of a configuration, where its table does not say it."""
    if "method" in settings:
        return {}
    if name not in METHODS:
        have = ", ".join(METHODS)
        raise ConfigError(f"expected a key `method`, as no method has this name (there are {have})")
    return {"method": name}


def _resolve(name: str, settings: Mapping[str, Any], common: Mapping[str, Any]) -> Config:
    own = {key: value for key, value in settings.items() if key not in NAMED}
    try:
        return resolve({**common, **_method(name, settings), **own})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _one_split(grid: Grid, common: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Common keys with which all configurations train on the same images.

    A method whose defaults hold images out of training (cbe, for its fusion) makes all do so.
    """
    common, notes = dict(common), []
    if common.get("dataset", Config.dataset) not in DATASETS:
        have = ", ".join(DATASETS)
        raise ConfigError(f"unknown data set {common['dataset']!r} (there are {have})")
    for key in ("holdout", "holdout_min"):
        held = {n: getattr(_resolve(n, own, common).data, key) for n, own in grid.items()}
        most = max(held.values())
        if f"data.{key}" not in common and most > min(held.values()):
            common[f"data.{key}"] = most
            who = ", ".join(name for name, value in held.items() if value == most)
            notes.append(f"{who}: data.{key} = {most:g}, and so for all: one split")
    tables = {name: _data(_resolve(name, own, common)) for name, own in grid.items()}
    first, table = next(iter(tables.items()))
    for name, other in tables.items():
        for key, value in other.items():
            if value != table[key]:
                raise ConfigError(
                    f"{first} and {name} do not train and test on the same images: `{key}` is "
                    f"{table[key]!r} and {value!r}"
                )
    return common, notes


def _data(config: Config) -> dict[str, Any]:
    """What decides about the images and the groups of classes."""
    data = {f"data.{key}": value for key, value in vars(config.data).items()}
    del data["data.root"], data["data.augment"]
    return {"dataset": config.dataset, "shot_rule": config.shot_rule, **data}


class _Builder:
    """Gives every run its folder, and each folder one run."""

    def __init__(self, out: Path, grid: Grid, common: Mapping[str, Any]) -> None:
        self.out, self.grid, self.common = out, grid, common
        self.jobs: dict[Path, Job] = {}
        self.known = dict(self._there())

    def _there(self) -> Iterator[tuple[str, Path]]:
        """Fingerprint and folder of the runs that an earlier comparison left."""
        files = [*self.out.glob("*/config.toml"), *self.out.glob("*/*/config.toml")]
        for file in sorted(files):
            folder = file.parent
            if _began(folder) and not folder.is_symlink():
                try:
                    yield fingerprint(load_config(folder), self._read), folder
                except ConfigError:
                    continue  # of an older version, or of runs that are gone: nobody's, then

    def _read(self, folder: Path) -> Config:
        """The configuration of a folder, also where all of them were moved."""
        planned = self.jobs.get(folder.resolve())  # a place may be a link to another's
        if planned is not None:
            return planned.config
        for beside in (folder, self.out / folder.name, self.out / folder.parent.name / folder.name):
            if (beside / "config.toml").exists():
                return load_config(beside)
        raise ConfigError(f"there is no run {folder}")

    def add(self, name: str, seed: int, rows: Mapping[str, Mapping[int, Path]]) -> Path:
        """The run of a configuration of the grid."""
        own = dict(self.grid[name])
        for key in NAMED:
            if own.get(key):
                own[key] = str(rows[own[key]][seed])
                self._announce(Path(own[key]))
        try:
            config = resolve({**self.common, **_method(name, own), **own, "seed": seed})
            return self._settle(METHODS[config.method].complete(config), name)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error

    def _announce(self, folder: Path) -> None:
        """Write the configuration that others read, where a run has not begun by its own."""
        if not _began(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "config.toml", to_toml(self.jobs[folder].config))

    def _settle(self, config: Config, label: str, folder: Path | None = None) -> Path:
        """The folder of a configuration's run, which is planned if it is not yet.

        Args:
            config: of the run.
            label: what the folder is called, ``<label>-<seed>``.
            folder: where it must be, if it must.
        """
        needs: list[Path] = []
        experts: dict[str, Config] = {}
        for name, needed in METHODS[config.method].prerequisites(config).items():
            given = given_folder(config, name, needed)
            if given is not None:
                needs.append(given)
            elif issubclass(METHODS[needed.method], SubsetExpert):
                experts[name] = needed
            elif name in NAMED:
                needs.append(self._settle(needed, f"{label}_{name}"))
                run = str(needs[-1])
                config = (
                    replace(config, teacher=run)
                    if name == "teacher"
                    else replace(config, start=run)
                )
        if experts:
            home, runs = self._home_of(experts, f"{label}_experts-{config.seed}")
            needs += runs
            config = replace(config, expert_runs=str(home))
        mark = fingerprint(config, self._read)
        known = self.known.get(mark)
        if known is None:
            known = folder or self.out / f"{label}-{config.seed}"
            if _began(known) or known in self.jobs:
                raise ConfigError(_other_run(known, config, self._read(known)))
            self.known[mark] = known
        if known not in self.jobs:
            if _began(known):
                config = load_config(known)  # its own words, as it goes on by them
            name = str(known.relative_to(self.out))
            self.jobs[known] = Job(name, known, config, tuple(dict.fromkeys(needs)))
        if folder not in (None, known) and not (folder.exists() or folder.is_symlink()):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(os.path.relpath(known, folder.parent), target_is_directory=True)
        return known

    def _home_of(self, experts: Mapping[str, Config], name: str) -> tuple[Path, list[Path]]:
        """The folder in which all of these runs have a place, by name; and where they are."""
        known = {n: self.known.get(fingerprint(e, self._read)) for n, e in experts.items()}
        homes = {folder.parent for n, folder in known.items() if folder and folder.name == n}
        together = len(homes) == 1 and all(f and f.name == n for n, f in known.items())
        home = homes.pop() if together else self.out / name
        return home, [self._settle(e, name, home / n) for n, e in experts.items()]


def _began(folder: Path) -> bool:
    """Whether a folder holds a run that has trained."""
    return any((folder / name).exists() for name in _TRAINED)


def _other_run(folder: Path, wanted: Config, there: Config) -> str:
    now, before = what_counts(wanted), what_counts(there)
    changed = [key for key in CONFIG_KEYS if now.get(key) != before.get(key)]
    was = ", ".join(f"{k} = {before.get(k)!r} (now {now.get(k)!r})" for k in changed)
    return f"{folder} holds a run with {was or 'another start'}; choose another --out"
