"""Subsets of classes: where the thresholds belong, and Table 1 of LFME."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golden_vectors import load_case
from ltkernels.data.subsets import (
    class_subsets,
    format_longtailness,
    longtailness,
    subset_names,
)
from ltkernels.metrics import shot_groups

RULES = ("liu", "kang", "sharma", "wang")


@pytest.mark.parametrize("rule", RULES)
def test_two_thresholds_are_the_shot_rules(rule):
    counts = torch.arange(1, 131)
    group = shot_groups(counts, rule)
    subsets = class_subsets(counts, (20, 100), rule)
    for index, classes in enumerate(subsets):
        assert torch.equal(classes, (group == index).nonzero().flatten())


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    thresholds=st.sets(st.integers(1, 60), min_size=1, max_size=6).map(sorted),
    rule=st.sampled_from((*RULES, "overlap")),
)
def test_subsets_cover_the_classes_from_most_images_to_fewest(counts, thresholds, rule):
    subsets = class_subsets(counts, thresholds, rule)
    assert len(subsets) == len(subset_names(thresholds, rule)) == len(thresholds) + 1
    members = torch.cat(subsets).tolist()
    assert set(members) == set(range(len(counts)))
    doubled = sum(n in thresholds for n in counts) if rule == "overlap" else 0
    assert len(members) == len(counts) + doubled
    previous = 61
    for classes in subsets:
        assert torch.equal(classes, classes.sort().values)
        own = [counts[c] for c in classes]
        assert all(n <= previous for n in own)
        previous = min(own, default=previous)


def test_a_threshold_with_overlap_belongs_to_both_sides():
    many, medium, few = class_subsets([150, 100, 60, 20, 5], (20, 100), "overlap")
    assert (many.tolist(), medium.tolist(), few.tolist()) == ([0, 1], [1, 2, 3], [3, 4])


def test_names_say_the_counts():
    assert subset_names() == (">=100", "21..99", "<=20")
    assert subset_names((20, 100), "kang") == (">=101", "20..100", "<=19")
    assert subset_names((20, 100), "overlap") == (">=100", "20..100", "<=20")
    assert subset_names((7,)) == (">=8", "<=7")


@pytest.mark.parametrize("thresholds", [(), (100, 20), (20, 20), (0, 20)])
def test_thresholds_must_rise(thresholds):
    with pytest.raises(ValueError, match="`thresholds` to be rising numbers >= 1"):
        class_subsets([1, 2], thresholds)


def test_unknown_rule():
    with pytest.raises(ValueError, match="`rule` to be one of"):
        class_subsets([1, 2], (1,), "most")


def test_table_1_of_lfme():
    case = load_case("lfme", "longtailness_imagenet_lt")
    rows = longtailness(case["cls_num_list"])
    assert [row.classes for row in rows] == [1000, 391, 463, 146]
    assert rows[0].images == 115_846
    found = torch.tensor(
        [[row.ratio, row.divergence, row.deviation, row.gini] for row in rows], dtype=torch.float64
    )
    torch.testing.assert_close(found, case["table1_recomputed"], rtol=1e-9, atol=1e-12)
    table = format_longtailness(rows).splitlines()
    assert table[2].split() == ["entire", "1000", "115,846", "256.0", "0.707", "0.769", "0.524"]
    assert table[5].split() == ["<=20", "146", "1,843", "4.0", "0.099", "0.320", "0.209"]


def test_an_empty_subset_has_no_figures():
    row = longtailness(torch.tensor([50, 30]))[-1]
    assert (row.classes, row.images, row.ratio, row.gini) == (0, 0, None, None)
    assert format_longtailness([row]).splitlines()[-1].split()[1:] == ["0", "0", *"----"]
