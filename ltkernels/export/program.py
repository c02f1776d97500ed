"""A method's prediction as a `torch.export` program, and whether the two agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import ltkernels
from ltkernels.data import Augmentation, Inputs, Transform, load_batches
from ltkernels.methods import CBE
from ltkernels.nn import RoutedExperts

from .fusion import fusion_program

if TYPE_CHECKING:
    from ltkernels.methods import Method

__all__ = ["Check", "Classifier", "check_program", "export_program", "predicted_by_all"]

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit (at least 1)."""


def predicted_by_all(method: Method) -> tuple[Callable[[Tensor], Tensor], str]:
    """What a program of a method computes of normalised images, and what is to be known of it.

    Args:
        method: trained, in evaluation mode.

    Returns:
        The eager function, and a sentence where it is not the method's own prediction; else "".
    """
    if isinstance(method.model, RoutedExperts):
        network = method.model.network
        return network.predict, (
            f"every image is shown to all {network.num_experts} experts: where an image leaves "
            "early depends on the image, which a program cannot follow"
        )
    return method.predict, ""


class Classifier(nn.Module):
    """Images to logits, normalisation included.

    Args:
        method: trained, in evaluation mode.
        transform: what normalises; its ``mean`` and ``std`` become buffers.

    Shape:
        uint8 ``[N, channels, H, W]`` -> ``[N, C]``.

    Raises:
        ValueError: a fusion that no program can hold.
    """

    def __init__(self, method: Method, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.normalizes = isinstance(transform, Augmentation)
        if self.normalizes:
            for name in ("mean", "std"):
                value = torch.tensor([255 * v for v in getattr(transform, name)])
                self.register_buffer(name, value[:, None, None])
        if isinstance(method, CBE):
            self.model: nn.Module = _Bank(method)
            self._predict: Callable[[Tensor], Tensor] = self.model
        else:
            routed = isinstance(method.model, RoutedExperts)
            self.model = method.model.network if routed else method.model  # type: ignore[assignment]
            self._predict = predicted_by_all(method)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, C]`` of images as they are."""
        if self.normalizes:
            x = (images.float() - self.get_buffer("mean")) / self.get_buffer("std")
        else:
            x = self.transform.normalize(images)
        return self._predict(x)


class _Bank(nn.Module):
    """Class-balanced experts and their fusion."""

    def __init__(self, method: CBE) -> None:
        super().__init__()
        bank = method.model
        self.networks = bank.networks
        self.corrections = bank.corrections
        self.fusion = fusion_program(bank.fusion)

    def forward(self, x: Tensor) -> Tensor:
        logits = []
        for e, network in enumerate(self.networks):
            z: Tensor = network(x)
            if self.corrections:
                own, reject = z[:, :-1], z[:, -1:]
                z = torch.cat([own, reject + self.corrections[e]], 1)
            logits.append(z)
        fused: Tensor = self.fusion(logits)
        return fused


def export_program(classifier: Classifier, images: Tensor) -> ExportedProgram:
    """A program of a classifier for any number of images.

    Args:
        classifier: in evaluation mode, on the CPU.
        images: some, at least 2, to learn their shape and dtype from.

    Raises:
        RuntimeError: an op of ltkernels is left in the program, which would then need ltkernels.
    """
    # The definitions are made of torch's own ops.
    with torch.no_grad(), ltkernels.backend("reference"):
        program = torch.export.export(
            classifier.eval(), (images,), dynamic_shapes=({0: Dim("batch")},), strict=False
        )
    foreign = sorted(
        {str(node.target) for node in program.graph.nodes if "ltkernels" in str(node.target)}
    )
    if foreign:
        raise RuntimeError(f"the program needs ltkernels for {', '.join(foreign)}")
    return program


@dataclass(frozen=True)
class Check:
    """How far a program is from the eager model.

    Args:
        images: test images compared.
        max_difference: largest difference of two logits.
        tolerance: what is allowed of it.
        same_class: images of the same largest logit.
        ties: of the others, those whose two largest logits the tolerance does not tell apart.
        logits: the program's, ``[M, C]``.
    """

    images: int
    max_difference: float
    tolerance: float
    same_class: int
    ties: int
    logits: Tensor

    @property
    def passed(self) -> bool:
        """Whether program and model agree."""
        return self.max_difference <= self.tolerance and self.same_class + self.ties == self.images


@torch.no_grad()
def check_program(
    program: Callable[[Tensor], Tensor], inputs: Inputs, expected: Tensor, batch_size: int = 512
) -> Check:
    """Run a program on inputs, the first of them alone, and compare with the eager logits.

    Args:
        program: ``torch.export.load(...).module()``.
        inputs: M of them.
        expected: eager logits, ``[M, C]``.
        batch_size: inputs at a time.
    """
    batches = [b for b in torch.arange(len(inputs)).tensor_split([1]) if len(b)]
    batches = [part for batch in batches for part in torch.split(batch, batch_size)]
    found = torch.cat([program(chunk) for chunk in load_batches(inputs, batches)])
    # Impossible classes are impossible in both.
    both = found.isneginf() & expected.isneginf()
    gap = (found - expected).masked_fill(both, 0).abs()
    difference = float(gap.nan_to_num(torch.inf).max())
    finite = expected[expected.isfinite()].abs()
    tolerance = TOLERANCE * max(1.0, float(finite.max()) if len(finite) else 1.0)
    differing = found.argmax(1) != expected.argmax(1)
    two = expected.topk(min(2, expected.shape[1]), dim=1).values
    close = (two[:, 0] - two[:, -1]) <= 2 * tolerance
    return Check(
        images=len(inputs),
        max_difference=difference,
        tolerance=tolerance,
        same_class=int((~differing).sum()),
        ties=int((differing & close).sum()),
        logits=found,
    )
