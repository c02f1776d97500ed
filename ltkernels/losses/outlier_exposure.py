"""The loss of an expert that is to be undecided about images of classes it does not know."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltkernels import _checks

__all__ = ["OutlierExposureLoss"]


class OutlierExposureLoss(nn.Module):
    r"""Cross-entropy on known classes, cross-entropy from the uniform distribution on the others.

    .. math:: E_{in}[-\log p_y] + \lambda E_{out}[H(U; p)], \quad
        H(U; p) = -\frac 1 S \sum_c \log p_c

    Each mean is over its own images; one without images is 0.

    Args:
        factor: lambda, >= 0; 0.5 in the paper.

    Shape:
        logits ``[N, S]``, target int64 ``[N]`` (not read where the image is an outlier), outlier
        bool ``[N]`` -> scalar.

    Source: Sharma et al., "Long-tailed recognition using class-balanced experts", sec. 3.2.2,
    after Hendrycks et al., "Deep anomaly detection with outlier exposure", ICLR 2019. No code was
    released.
    """

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        if not _checks.number("OutlierExposureLoss", "factor", factor) >= 0:
            raise ValueError(f"`OutlierExposureLoss`: expected `factor` >= 0, got {factor}")
        self.factor = factor

    def forward(self, logits: Tensor, target: Tensor, outlier: Tensor) -> Tensor:
        """The loss; see the class."""
        op = "OutlierExposureLoss"
        z = _checks.logits(op, "logits", logits)
        for name, value, dtype in (
            ("target", target, torch.int64),
            ("outlier", outlier, torch.bool),
        ):
            if _checks.tensor(op, name, value).dtype != dtype:
                raise TypeError(f"`{op}`: expected `{name}` to be {dtype}, got {value.dtype}")
            if list(value.shape) != [len(z)]:
                raise ValueError(
                    f"`{op}`: expected `{name}` to be [N] = [{len(z)}], got {list(value.shape)}"
                )
        log_p = z.to(_checks.compute_dtype(z)).log_softmax(1)
        known = log_p.gather(1, target.masked_fill(outlier, 0)[:, None]).squeeze(1)
        inside, outside = (~outlier).to(log_p), outlier.to(log_p)
        loss = -(known * inside).sum() / inside.sum().clamp(min=1)
        uniform = -(log_p.mean(1) * outside).sum() / outside.sum().clamp(min=1)
        return loss + self.factor * uniform

    def extra_repr(self) -> str:
        """The factor, for ``print(loss)``."""
        return f"factor={self.factor}"
