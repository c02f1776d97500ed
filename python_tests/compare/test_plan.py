"""Grids, and the runs they take: each of them once."""

from __future__ import annotations

import json

import pytest

from ltkernels.compare.identity import fingerprint
from ltkernels.compare.plan import grid_names, make_plan, method_grid, read_grid
from ltkernels.train import ConfigError, load_config, resolve
from ltkernels.train.config import to_toml

DIGITS = {"dataset": "digits-lt"}


def finish(plan, *names):
    """Make runs look finished."""
    for job in plan.jobs:
        if not names or job.folder.name in names:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "config.toml").write_text(to_toml(job.config))
            (job.folder / "result.json").write_text(json.dumps({}))


def folders(plan, out):
    return [str(job.folder.relative_to(out)) for job in plan.jobs]


@pytest.fixture
def out(tmp_path):
    return tmp_path.resolve() / "out"


@pytest.mark.parametrize("name", grid_names())
def test_every_line_of_a_grid_is_a_run_of_its_own(name, out):
    grid = read_grid(name)
    plan = make_plan(grid, 1, {"dataset": "glyph-lt"}, out)
    assert list(plan.rows) == list(grid)
    rows = [runs[0] for runs in plan.rows.values()]
    assert len(set(rows)) == len(rows)
    assert len({fingerprint(job.config) for job in plan.jobs if not job.needs}) == sum(
        not job.needs for job in plan.jobs
    )
    # Each after those it needs.
    before = set()
    for job in plan.jobs:
        assert before.issuperset(job.needs)
        before.add(job.folder)


def test_there_are_grids():
    assert {"methods", "ride", "ride_ablation", "lfme_ablation"} <= set(grid_names())


def test_methods_share_teacher_start_and_experts(out):
    grid = method_grid(["kd", "bkd", "crt", "lfme"])
    plan = make_plan(grid, 2, DIGITS, out)
    assert list(plan.rows) == ["ce", "kd", "bkd", "crt", "lfme"]
    of_seed = ["ce", "kd", "bkd", "crt", "lfme_experts", "lfme"]
    assert folders(plan, out) == [
        path
        for seed in (0, 1)
        for name in of_seed
        for path in (
            [f"{name}-{seed}/expert{e}" for e in range(3)]
            if name == "lfme_experts"
            else [f"{name}-{seed}"]
        )
    ]
    job = {job.folder.name: job for job in plan.jobs}
    assert job["bkd-1"].config.teacher == str(out / "ce-1")
    assert job["crt-0"].config.start == str(out / "ce-0")
    assert job["crt-0"].needs == (out / "ce-0",)
    assert job["lfme-1"].config.expert_runs == str(out / "lfme_experts-1")
    assert job["lfme-1"].needs == tuple(out / "lfme_experts-1" / f"expert{e}" for e in range(3))


def test_what_is_not_named_is_found_by_what_it_is(out):
    # Nobody says that cbe's baseline is ce, and all hold out what cbe does.
    plan = make_plan(method_grid(["ce", "cbe"]), 1, DIGITS, out)
    assert folders(plan, out) == ["ce-0", "cbe-0"]
    assert plan.jobs[1].config.start == str(out / "ce-0")
    assert plan.jobs[0].config.data.holdout == 0.1
    assert "cbe: data.holdout = 0.1" in plan.notes[0]
    # Asked for alone, it trains one; asked for ce later, that is the one.
    alone = make_plan(method_grid(["cbe"]), 1, DIGITS, out / "alone")
    assert folders(alone, out) == ["alone/cbe_start-0", "alone/cbe-0"]
    finish(alone)
    later = make_plan(method_grid(["ce", "cbe"]), 1, DIGITS, out / "alone")
    assert later.rows == {"ce": {0: out / "alone/cbe_start-0"}, "cbe": {0: out / "alone/cbe-0"}}


def test_two_names_for_one_configuration_are_one_run(out):
    grid = {"a": {"method": "ce"}, "b": {"method": "ce", "experts": 5, "loss.alpha": 3.0}}
    plan = make_plan(grid, 1, DIGITS, out)
    assert plan.rows == {"a": {0: out / "a-0"}, "b": {0: out / "a-0"}}
    assert len(plan.jobs) == 1


def test_the_teacher_of_a_grid_and_an_unnamed_one_are_the_same(out):
    distilled = {"method": "ride", "experts": 3, "ride.distill": True}
    grid = {"six": {"method": "ride", "experts": 6}, "three": {**distilled}}
    plan = make_plan(grid, 1, DIGITS, out)
    assert folders(plan, out) == ["six-0", "three-0"]
    assert plan.jobs[1].config.teacher == str(out / "six-0")
    unnamed = make_plan({"three": distilled}, 1, DIGITS, out / "unnamed")
    assert folders(unnamed, out) == ["unnamed/three_teacher-0", "unnamed/three-0"]


def test_lfme_variants_share_the_experts_that_are_the_same(out):
    variants = {
        "lfme": {},
        "focal": {"method": "lfme", "lfme.classification": "focal"},
        "halved": {"method": "lfme", "lfme.expert_batch": "halved"},
    }
    plan = make_plan(variants, 1, DIGITS, out)
    # The first expert of `halved` has whole batches, too.
    experts = [f for f in folders(plan, out) if "experts" in f]
    assert experts == [
        *(f"lfme_experts-0/expert{e}" for e in range(3)),
        *(f"halved_experts-0/expert{e}" for e in (1, 2)),
    ]
    there = out / "halved_experts-0" / "expert0"
    assert there.resolve() == out / "lfme_experts-0" / "expert0"
    job = {job.folder.name: job for job in plan.jobs}
    assert job["focal-0"].config.expert_runs == job["lfme-0"].config.expert_runs
    assert job["halved-0"].needs[0] == out / "lfme_experts-0" / "expert0"


def test_a_folder_with_another_run_is_an_error_that_names_the_key(out):
    finish(make_plan({"ce": {}}, 1, {**DIGITS, "epochs": 3}, out))
    with pytest.raises(ConfigError, match=r"ce-0 holds a run with epochs = 3 \(now 4\)"):
        make_plan({"ce": {}}, 1, {**DIGITS, "epochs": 4}, out)
    # Threads, and keys that ce does not read, make no other run of it.
    again = make_plan({"ce": {}}, 1, {**DIGITS, "epochs": 3, "threads": 2, "experts": 9}, out)
    assert again.rows["ce"][0] == out / "ce-0"


def test_a_folder_that_has_not_begun_is_free(out):
    plan = make_plan(method_grid(["crt"]), 1, {**DIGITS, "epochs": 3}, out)
    assert (out / "ce-0" / "config.toml").exists()  # which crt reads
    make_plan(method_grid(["crt"]), 1, {**DIGITS, "epochs": 4}, out)
    assert plan.jobs[0].config.epochs == 3


def test_finished_runs_are_found_when_the_folder_moved(out):
    finish(make_plan(method_grid(["crt", "lfme"]), 1, DIGITS, out))
    moved = out.rename(out.with_name("moved"))
    plan = make_plan(method_grid(["crt", "lfme"]), 1, DIGITS, moved)
    assert plan.rows["crt"] == {0: moved / "crt-0"}
    assert plan.rows["lfme"] == {0: moved / "lfme-0"}


def test_one_split_or_an_error(out):
    grid = {"ce": {}, "half": {"method": "ce", "data.imbalance": 5.0}}
    with pytest.raises(ConfigError, match=r"ce and half do not train .*`data.imbalance` is None"):
        make_plan(grid, 1, DIGITS, out)
    with pytest.raises(ConfigError, match=r"cbe: `data.holdout`: expected above 0"):
        make_plan(method_grid(["ce", "cbe"]), 1, {**DIGITS, "data.holdout": 0.0}, out)
    plan = make_plan(method_grid(["ce", "cbe"]), 1, {**DIGITS, "data.holdout": 0.2}, out)
    assert {job.config.data.holdout for job in plan.jobs} == {0.2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nmethod = 'ce'\nteacher = 'b'\n", "has no 'b'; it has a"),
        ("[a]\nmethod = 'kd'\nteacher = 'a'\n", "a need each other"),
        ("[a]\nepochs = 3\n", "a: expected a key `method`"),
        ("[ce]\nepoch = 3\n", "ce: unknown key `epoch`; did you mean `epochs`"),
        ("epochs = 3\n", "expected tables"),
        ("", "no configuration"),
    ],
)
def test_grids_that_cannot_be_run_say_why(text, message, tmp_path, out):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        make_plan(read_grid(str(path)), 1, DIGITS, out)


def test_only_takes_what_is_named_and_what_that_needs():
    assert list(read_grid("ride", ["ride3_routed", "ce"])) == ["ride3", "ride3_routed", "ce"]
    with pytest.raises(ConfigError, match="has no 'ride9'"):
        read_grid("ride", ["ride9"])
    with pytest.raises(ConfigError, match="there is no grid 'none'"):
        read_grid("none")
    with pytest.raises(ConfigError, match="unknown method 'rido'"):
        method_grid(["rido"])


def test_the_fingerprint_sees_other_runs_through_their_paths(tmp_path):
    for name, epochs in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        config = resolve({"method": "ce", **DIGITS, "epochs": epochs})
        (tmp_path / name / "config.toml").write_text(to_toml(config))

    def student(teacher):
        return fingerprint(resolve({"method": "kd", **DIGITS, "teacher": teacher}))

    a, b, c = (student(str(tmp_path / name)) for name in "abc")
    assert a == b != c
    assert load_config(tmp_path / "a").epochs == 3
