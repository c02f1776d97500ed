"""The classes of the experts, against the released code's."""

from __future__ import annotations

from golden_vectors import load_case
from ltkernels.data.subsets import class_subsets


def test_the_released_experts_take_these_classes():
    small = load_case("cbe", "threshold_small_few")
    *_, few = class_subsets(small["cls_num_list"], (20, 100), "sharma")
    assert few.tolist() == small["class_mask"].nonzero().flatten().tolist()
    places = load_case("cbe", "threshold_places_val_many_noopen")
    many, *_ = class_subsets(places["cls_num_list"], (20, 100), "sharma")
    assert many.tolist() == places["class_mask"].nonzero().flatten().tolist()
