"""Trained runs as files that need no ltkernels: ``python -m ltkernels.export RUN --out DIR``.

``DIR/model.pt2`` is a `torch.export` program. It takes inputs as the data set has them, any number
N: uint8 images ``[N, channels, H, W]`` as they come from a decoder (the normalisation is part of
it, so that it cannot be forgotten), int32 token ids ``[N, L]`` of texts. It gives logits
``[N, C]``; log-probabilities for fused experts. To use it, torch is enough::

    import json, torch

    card = json.load(open("model.json"))
    model = torch.export.load("model.pt2").module()
    dtype = getattr(torch, card["input"]["dtype"])
    inputs = torch.zeros(8, *card["input"]["shape"], dtype=dtype)
    with torch.no_grad():
        classes = [card["classes"][i] for i in model(inputs).argmax(1)]

``DIR/model.safetensors`` has the weights under the names of `ltkernels.nn`, ``DIR/model.json`` says
what they are and what the program takes; the ids of a text are the line numbers of its words in
``DIR/vocabulary.txt``. A network whose experts are asked one after the other (RIDE with routers) is
exported with all of its experts: which images leave early depends on the images, and a program has
no such turns. A momentum encoder, a projection, a reference head, a router are no part of a
program.
"""

from __future__ import annotations

from .program import Check, Classifier, check_program, export_program
from .run import Exported, ExportError, export_run

__all__ = [
    "Check",
    "Classifier",
    "ExportError",
    "Exported",
    "check_program",
    "export_program",
    "export_run",
]
