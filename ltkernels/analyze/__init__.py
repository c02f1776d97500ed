"""Analyses of the papers: ``python -m ltkernels.analyze NAME``, a file each."""

from __future__ import annotations

from .bias_variance import BiasVarianceReport, analyze_bias_variance
from .official import Published, evaluate_official, read_official
from .tau_norm import TauNorm, analyze_tau_norm, tau_normalize

__all__ = [
    "BiasVarianceReport",
    "Published",
    "TauNorm",
    "analyze_bias_variance",
    "analyze_tau_norm",
    "evaluate_official",
    "read_official",
    "tau_normalize",
]
