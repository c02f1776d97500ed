"""Packed folders: the same data set, written once, whatever interrupts it."""

from __future__ import annotations

import json
import multiprocessing
import re

import numpy as np
import pytest
import torch
from PIL import Image

from image_tree import write_image, write_tree
from ltkernels.data import ImageOptions, load, load_batches, packing
from ltkernels.data.__main__ import main
from ltkernels.data.packing import PackOptions, pack
from ltkernels.data.stores import Pack

SMALL = ImageOptions(size=16)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    return root, write_tree(root, classes=12, most=9)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(PackOptions, "shard_images", 10)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def images_of(inputs, key=None):
    return torch.cat(list(load_batches(inputs, torch.arange(len(inputs)).split(7), key)))


def same_set(one, two):
    assert one.class_names == two.class_names
    assert one.split_hash == two.split_hash
    assert torch.equal(one.train_labels, two.train_labels)
    assert torch.equal(one.test_labels, two.test_labels)
    assert torch.equal(one.validation[1], two.validation[1])
    assert one.train_inputs.names == two.train_inputs.names
    assert one.transform == two.transform


@pytest.mark.parametrize("raw", [False, True])
def test_packed_and_unpacked_are_one_data_set(raw, tree, tmp_path):
    root, _ = tree
    # Nothing is larger than 256 pixels: JPEGs are copied as they are, pixels are the decoded ones.
    pack("imagenet-lt", root, tmp_path / "imagenet-lt", PackOptions(raw=raw))
    one, two = (load("imagenet-lt", root=folder, images=SMALL) for folder in (root, tmp_path))
    same_set(one, two)
    for key in (None, (0, 0, 0)):
        assert torch.equal(images_of(one.train_inputs, key), images_of(two.train_inputs, key))
    assert torch.equal(images_of(one.test_inputs), images_of(two.test_inputs))
    workers = load("imagenet-lt", root=tmp_path, images=ImageOptions(size=16, workers=2))
    assert torch.equal(images_of(workers.test_inputs), images_of(two.test_inputs))


@pytest.fixture
def packed(tree, tmp_path):
    pack("imagenet-lt", tree[0], tmp_path / "imagenet-lt", PackOptions())
    return tmp_path / "imagenet-lt"


def test_a_packed_folder_is_found_below_the_root(packed, tree):
    same_set(load("imagenet-lt", root=packed.parent), load("imagenet-lt", root=tree[0]))


def test_larger_images_are_scaled(tmp_path):
    lists = write_tree(tmp_path / "tree", classes=2, most=2, size=(90, 60))
    first = lists["train"][0][0]
    for name, size in (("a.png", (60, 120)), ("b.jpg", (20, 30))):
        write_image(tmp_path / "tree" / name, np.random.default_rng(0), size)
    with (tmp_path / "tree/ImageNet_LT_train.txt").open("a") as file:
        file.write("a.png 0\nb.jpg 1\n")
    pack("imagenet-lt", tmp_path / "tree", tmp_path / "pack", PackOptions(size=32))
    store, _ = Pack(tmp_path / "pack").store("train")
    sizes = {name: store.open(i).size for i, name in enumerate(store.names)}
    assert (sizes[first], sizes["a.png"], sizes["b.jpg"]) == ((48, 32), (32, 64), (20, 30))
    with Image.open(tmp_path / "tree" / first) as image:
        expected = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC)).astype(int)
    found = np.asarray(store.open(store.names.index(first))).astype(int)
    assert np.abs(found - expected).mean() < 4
    with pytest.raises(ValueError, match=r"with --size 32; images of 224 pixels.*--size 256"):
        load("imagenet-lt", root=tmp_path / "pack")
    load("imagenet-lt", root=tmp_path / "pack", images=ImageOptions(size=28))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_pack_goes_on(workers, stop, packed, tree, tmp_path, monkeypatch):
    def interrupt(done, total):
        if done == stop:
            raise KeyboardInterrupt

    out, options = tmp_path / "again", PackOptions(workers=workers)
    with pytest.raises(KeyboardInterrupt):
        pack("imagenet-lt", tree[0], out, options, interrupt)
    assert not multiprocessing.active_children()
    with pytest.raises(FileNotFoundError):
        load("imagenet-lt", root=out)
    (out / ".train-00003.shard.4711").write_bytes(b"half")
    made = []
    encode = packing._encode
    if not workers:
        monkeypatch.setattr(packing, "_encode", lambda *a: made.append(a) or encode(*a))
    steps = []
    pack("imagenet-lt", tree[0], out, options, lambda *step: steps.append(step))
    assert content(out) == content(packed)
    total = steps[-1][1]
    assert steps[0][0] == stop if not workers else steps[0][0] >= stop
    assert steps[-1] == (total, total)
    if not workers:
        assert len(made) <= 10 * (total - stop)
    # A finished pack is left alone.
    monkeypatch.setattr(packing, "_encode", None)
    pack("imagenet-lt", tree[0], out, options)


def test_another_pack_in_the_folder_is_an_error(packed, tree, tmp_path):
    with pytest.raises(ValueError, match=r"size = 256, not 128; choose another --out"):
        pack("imagenet-lt", tree[0], packed, PackOptions(size=128))
    with pytest.raises(ValueError, match="encoding = 'jpeg 90', not 'raw'"):
        pack("imagenet-lt", tree[0], packed, PackOptions(raw=True))
    write_tree(tmp_path / "other", classes=11)
    with pytest.raises(ValueError, match="other images"):
        pack("imagenet-lt", tmp_path / "other", packed, PackOptions())


def flip_byte(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_named(workers, packed):
    flip_byte(packed / "test-00001.shard", 20)
    data = load("imagenet-lt", root=packed, images=ImageOptions(size=16, workers=workers))
    with pytest.raises(ValueError, match=r"cannot read val/.*test-00001\.shard: the shard is dam"):
        images_of(data.test_inputs)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip_byte(f / "index.npz", 50), r"index\.npz is damaged"),
        (lambda f: (f / "pack.json").write_text("{"), r"pack\.json is damaged"),
        (lambda f: (f / "pack.json").write_text('{"format": 9}'), "packed in format 9.*reads 1"),
    ],
)
def test_a_damaged_index_is_named(damage, message, packed):
    damage(packed)
    with pytest.raises(ValueError, match=message):
        load("imagenet-lt", root=packed)


def test_a_pack_of_another_set_is_refused(packed):
    with pytest.raises(ValueError, match="is packed imagenet-lt, not places-lt"):
        load("places-lt", root=packed)


# -- the command line -----------------------------------------------------------------------------


def test_pack_and_info_commands(tree, tmp_path, capsys):
    root, _ = tree
    arguments = ["--root", str(root), "--out", str(tmp_path / "pack"), "--size", "64"]
    assert main(["pack", "imagenet-lt", *arguments, "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "images; train with --set data.root=" in printed
    assert json.loads((tmp_path / "pack/pack.json").read_text())["size"] == 64
    described = []
    for folder in (root, tmp_path / "pack"):
        size = ["--set", "data.image_size=32"]
        assert main(["info", "imagenet-lt", "--root", str(folder), *size]) == 0
        described.append(capsys.readouterr().out)
    assert described[0] == described[1]
    split = load("imagenet-lt", root=root).split_hash
    for text in ("12 classes, 9 ... 1", "not as published (1,000 classes; train 115,846", split):
        assert text in described[0]
    assert re.search(r"kang +0 \(>=101\) / 0 \(20\.\.100\) / 12 \(<=19\)", described[0])


def test_info_of_a_set_in_memory(capsys):
    assert main(["info", "digits-lt"]) == 0
    assert "split 8f06162c79ac" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pack", "glyph-lt", "--out", "x"], 2, "no set of image files"),
        (["pack", "imagenet-lt", "--out", "x", "--quality", "0"], 2, "--quality: expected 1 to"),
        (["pack", "imagenet-lt", "--out", "x", "--root", "none"], 1, "ImageNet_LT_train.txt"),
        (["info", "imagenet"], 2, "unknown data set 'imagenet'"),
        (["info", "places-lt", "--set", "data.x=1"], 2, "unknown key `data.x`"),
    ],
)
def test_wrong_usage_is_one_line(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_broken_image_is_named(tree, tmp_path, capsys):
    write_tree(tmp_path / "tree", classes=3)
    broken = sorted((tmp_path / "tree/val").rglob("*.JPEG"))[1]
    broken.write_bytes(broken.read_bytes()[:200])
    out = ["--root", str(tmp_path / "tree"), "--out", str(tmp_path / "pack")]
    for workers in ("0", "2"):
        assert main(["pack", "imagenet-lt", *out, "--workers", workers]) == 1
        assert f"cannot read {broken}" in capsys.readouterr().err


def test_info_asks_no_size_of_a_pack_but_all_its_shards(tree, tmp_path, capsys):
    pack("imagenet-lt", tree[0], tmp_path, PackOptions(size=16))
    info = ["info", "imagenet-lt", "--root", str(tmp_path)]
    assert main(info) == 0
    assert main([*info, "--set", "data.image_size=224"]) == 1
    assert "images of 224 pixels (data.image_size) need --size 256" in capsys.readouterr().err
    (tmp_path / "test-00001.shard").unlink()  # the test's last 2 of 12 images
    assert main(info) == 1
    error = capsys.readouterr().err
    assert "error: 2 of the" in error
    assert "test-00001.shard" in error
