"""imagenet-lt, places-lt, inat2018: lists, folders, class names, errors."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from image_tree import SYNSETS, write_image, write_tree
from ltkernels.data import (
    Augmentation,
    ImageOptions,
    PhotoAugmentation,
    derived_generator,
    load,
    load_batches,
)
from ltkernels.data.__main__ import main

SMALL = ImageOptions(size=16)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    return root, write_tree(root, classes=12, most=9)


@pytest.fixture
def copy(tree, tmp_path, monkeypatch):
    monkeypatch.delenv("LTKERNELS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tree[0], tmp_path / "tree")
    return tmp_path / "tree"


def test_the_lists_decide_everything(tree):
    root, lists = tree
    data = load("imagenet-lt", root=root, images=SMALL)
    assert data.num_classes == 12
    assert data.class_names == tuple(SYNSETS[:12])
    labels = [label for _, label in lists["train"]]
    assert data.train_labels.tolist() == labels
    assert data.class_counts.tolist() == np.bincount(labels).tolist()
    assert data.train_inputs.names == [path for path, _ in lists["train"]]
    assert data.test_inputs.names == [path for path, _ in lists["test"]]
    validation, validation_labels = data.validation
    assert validation.names == [path for path, _ in lists["val"]]
    assert validation_labels.tolist() == [label for _, label in lists["val"]]
    assert data.input_shape == (3, 16, 16)
    (batch,) = load_batches(data.train_inputs, [torch.arange(4)])
    assert batch.shape == (4, 3, 16, 16)
    text = "".join(sorted(f"{path}\n" for path, _ in lists["train"]))
    assert data.split_hash == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_split_hash_is_of_the_images_not_of_their_order(tree, copy):
    before = load("imagenet-lt", root=tree[0])
    file = copy / "ImageNet_LT_train.txt"
    lines = file.read_text().splitlines(True)
    file.write_text("".join(reversed(lines)))
    assert load("imagenet-lt", root=copy).split_hash == before.split_hash
    kept = [line for line in lines if not line.split()[0].endswith("_1.JPEG")]
    file.write_text("".join(kept))
    assert load("imagenet-lt", root=copy).split_hash != before.split_hash
    smaller, inputs, labels = before.holdout(fraction=0.3)
    assert smaller.split_hash != before.split_hash
    assert len(inputs) == len(labels) > 0
    assert set(inputs.names).isdisjoint(smaller.train_inputs.names)
    assert len(inputs.names) + len(smaller.train_inputs.names) == len(before.train_inputs)


def test_lists_and_images_may_lie_apart(copy):
    for folder in ("lists/ImageNet_LT", "lists/imagenet"):
        (copy.parent / folder).mkdir(parents=True)
    for file in copy.glob("*.txt"):
        file.rename(copy.parent / "lists/ImageNet_LT" / file.name)
    for folder in ("train", "val"):
        (copy / folder).rename(copy.parent / "lists/imagenet" / folder)
    data = load("imagenet-lt", root=copy.parent / "lists", images=SMALL)
    (batch,) = load_batches(data.test_inputs, [torch.arange(3)])
    assert len(batch) == 3


def test_missing_lists_name_layout_and_folders(tmp_path):
    for name, file in (
        ("imagenet-lt", "ImageNet_LT_val.txt"),
        ("places-lt", "Places_LT_test.txt"),
        ("inat2018", "train2018.json"),
    ):
        with pytest.raises(FileNotFoundError) as error:
            load(name, root=tmp_path)
        for part in (file, "relative/path label", str(tmp_path), "data.root", "pack.json"):
            assert part in str(error.value)


def test_missing_images_name_the_first(copy):
    shutil.rmtree(copy / "val")
    with pytest.raises(FileNotFoundError, match=r"val/n.*JPEG, the first image of .*_test\.txt"):
        load("imagenet-lt", root=copy)


@pytest.mark.parametrize(
    ("split", "line", "message"),
    [
        ("train", "train/a.JPEG", r"line \d+: expected `relative/path label`, got 'train/a.JPEG'"),
        ("train", "train/a.JPEG -1", "expected `relative/path label`"),
        ("train", "train/a.JPEG x", "expected `relative/path label`"),
        (
            "train",
            "train/a.JPEG 1000",
            r"train\.txt, line \d+: expected a label of 0 \.\.\. 999, got",
        ),
        ("test", "val/a.JPEG 1000", r"_test\.txt, line 13: expected a label of 0 \.\.\. 999, got"),
        ("train", f"train/a.JPEG {10**14}", "label of 0 ... 999, got 100000000000000$"),
        ("train", f"train/a.JPEG {'9' * 5000}", r"label of 0 ... 999, got 9{18}\.\.\.$"),
        ("train", "train/a.JPEG 13", "labels 0 ... 13 with an image each, class 12 has none"),
        ("test", "val/a.JPEG 12", r"_test\.txt has label 12, the training images have 0 ... 11"),
        ("train", f"train/{SYNSETS[0]}/{SYNSETS[0]}_0.JPEG 0", "_0.JPEG is twice in"),
        ("test", f"train/{SYNSETS[0]}/{SYNSETS[0]}_0.JPEG 0", "_0.JPEG is in .*train.* and .*test"),
    ],
)
def test_a_damaged_list_is_named(split, line, message, copy):
    with (copy / f"ImageNet_LT_{split}.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        load("imagenet-lt", root=copy)


def test_a_missing_first_image_is_counted_with_the_others(copy):
    names = (copy / "ImageNet_LT_test.txt").read_text().split()[::2]
    for name in (names[0], names[4]):
        (copy / name).unlink()
    message = rf"2 of the 12 images of .*_test\.txt are missing: .*{names[0]}, .*{names[4]}$"
    with pytest.raises(FileNotFoundError, match=message):
        load("imagenet-lt", root=copy)


@pytest.mark.parametrize("label", [8142, -1, 10**14])
def test_a_category_beyond_the_published_ones_is_named(label, tmp_path):
    write_inat(tmp_path, as_json=True)
    content = json.loads((tmp_path / "train2018.json").read_text())
    content["annotations"][2]["category_id"] = label
    (tmp_path / "train2018.json").write_text(json.dumps(content))
    message = rf"train2018\.json, category_id of .*train2\.jpg: .* 0 \.\.\. 8141, got {label}$"
    with pytest.raises(ValueError, match=message):
        load("inat2018", root=tmp_path)


def test_info_looks_for_every_file(copy, capsys):
    info = ["info", "imagenet-lt", "--root", str(copy)]
    assert main(info) == 0
    lists = [
        (copy / f"ImageNet_LT_{split}.txt").read_text().split()[::2] for split in ("val", "test")
    ]
    gone = [lists[0][5], lists[1][3], lists[1][4], lists[1][7]]
    for name in gone:
        (copy / name).unlink()
    capsys.readouterr()
    assert main(info) == 1
    error = capsys.readouterr().err
    total = 24 + len((copy / "ImageNet_LT_train.txt").read_text().splitlines())
    assert f"error: 4 of the {total} images of imagenet-lt are missing: " in error
    assert sum(name in error for name in gone) == 3
    data = load("imagenet-lt", root=copy, images=SMALL)  # training looks for one of each list
    with pytest.raises(
        ValueError, match=r"cannot read .*JPEG: .*ltkernels.data info` looks for all"
    ):
        list(load_batches(data.test_inputs, [torch.arange(12)]))


def test_an_empty_list_is_named(copy):
    (copy / "ImageNet_LT_val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"_val\.txt lists no image"):
        load("imagenet-lt", root=copy)


@pytest.mark.parametrize("options", [{"imbalance": 10}, {"kind": "step"}, {"draw": "official"}])
def test_nothing_is_drawn(options, tree):
    with pytest.raises(ValueError, match="imagenet-lt is long-tailed as it is"):
        load("imagenet-lt", root=tree[0], **options)


def write_lists(root, name, train, test):
    stream = np.random.default_rng(0)
    for split, images in {"train": train, "val": test, "test": test}.items():
        lines = []
        for path, label in images:
            path = f"{split}{path}"
            write_image(root / path.lstrip("/"), stream)
            lines.append(f"/{path} {label}\n")
        (root / f"{name}_{split}.txt").write_text("".join(lines))


def test_places_have_leading_slashes_and_nested_classes(tmp_path):
    folders = ["/a/airfield", "/a/apartment/outdoor", "/b/apartment/outdoor"]
    images = [(f"{folder}/{i}.jpg", label) for label, folder in enumerate(folders) for i in (1, 2)]
    write_lists(tmp_path, "Places_LT", images, images[::2])
    data = load("places-lt", root=tmp_path, images=SMALL)
    assert data.class_names == ("a/airfield", "a/apartment/outdoor", "b/apartment/outdoor")
    (batch,) = load_batches(data.test_inputs, [torch.arange(3)])
    assert batch.shape == (3, 3, 16, 16)


def test_classes_of_mixed_folders_are_numbered(tmp_path):
    images = [("/x/1.jpg", 0), ("/y/2.jpg", 0), ("/x/3.jpg", 1)]
    write_lists(tmp_path, "Places_LT", images, images)
    assert load("places-lt", root=tmp_path).class_names == ("0", "1")


def write_inat(root, *, as_json, categories=True):
    stream, lists = np.random.default_rng(0), {}
    for split, count in (("train", 3), ("val", 1)):
        lists[split] = [
            (f"train_val2018/Plantae/{label}/{split}{i}.jpg", label)
            for label in range(4)
            for i in range(count)
        ]
        for path, _ in lists[split]:
            write_image(root / path, stream)
        if not as_json:
            lines = "".join(f"{path} {label}\n" for path, label in lists[split])
            (root / f"iNaturalist18_{split}.txt").write_text(lines)
            continue
        content = {
            "images": [
                {"id": 100 + i, "file_name": path} for i, (path, _) in enumerate(lists[split])
            ],
            "annotations": [
                {"id": 7, "image_id": 100 + i, "category_id": label}
                for i, (_, label) in enumerate(lists[split])
            ],
        }
        if categories:
            content["categories"] = [{"id": i, "name": f"Quercus {i}"} for i in range(4)]
        (root / f"{split}2018.json").write_text(json.dumps(content))
    return lists


def test_inaturalist_is_read_from_lists_and_from_json(tmp_path):
    lists = write_inat(tmp_path / "txt", as_json=False)
    write_inat(tmp_path / "json", as_json=True)
    write_inat(tmp_path / "plain", as_json=True, categories=False)
    text, with_names, plain = (
        load("inat2018", root=tmp_path / folder) for folder in ("txt", "json", "plain")
    )
    for data in (text, with_names, plain):
        assert data.train_inputs.names == [path for path, _ in lists["train"]]
        assert data.test_labels.tolist() == [0, 1, 2, 3]
        assert data.validation is None
        assert data.split_hash == text.split_hash
        assert data.transform.mean == (0.466, 0.471, 0.380)
        assert data.transform.jitter == 0
    assert with_names.class_names[3] == "Quercus 3"
    assert text.class_names == plain.class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"images": [{}]}'])
def test_a_damaged_json_is_named(content, tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}2018.json").write_text(content)
    with pytest.raises(ValueError, match=r"train2018\.json: expected JSON with images"):
        load("inat2018", root=tmp_path)


def test_jitter_is_the_sets_own_unless_it_is_set(tree):
    assert load("imagenet-lt", root=tree[0]).transform.jitter == 0.4
    off = load("imagenet-lt", root=tree[0], images=ImageOptions(jitter=0.0))
    assert off.transform.jitter == 0
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    plain = Augmentation(off.transform.mean, off.transform.std, flip=True)
    generators = [derived_generator(0, "x") for _ in range(3)]
    assert torch.equal(off.transform(images, generators[0]), plain(images, generators[1]))
    jittered = PhotoAugmentation(plain.mean, plain.std, flip=True, jitter=0.4)
    changed = jittered(images, generators[2])
    assert changed.shape == images.shape
    assert not torch.allclose(changed, plain(images, derived_generator(0, "x")), atol=0.1)
    none = PhotoAugmentation(plain.mean, plain.std, jitter=1e-6)
    torch.testing.assert_close(
        none(images, generators[0]), plain.normalize(images), atol=1e-4, rtol=0
    )
    with pytest.raises(ValueError, match="`jitter`"):
        PhotoAugmentation(plain.mean, plain.std, jitter=2)
