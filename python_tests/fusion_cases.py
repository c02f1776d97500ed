"""Random experts: hypothesis strategies shared by the fusion tests."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import strategies as st


@st.composite
def experts(draw, overlapping=None, max_rows=5, reject=None):
    """(logits, classes, num_classes): any subsets, reject classes, -inf logits, missing classes."""
    num_classes = draw(st.integers(1, 7))
    overlap = draw(st.booleans()) if overlapping is None else overlapping
    if overlap:
        count = draw(st.integers(1, 4))
        choices = st.lists(
            st.integers(0, num_classes - 1), min_size=1, max_size=num_classes, unique=True
        )
        classes = [draw(choices) for _ in range(count)]
    else:
        count = draw(st.integers(1, min(3, num_classes)))
        order = draw(st.permutations(range(num_classes)))
        known = draw(st.integers(count, num_classes))
        cuts = sorted(
            draw(
                st.lists(
                    st.integers(1, known - 1), min_size=count - 1, max_size=count - 1, unique=True
                )
            )
            if count > 1
            else []
        )
        bounds = [0, *cuts, known]
        classes = [list(order[a:b]) for a, b in pairwise(bounds)]
    rows = draw(st.integers(1, max_rows))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    impossible = draw(st.booleans())
    logits = []
    for own in classes:
        rejects = draw(st.booleans()) if reject is None else reject
        z = spread * torch.randn(rows, len(own) + rejects, generator=generator, dtype=torch.float64)
        if impossible and z.shape[1] > 1:
            gone = torch.rand(z.shape, generator=generator) < 0.2
            gone[:, 0] = False  # not the whole row
            z = z.masked_fill(gone, -torch.inf)
        logits.append(z)
    return logits, classes, num_classes
