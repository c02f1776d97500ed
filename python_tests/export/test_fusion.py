"""Fusions as straight-line computations: the numbers of `ltkernels.fusion`."""

from __future__ import annotations

import pytest
import torch

from ltkernels.export.fusion import fusion_program
from ltkernels.fusion import STRATEGIES, make_fusion

DISJOINT = [[0, 1], [2, 3], [4, 5]]
LISTS = {
    "three parts": (DISJOINT, True),
    "without reject": (DISJOINT, False),
    "some classes unknown": ([[0, 1], [2, 5]], True),
    "one of all": ([[0, 1, 2, 3, 4, 5]], False),
    "overlapping": ([[0, 1, 2], [2, 3], [3, 4, 5]], True),
}


@pytest.mark.parametrize("case", LISTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fusions_without_turns(strategy, case):
    classes, reject = LISTS[case]
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (200,), generator=generator)
    logits = [3 * torch.randn(200, len(own) + int(reject), generator=generator) for own in classes]
    known = torch.isin(labels, torch.tensor([c for own in classes for c in own]))
    fusion = make_fusion(strategy, classes, 6, reject=reject)
    fusion.fit([z[known] for z in logits], labels[known])
    if strategy == "kl_min" and case == "overlapping":
        with pytest.raises(ValueError, match="no program"):
            fusion_program(fusion)
        return
    with torch.no_grad():
        expected, found = fusion(logits), fusion_program(fusion)(logits)
    assert torch.equal(found.isneginf(), expected.isneginf())
    torch.testing.assert_close(found.exp(), expected.exp(), rtol=1e-4, atol=1e-6)
