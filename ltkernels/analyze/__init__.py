"""Analyses of the papers: ``python -m ltkernels.analyze NAME``, a file each."""

from __future__ import annotations

from .bias_variance import BiasVarianceReport, analyze_bias_variance

__all__ = ["BiasVarianceReport", "analyze_bias_variance"]
