"""Temperature scaling, and the numbers by group."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from ltkernels.evaluate import fit_temperature
from ltkernels.evaluate.grouped import grouped
from ltkernels.metrics import expected_calibration_error


def draw(rows, classes=5, temperature=1.0, seed=0):
    """Logits, and labels that are as likely as the logits over the temperature say."""
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((z / temperature).softmax(1), 1, generator=generator)
    return z, labels.squeeze(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    z, labels = draw(20_000, temperature=temperature)
    found = fit_temperature(z, labels, torch.ones(len(z)))
    assert found == pytest.approx(temperature, rel=0.04)
    assert fit_temperature(7 * z, labels, torch.ones(len(z))) == pytest.approx(7 * found)


def test_no_other_temperature_is_likelier():
    z, labels = draw(200, temperature=2.0)
    weight = torch.rand(len(z), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = fit_temperature(z, labels, weight)

    def loss(temperature):
        return float((weight * cross_entropy(z / temperature, labels, reduction="none")).sum())

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))


def test_classes_weigh_the_same_unless_told_otherwise():
    z, labels = draw(300)
    rare = (labels == 0).nonzero().flatten()
    # More copies of every image of a class change nothing.
    more = torch.cat([torch.arange(300), rare, rare])
    assert fit_temperature(z[more], labels[more]) == pytest.approx(fit_temperature(z, labels))
    even = torch.ones(len(more))
    assert fit_temperature(z[more], labels[more], even) != pytest.approx(
        fit_temperature(z, labels), rel=1e-6
    )


def test_impossible_classes_and_the_bounds():
    z, labels = draw(300, temperature=2.0)
    wider = torch.cat([z, torch.full((300, 1), -torch.inf)], 1)
    assert fit_temperature(wider, labels) == pytest.approx(fit_temperature(z, labels))
    # An image whose class is impossible says nothing about the temperature.
    labels_and_one = torch.cat([labels, torch.tensor([5])])
    both = torch.cat([wider, wider[:1]])
    weight = torch.ones(301)
    assert fit_temperature(both, labels_and_one, weight) == pytest.approx(
        fit_temperature(z, labels, torch.ones(300))
    )
    assert fit_temperature(torch.eye(4) * 5, torch.arange(4)) == pytest.approx(0.01)
    assert fit_temperature(torch.eye(4) * 5, torch.arange(4).roll(1)) == pytest.approx(100)
    with pytest.raises(ValueError, match="possible class"):
        fit_temperature(wider, torch.full((300,), 5))


def test_numbers_by_group():
    z, labels = draw(400, classes=6)
    counts = torch.tensor([150, 120, 50, 30, 8, 4])
    found = grouped(z, labels, counts, "kang")
    right = (z.argmax(1) == labels).double()
    of_class = torch.stack([right[labels == c].mean() for c in range(6)])
    groups = {"overall": range(6), "many": [0, 1], "medium": [2, 3], "few": [4, 5]}
    for name, classes in groups.items():
        own = torch.isin(labels, torch.tensor(list(classes)))
        ece = expected_calibration_error(z[own].softmax(1), labels[own])
        assert found.accuracy[name] == pytest.approx(100 * float(of_class[list(classes)].mean()))
        assert found.ece[name] == pytest.approx(ece)
    unknown = grouped(z, labels, None, "kang")
    assert unknown.accuracy["overall"] == found.accuracy["overall"]
    assert unknown.accuracy["few"] is None
    assert unknown.ece["few"] is None
    none_rare = grouped(z, labels, counts + 100, "kang")
    assert none_rare.accuracy["few"] is None
