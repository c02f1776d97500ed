"""Experts for parts of the classes, joined to one classifier.

Sharma et al., "Long-tailed recognition using class-balanced experts", DAGM GCPR 2020.

An expert e knows the classes ``S_e``; its logits are ``[N, S_e]``, or ``[N, S_e + 1]`` with a last
column for "none of mine" (the reject class). Every strategy is called with the list of the experts'
logits and the list of their class indices::

    kl_min(expert_logits, classes)                                    # probabilities [N, C]
    soft_vote(expert_logits, classes)
    calibration = JointCalibration(classes).fit(val_logits, val_labels)
    calibration(expert_logits, classes)                               # log-probabilities [N, C]

:class:`ExpertSelection` and :class:`Stacking` are used as :class:`JointCalibration`: fitted on
images that no expert was trained on. A model of all classes is an expert, too: with
``classes = [range(C), range(C), ...]`` the same calls join any set of trained models.
"""

from __future__ import annotations

from ._experts import ClassLists
from .balance import balanced_weight
from .calibration import JointCalibration
from .kl import kl_min
from .oracle import oracle
from .reject import correct_reject, reject_correction
from .selection import ExpertSelection
from .stacking import Stacking
from .strategies import STRATEGIES, Strategy, make_fusion
from .strategy import LearnedFusion
from .voting import expand_posterior, soft_vote

__all__ = [
    "STRATEGIES",
    "ClassLists",
    "ExpertSelection",
    "JointCalibration",
    "LearnedFusion",
    "Stacking",
    "Strategy",
    "balanced_weight",
    "correct_reject",
    "expand_posterior",
    "kl_min",
    "make_fusion",
    "oracle",
    "reject_correction",
    "soft_vote",
]
