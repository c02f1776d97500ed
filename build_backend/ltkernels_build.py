"""PEP 517 backend: setuptools, beside the torch that is already installed.

pip's isolated build runs the same interpreter, so the installed torch can be put on the build's
path instead of being downloaded again (an unpinned torch is gigabytes of CUDA). Front ends that
make a real environment (uv, python -m build) have none to show; they are asked for one.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.util import find_spec
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need nothing from us)

# Older ones do not read this pyproject.toml, and say so in forty lines.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"ltkernels: setuptools 77 or newer is needed to build, found {setuptools.__version__}; "
        "run: pip install -U setuptools"
    )

# The release the package is tested with; a CPU index serves it as well.
TORCH_REQUIREMENT = "torch==2.13.0"


def _show_installed_torch() -> bool:
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        if folder not in sys.path:
            sys.path.append(folder)
    return find_spec("torch") is not None


def _missing() -> list[str]:
    if _show_installed_torch():
        return []
    # pip would fetch torch for the build alone, and its newest dependencies; and the package could
    # not be used without an installed one anyhow.
    if "PIP_BUILD_TRACKER" in os.environ:
        sys.exit(f"ltkernels: torch is needed to build; first run: pip install {TORCH_REQUIREMENT}")
    return [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_missing()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_missing()]


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    _show_installed_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    _show_installed_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
