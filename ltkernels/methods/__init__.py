"""Training methods, one file each; a file reads like its paper's algorithm.

``METHODS`` is what ``python -m ltkernels.train METHOD`` takes. A new method is a subclass of
:class:`Method` in a file of its own and one entry here.
"""

from __future__ import annotations

from .balanced_softmax import BalancedSoftmax
from .bkd import BKD
from .cb import ClassBalanced
from .cbe import CBE
from .ce import CrossEntropy
from .crt import CRT
from .ecl import ECL
from .focal import Focal
from .kd import KD
from .ldam_drw import LDAMDRW
from .lfme import LFME
from .method import Batch, Context, Method, Stage, TestSet
from .ncl import NCL
from .ride import RIDE
from .ride_bkd import RIDEBKD
from .subset_expert import SubsetExpert

__all__ = [
    "BKD",
    "CBE",
    "CRT",
    "ECL",
    "KD",
    "LDAMDRW",
    "LFME",
    "METHODS",
    "NCL",
    "RIDE",
    "RIDEBKD",
    "BalancedSoftmax",
    "Batch",
    "ClassBalanced",
    "Context",
    "CrossEntropy",
    "Focal",
    "Method",
    "Stage",
    "SubsetExpert",
    "TestSet",
]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        CrossEntropy,
        Focal,
        ClassBalanced,
        LDAMDRW,
        BalancedSoftmax,
        KD,
        BKD,
        RIDE,
        RIDEBKD,
        NCL,
        ECL,
        CRT,
        SubsetExpert,
        LFME,
        CBE,
    )
}
"""Methods by the name the command line takes."""
