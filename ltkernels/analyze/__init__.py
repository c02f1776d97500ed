"""Analyses of the papers: ``python -m ltkernels.analyze NAME``, a file each."""

from __future__ import annotations

from .bias_variance import BiasVarianceReport, analyze_bias_variance
from .curves import plot_curves
from .longtailness import analyze_longtailness
from .tau_norm import TauNorm, analyze_tau_norm, tau_normalize

__all__ = [
    "BiasVarianceReport",
    "TauNorm",
    "analyze_bias_variance",
    "analyze_longtailness",
    "analyze_tau_norm",
    "plot_curves",
    "tau_normalize",
]
