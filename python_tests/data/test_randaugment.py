"""RandAugment: every image its own operations, of the one magnitude."""

import pytest
import torch

from ltkernels.data import Augmentation, RandAugmentView, derived_generator, make_view, rand_augment
from ltkernels.data.autoaugment import OPERATIONS


def batch(n=64):
    generator = derived_generator(0, "images")
    return torch.randint(0, 256, (n, 3, 12, 10), generator=generator, dtype=torch.uint8)


def test_one_operation_is_one_of_the_fourteen():
    images = batch()
    out = rand_augment(images, derived_generator(1), operations=1, magnitude=9)
    names = set()
    for image, changed in zip(images, out, strict=True):
        one = image[None]
        made = {
            name: operation(one, 0.9, torch.tensor([sign]), 128)[0]
            for name, operation in OPERATIONS.items()
            for sign in (-1.0, 1.0)
            if torch.equal(operation(one, 0.9, torch.tensor([sign]), 128)[0], changed)
        }
        if torch.equal(image, changed):
            made["identity"] = changed
        assert made
        names |= set(made)
    assert len(names) >= 12


def test_it_is_a_function_of_the_generator_and_leaves_its_input():
    images = batch()
    before = images.clone()
    one, two = (rand_augment(images, derived_generator(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(images, before)
    assert not torch.equal(one, rand_augment(images, derived_generator(4)))
    assert torch.equal(rand_augment(images, derived_generator(3), operations=0), images)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`magnitude`"):
        rand_augment(batch(), derived_generator(0), magnitude=11)
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        rand_augment(batch().float(), derived_generator(0))


def test_the_view_is_made_by_name():
    base = Augmentation((0.5,) * 3, (0.2,) * 3, flip=True)
    view = make_view("randaugment", base, cutout=4)
    assert view == RandAugmentView(base.mean, base.std, True, 4)
    out = view(batch(), derived_generator(0))
    assert out.dtype == torch.float32
    assert out.shape == (64, 3, 12, 10)
    with pytest.raises(ValueError, match=r"3 channels.*'randaugment'"):
        make_view("randaugment", Augmentation((0.5,), (0.2,)))
