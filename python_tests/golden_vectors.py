"""Reference vectors of the official codes (python_tests/golden), as tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One call of an official function: `case["loss"]` is an array, `case.params` its settings."""

    id: str
    params: dict[str, Any]
    arrays: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name].clone()

    def get(self, name: str) -> Tensor | None:
        """The array, or None where the case has none of this name."""
        return self[name] if name in self.arrays else None

    def leaf(self, name: str) -> Tensor:
        """The array as a leaf that collects its gradient."""
        return self[name].requires_grad_()


@cache
def _manifest(method: str) -> dict[str, dict[str, Any]]:
    manifests = [json.loads(path.read_text("utf-8")) for path in _manifest_paths(method)]
    return {case["id"]: case for manifest in manifests for case in manifest["cases"]}


def _manifest_paths(method: str) -> list[Path]:
    paths = sorted((ROOT / method).glob("manifest*.json"))
    if not paths:
        raise FileNotFoundError(f"no manifest in {ROOT / method}")
    return paths


def cases(method: str, function: str | None = None) -> list[str]:
    """Ids of a method's stored cases, or of those whose official function contains `function`."""
    return [
        case_id
        for case_id, case in _manifest(method).items()
        if (ROOT / method / case["file"]).exists()
        and (function is None or function in case["official"]["function"])
    ]


@cache
def load_case(method: str, case_id: str) -> Case:
    """The stored case `case_id` of `method`."""
    case = _manifest(method)[case_id]
    with np.load(ROOT / method / case["file"]) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return Case(case_id, case["params"], arrays)
