"""Files are replaced whole or not at all."""

from __future__ import annotations

import os

import pytest
import torch

from ltkernels.train.checkpoint import load_checkpoint, save_checkpoint, write_atomic


def test_round_trip(tmp_path):
    state = {"a": torch.arange(3.0), "n": 3, "rows": [{"x": None, "y": 0.5}]}
    save_checkpoint(tmp_path / "c.pt", state)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded.pop("a"), state.pop("a"))
    assert loaded == state


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_code_is_unpickled(tmp_path):
    torch.save({"x": print}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="weights_only"):
        load_checkpoint(tmp_path / "evil.pt")
