"""Lets the suite import the modules beside it, and gives it the options --compile and --threads."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compile", action="store_true", help="bench: also time torch.compile (compiling is slow)"
    )
    parser.addoption("--threads", type=int, default=1, help="bench: threads of torch")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("threads"))
