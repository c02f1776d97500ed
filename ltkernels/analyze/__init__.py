"""Analyses of the papers: ``python -m ltkernels.analyze NAME``, a file each."""

from __future__ import annotations

from .bias_variance import BiasVarianceReport, analyze_bias_variance
from .curves import plot_curves
from .features import Embedding, analyze_features, principal_components
from .landscape import Landscape, analyze_landscape, filter_normalized
from .longtailness import analyze_longtailness
from .official import Published, evaluate_official, read_official
from .tau_norm import TauNorm, analyze_tau_norm, tau_normalize

__all__ = [
    "BiasVarianceReport",
    "Embedding",
    "Landscape",
    "Published",
    "TauNorm",
    "analyze_bias_variance",
    "analyze_features",
    "analyze_landscape",
    "analyze_longtailness",
    "analyze_tau_norm",
    "evaluate_official",
    "filter_normalized",
    "plot_curves",
    "principal_components",
    "read_official",
    "tau_normalize",
]
