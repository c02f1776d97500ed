"""What all tests share: devices, and hypothesis profiles."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

sys.path.insert(0, str(Path(__file__).parent))  # `import strategies` and other shared helpers

# What a shell runs in the background ignores Ctrl-C, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The default profile draws the same examples in every run, HYPOTHESIS_PROFILE=fuzz new ones.
# The phase that explains failures runs under a tracer, which makes kernels' tests crawl.
_common = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "phases": [phase for phase in Phase if phase is not Phase.explain],
}
settings.register_profile("default", derandomize=True, **_common)
_fuzz_examples = int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "2000"))
settings.register_profile("fuzz", max_examples=_fuzz_examples, print_blob=True, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _devices() -> list[str]:
    from ltkernels import _ops

    return ["cpu", "cuda"] if torch.cuda.is_available() and _ops.built_for_cuda else ["cpu"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than ten seconds")


@pytest.fixture(scope="session", params=_devices())
def device(request: pytest.FixtureRequest) -> str:
    """A device that the fused kernels were built for."""
    name: str = request.param
    return name
