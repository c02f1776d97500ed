"""Batched transforms: each against a plain loop over images, and its randomness."""

import numpy as np
import pytest
import torch

from ltkernels.data import Augmentation, cutout, flip, mixup, normalize, rotate, shift


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(n=64, channels=3, height=7, width=9):
    return torch.randint(1, 256, (n, channels, height, width), generator=generator(9)).byte()


def loop_shift(image, down, right):
    """Move one image by (down, right), zeros come in."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[:, row, column] = image[:, row - down, column - right]
    return out


def test_shift_moves_every_image_by_an_offset_in_range():
    images = random_images(n=200, height=5, width=6)
    shifted = shift(images, 1, generator())
    offsets = []
    for before, after in zip(images, shifted, strict=True):
        found = [
            (down, right)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if torch.equal(loop_shift(before, down, right), after)
        ]
        assert len(found) == 1
        offsets += found
    assert len(set(offsets)) == 9
    assert shifted.dtype == torch.uint8


def test_shift_fills_with_the_value_asked_for():
    images = torch.full((50, 1, 4, 4), 7, dtype=torch.uint8)
    assert shift(images, 2, generator(), fill=200).unique().tolist() == [7, 200]


def test_flip_mirrors_about_half_of_the_images_and_only_those():
    images = random_images(n=400)
    flipped = flip(images, generator())
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize(("p", "expected"), [(0.0, False), (1.0, True)])
def test_flip_probability_ends(p, expected):
    images = random_images()
    assert torch.equal(flip(images, generator(), p=p), images.flip(3) if expected else images)


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_cutout_blanks_one_clipped_square_an_image(size):
    images = torch.ones(300, 2, 8, 11)
    out = cutout(images, size, generator(), fill=-5.0)
    assert torch.equal(out[:, 0], out[:, 1])
    corners = set()
    for hole in (out[:, 0] == -5).numpy():
        rows, columns = np.where(hole)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert hole.sum() == height * width, "a full rectangle"
        clipped_rows = rows.min() == 0 or rows.max() == 7
        clipped_columns = columns.min() == 0 or columns.max() == 10
        assert height == size or (height < size and clipped_rows)
        assert width == size or (width < size and clipped_columns)
        corners.add((rows.min(), columns.min()))
    if 1 < size < 8:
        assert (0, 0) in corners
        assert max(corners) == (7 - size // 2, 10 - size // 2), "centred on the last pixel"
    assert torch.equal(images, torch.ones_like(images)), "the input is left alone"


def test_normalize_is_the_formula():
    images = random_images()
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    got = normalize(images, mean, std)
    expected = (images.double() / 255 - torch.tensor(mean).double()[:, None, None]) / torch.tensor(
        std
    ).double()[:, None, None]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=2e-6)


def test_mixup_is_the_convex_combination_its_labels_name():
    n = 32
    images, labels = torch.eye(n).reshape(n, 1, 4, 8), torch.arange(n)
    mixed, labels_a, labels_b, lam = mixup(images, labels, 0.4, generator())
    assert 0 < lam < 1
    assert torch.equal(labels_a, labels)
    assert torch.equal(labels_b.sort().values, labels)
    assert not torch.equal(labels_b, labels)
    torch.testing.assert_close(mixed, lam * images[labels_a] + (1 - lam) * images[labels_b])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_weight_has_the_beta_distributions_moments(alpha):
    images, labels = torch.zeros(2, 1, 1, 1), torch.arange(2)
    source = generator(3)
    lam = np.array([mixup(images, labels, alpha, source)[3] for _ in range(4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(lam.mean() - 0.5) < 5 * (variance / len(lam)) ** 0.5
    assert abs(lam.var() / variance - 1) < 0.15


def test_mixup_with_alpha_zero_leaves_the_batch():
    images, labels = torch.rand(4, 1, 2, 2), torch.arange(4)
    mixed, _, _, lam = mixup(images, labels, 0, generator())
    assert lam == 1.0
    assert torch.equal(mixed, images)


def test_rotate_turns_as_pillow_does():
    image = pytest.importorskip("PIL.Image")
    images = random_images(height=32, width=32)
    turned = rotate(images, 15, generator(3))
    drawn = torch.rand(len(images), generator=generator(3))
    for before, after, u in zip(images, turned, drawn, strict=True):
        pillow = image.fromarray(before.permute(1, 2, 0).numpy())
        expected = torch.from_numpy(np.array(pillow.rotate(15 * (2 * float(u) - 1))))
        expected = expected.permute(2, 0, 1)
        # Where a pixel's source lies between two pixels, rounding decides.
        assert (after != expected).float().mean() < 0.01
    assert rotate(images, 0, generator()) is images
    with pytest.raises(ValueError, match="`degrees`"):
        rotate(images, -1, generator())


def test_augmentation_is_its_parts_in_order():
    images = random_images(height=8, width=8)
    augment = Augmentation((0.5,) * 3, (0.25,) * 3, shift=2, flip=True, rotation=9, cutout=3)
    got = augment(images, generator(5))
    source = generator(5)
    expected = rotate(flip(shift(images, 2, source), source), 9, source)
    expected = cutout(normalize(expected, (0.5,) * 3, (0.25,) * 3), 3, source)
    assert torch.equal(got, expected)
    assert torch.equal(augment.normalize(images), normalize(images, augment.mean, augment.std))


def test_augmentation_depends_on_the_generator_alone():
    images = random_images()
    augment = Augmentation((0.5,) * 3, (0.25,) * 3, shift=2, flip=True, cutout=3)
    torch.manual_seed(1)
    first = augment(images, generator(5))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(first, augment(images, generator(5)))
    assert torch.equal(before, torch.get_rng_state()), "the global stream is not touched"
    assert not torch.equal(first, augment(images, generator(6)))


def test_transforms_take_an_empty_batch():
    augment = Augmentation((0.5,), (0.25,), shift=2, flip=True, cutout=3)
    assert augment(torch.empty(0, 1, 8, 8, dtype=torch.uint8), generator()).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, g: shift(x[0], 1, g), ValueError, r"`shift`: expected `images`"),
        (lambda x, g: shift(x, -1, g), ValueError, "`pixels`"),
        (lambda x, g: flip(x, g, p=1.5), ValueError, "`p`"),
        (lambda x, g: cutout(x, -1, g), ValueError, "`size`"),
        (lambda x, g: normalize(x.float(), (0,) * 3, (1,) * 3), TypeError, "torch.uint8"),
        (lambda x, g: normalize(x, (0.0,), (1.0,)), ValueError, "3 channels, got 1 and 1"),
        (lambda x, g: mixup(x, torch.arange(64), 1, g), TypeError, "floating-point"),
        (lambda x, g: mixup(x.float(), torch.arange(3), 1, g), ValueError, r"\[64\], got \[3\]"),
        (lambda x, g: mixup(x.float(), torch.arange(64), -1, g), ValueError, "`alpha`"),
        (lambda x, g: Augmentation((0.0,), (1.0, 1.0)), ValueError, "same length"),
        (lambda x, g: Augmentation((0.0,), (0.0,)), ValueError, "positive"),
        (lambda x, g: Augmentation((0.0,), (1.0,), shift=-1), ValueError, "`shift`"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(random_images(), generator())
