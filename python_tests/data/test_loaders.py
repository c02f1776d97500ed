"""Loaders: the shipped sets, and the users' sets on small files of the same format."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from ltkernels.data import (
    DATASETS,
    cifar,
    digits,
    fashion_mnist,
    glyph_lt,
    load,
    long_tailed_counts,
)
from ltkernels.data.sources import FILES


@pytest.fixture(autouse=True)
def no_outside_data(monkeypatch, tmp_path):
    """Nothing that lies on the machine decides a test."""
    monkeypatch.delenv("LTKERNELS_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.chdir(tmp_path)


# --- digits-lt -----------------------------------------------------------------------------------


def test_digits_come_with_the_package():
    data = load("digits-lt")
    assert data.input_shape == (1, 8, 8)
    assert data.test_labels.bincount().tolist() == [50] * 10
    counts = data.class_counts.tolist()
    assert counts == long_tailed_counts(counts[0], 10, 20)
    assert data.train_inputs.dtype == torch.uint8
    assert data.train_labels.dtype == data.train_indices.dtype == torch.int64
    assert (data.train_inputs.min(), data.train_inputs.max()) == (0, 255)
    assert data.train_inputs[0, 0, 0, 0] == 0, "corners are background"
    assert data.class_names == tuple("0123456789")
    # Frozen: the default split that results of digits-lt stand for.
    assert data.split_hash == "8f06162c79ac"


def test_digits_test_set_is_fixed_and_apart_from_the_pool():
    one, two = load("digits-lt", seed=1), load("digits-lt", seed=2)
    assert torch.equal(one.test_inputs, two.test_inputs)
    assert one.split_hash != two.split_hash
    source = digits.load_digits()
    assert len(source.pool_labels) + len(source.test_labels) == 1797
    pool = {image.numpy().tobytes() for image in source.pool_inputs}
    shared = sum(image.numpy().tobytes() in pool for image in source.test_inputs)
    assert shared == 0


@pytest.mark.parametrize("kind", ["exp", "step"])
@pytest.mark.parametrize("draw", ["ltkernels", "official"])
@pytest.mark.parametrize("imbalance", [1, 7.5, 100])
def test_imbalance_kind_and_draw_reach_the_counts(kind, draw, imbalance):
    data = load("digits-lt", kind=kind, draw=draw, imbalance=imbalance, seed=3)
    counts = data.class_counts.tolist()
    assert counts == long_tailed_counts(counts[0], 10, imbalance, kind)
    source = digits.load_digits()
    assert torch.equal(source.pool_inputs[data.train_indices], data.train_inputs)
    assert torch.equal(source.pool_labels[data.train_indices], data.train_labels)


def test_the_two_draws_differ():
    assert load("digits-lt").split_hash != load("digits-lt", draw="official").split_hash


@pytest.mark.parametrize(
    ("module", "name", "file"),
    [(digits, "digits-lt", "digits.csv.gz"), (glyph_lt, "glyph-lt", "glyph_lt.npz")],
)
def test_shipped_file_missing_or_damaged(module, name, file, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILES", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{file}.*reinstall"):
        load(name)
    content = bytearray((FILES / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        load(name)


# --- glyph-lt ------------------------------------------------------------------------------------


def test_glyphs_come_with_the_package():
    data = load("glyph-lt")
    assert data.num_classes == 120
    assert data.input_shape == (1, 28, 28)
    assert data.test_labels.bincount().tolist() == [30] * 120
    counts = data.class_counts
    assert torch.equal(counts, counts.sort(descending=True).values)
    assert 50 <= counts.max() / counts.min() <= 150
    assert len(data.train_indices.unique()) == len(data.train_indices)
    assert data.split_hash == load("glyph-lt", imbalance=100).split_hash


def test_glyphs_are_drawn_again_by_seed_and_imbalance():
    default = load("glyph-lt")
    other = load("glyph-lt", seed=1)
    milder = load("glyph-lt", imbalance=10)
    assert torch.equal(default.test_inputs, other.test_inputs)
    assert other.split_hash != default.split_hash
    for data, imbalance in ((other, 100), (milder, 10)):
        counts = data.class_counts.tolist()
        assert counts == long_tailed_counts(counts[0], 120, imbalance)


# --- fashion-mnist-lt ----------------------------------------------------------------------------


def idx_bytes(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion(folder, per_class=20):
    folder.mkdir(parents=True, exist_ok=True)
    stream = np.random.RandomState(0)
    made = {}
    for part, n in (("train", per_class), ("t10k", 2)):
        labels = stream.permutation(np.repeat(np.arange(10), n))
        images = stream.randint(0, 256, (len(labels), 28, 28))
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))
        made[part] = images, labels
    return made


@pytest.mark.parametrize("where", ["root", "root/fashion-mnist", "environment", "data", "system"])
def test_fashion_mnist_is_read_from_every_place_it_may_be_in(where, tmp_path, monkeypatch):
    root = None
    if where == "environment":
        monkeypatch.setenv("LTKERNELS_DATA", str(tmp_path / "elsewhere"))
        folder = tmp_path / "elsewhere" / "fashion-mnist"
    else:
        folder = tmp_path / where
        root = tmp_path / "root" if where.startswith("root") else None
    made = write_fashion(folder)
    data = load("fashion-mnist-lt", root=root, imbalance=10)
    assert data.class_counts.tolist() == long_tailed_counts(20, 10, 10)
    images, labels = made["train"]
    indices = data.train_indices.numpy()
    assert np.array_equal(data.train_inputs[:, 0].numpy(), images[indices])
    assert np.array_equal(data.train_labels.numpy(), labels[indices])
    assert np.array_equal(data.test_inputs[:, 0].numpy(), made["t10k"][0])
    assert np.array_equal(data.test_labels.numpy(), made["t10k"][1])
    assert data.class_names[9] == "ankle boot"


def test_fashion_mnist_missing_names_layout_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("fashion-mnist-lt")
    text = str(error.value)
    assert "train-images-idx3-ubyte.gz" in text
    assert "LTKERNELS_DATA" in text
    for folder in (tmp_path / "data", tmp_path / "data" / "fashion-mnist", tmp_path / "system"):
        assert str(folder) in text


def test_a_root_that_is_given_is_the_only_one_searched(tmp_path):
    write_fashion(tmp_path / "system")
    with pytest.raises(FileNotFoundError) as error:
        load("fashion-mnist-lt", root=tmp_path / "empty")
    assert "system" not in str(error.value).replace(str(tmp_path), "")


def truncated(content):
    return content[: len(content) // 2]


def shorter_inside(content):
    return gzip.compress(gzip.decompress(content)[:-1])


def no_idx(content):
    return gzip.compress(b"\0\0\x0d\3" + gzip.decompress(content)[4:])


def no_gzip(content):
    return b"plain" + content


@pytest.mark.parametrize("damage", [truncated, shorter_inside, no_idx, no_gzip])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_fashion_mnist_damaged_file_is_named(damage, file, tmp_path):
    write_fashion(tmp_path)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(ValueError, match=file):
        load("fashion-mnist-lt", root=tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"), [(np.zeros(5), "200 images but 5"), (np.full(200, 11), "label 11")]
)
def test_fashion_mnist_labels_that_do_not_fit(labels, message, tmp_path):
    write_fashion(tmp_path)
    packed = gzip.compress(idx_bytes(labels))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=message):
        load("fashion-mnist-lt", root=tmp_path)


# --- cifar10-lt, cifar100-lt ---------------------------------------------------------------------


def python2_pickle(content):
    """Pickle as Python 2 and NumPy 1 do (protocol 2, byte strings), which made CIFAR's files."""
    out = io.BytesIO()

    def put(value):
        if isinstance(value, dict):
            out.write(b"}(")
            for key, item in value.items():
                put(key)
                put(item)
            out.write(b"u")
        elif isinstance(value, list):
            out.write(b"](")
            for item in value:
                put(item)
            out.write(b"e")
        elif isinstance(value, int):
            out.write(b"J" + struct.pack("<i", value))
        elif isinstance(value, bytes):
            out.write(b"T" + struct.pack("<i", len(value)) + value)
        else:
            assert isinstance(value, np.ndarray)
            out.write(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\1btR")
            rows, columns = value.shape
            out.write(b"(K\1(" + b"J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", columns))
            out.write(
                b"tcnumpy\ndtype\n(U\2u1K\0K\1tR(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
            )
            out.write(b"K\0tb\x89")  # dtype state set; not Fortran order
            put(value.tobytes())
            out.write(b"tb")

    out.write(b"\x80\2")
    put(content)
    out.write(b".")
    return out.getvalue()


def pickle_protocol(protocol):
    return lambda content: pickle.dumps(content, protocol=protocol)


def write_cifar(root, layout, per_class, dump=python2_pickle):
    folder = root / layout.folder
    folder.mkdir(parents=True)
    num_classes = 100 if layout is cifar.CIFAR100 else 10
    stream = np.random.RandomState(1)
    made = {}
    train_labels = stream.permutation(np.repeat(np.arange(num_classes), per_class))
    parts = np.array_split(train_labels, len(layout.train_files))
    parts.append(np.arange(num_classes))
    for file, labels in zip((*layout.train_files, layout.test_file), parts, strict=True):
        data = stream.randint(0, 256, (len(labels), 3072)).astype(np.uint8)
        content = {b"data": data, layout.label_key: labels.tolist(), b"batch_label": b"toy"}
        (folder / file).write_bytes(dump(content))
        made[file] = data, labels
    names = [b"class %d" % i for i in range(num_classes)]
    (folder / layout.meta_file).write_bytes(dump({layout.names_key: names}))
    return made


LAYOUTS = pytest.mark.parametrize("layout", [cifar.CIFAR10, cifar.CIFAR100], ids=lambda x: x.name)


@LAYOUTS
@pytest.mark.parametrize("dump", [python2_pickle, pickle_protocol(4), pickle_protocol(5)])
def test_cifar_folder_is_read(layout, dump, tmp_path):
    made = write_cifar(tmp_path, layout, per_class=10, dump=dump)
    num_classes = len(made[layout.test_file][1])
    for root in (tmp_path, tmp_path / layout.folder):
        data = load(layout.name, root=root, imbalance=10, draw="official")
        assert data.class_counts.tolist() == long_tailed_counts(10, num_classes, 10)
        images = np.concatenate([made[file][0] for file in layout.train_files])
        labels = np.concatenate([made[file][1] for file in layout.train_files])
        indices = data.train_indices.numpy()
        expected = images.reshape(-1, 3, 32, 32)[indices]
        assert np.array_equal(data.train_inputs.numpy(), expected)
        assert np.array_equal(data.train_labels.numpy(), labels[indices])
        assert np.array_equal(data.test_inputs.flatten(1).numpy(), made[layout.test_file][0])
        assert data.class_names[3] == "class 3"


def pack(root, layout):
    archive = root / layout.archive
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / layout.folder, layout.folder)
    for file in (root / layout.folder).iterdir():
        file.unlink()
    (root / layout.folder).rmdir()
    return archive


@LAYOUTS
def test_cifar_archive_is_read_when_its_md5_is_right(layout, tmp_path, monkeypatch):
    write_cifar(tmp_path, layout, per_class=10)
    expected = load(layout.name, root=tmp_path, imbalance=10)
    archive = pack(tmp_path, layout)
    with pytest.raises(ValueError, match=rf"{layout.archive} is damaged.*{layout.md5}"):
        load(layout.name, root=tmp_path, imbalance=10)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    attribute = "CIFAR10" if layout is cifar.CIFAR10 else "CIFAR100"
    monkeypatch.setattr(cifar, attribute, dataclasses.replace(layout, md5=md5))
    data = load(layout.name, root=tmp_path, imbalance=10)
    assert data.split_hash == expected.split_hash
    assert torch.equal(data.train_inputs, expected.train_inputs)
    assert torch.equal(data.test_labels, expected.test_labels)


def test_cifar_archive_without_a_member(tmp_path, monkeypatch):
    write_cifar(tmp_path, cifar.CIFAR100, per_class=2)
    (tmp_path / cifar.CIFAR100.folder / "meta").unlink()
    archive = pack(tmp_path, cifar.CIFAR100)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "CIFAR100", dataclasses.replace(cifar.CIFAR100, md5=md5))
    with pytest.raises(ValueError, match="has no meta in cifar-100-python"):
        load("cifar100-lt", root=tmp_path)


def test_known_archive_checksums():
    assert cifar.CIFAR10.md5 == "c58f30108f718f92721af3b95e74349a"
    assert cifar.CIFAR100.md5 == "eb9058c3a382ffc7106e4002c42a8d85"


@LAYOUTS
def test_cifar_missing_names_layout_and_folder(layout, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load(layout.name, root=tmp_path / "nowhere")
    for part in (layout.folder, layout.archive, str(tmp_path / "nowhere"), *layout.train_files):
        assert part in str(error.value)


def replace(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def cut(file):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-100])


IMAGES = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("train"), "file train is damaged"),
        (replace("train", b""), "file train is damaged"),
        (
            replace("test", pickle.dumps([1])),
            "file test is damaged or unsafe: expected a dict, got list",
        ),
        (replace("test", pickle.dumps({b"data": IMAGES})), "file test has no fine_labels"),
        (replace("test", pickle.dumps({b"data": [1], b"fine_labels": [1]})), "uint8"),
        (replace("test", pickle.dumps({b"data": IMAGES, b"fine_labels": [1]})), "be 2 integers"),
        (replace("test", pickle.dumps({b"data": IMAGES, b"fine_labels": [1, 100]})), "in 0 ... 99"),
        (replace("meta", pickle.dumps({b"x": 1})), "file meta has no list fine_label_names"),
    ],
)
def test_cifar_damaged_file_is_named(damage, message, tmp_path):
    write_cifar(tmp_path, cifar.CIFAR100, per_class=2)
    damage(tmp_path / cifar.CIFAR100.folder)
    with pytest.raises(ValueError, match=message):
        load("cifar100-lt", root=tmp_path)


class RunsCode:
    """A pickle of this would call os.system."""

    def __reduce__(self):
        return os.system, ("exit 0",)


@pytest.mark.parametrize(
    "value", [RunsCode(), OrderedDict(), zipfile.ZipFile, np.random.RandomState(0), print]
)
def test_unpickling_builds_containers_and_arrays_only(value, tmp_path):
    content = pickle.dumps({b"data": value})
    with pytest.raises(pickle.UnpicklingError, match="is not allowed here"):
        cifar.safe_unpickle(content)
    write_cifar(tmp_path, cifar.CIFAR100, per_class=2)
    (tmp_path / cifar.CIFAR100.folder / "train").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or unsafe"):
        load("cifar100-lt", root=tmp_path)


@pytest.mark.parametrize("dtype", ["u1", ">i4", "<i8", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_unpickled_arrays_are_the_arrays(dtype, order):
    array = np.asarray(np.arange(12).reshape(3, 4), dtype, order)
    for protocol in (4, 5):
        got = cifar.safe_unpickle(pickle.dumps({"x": array}, protocol))["x"]
        assert got.dtype == array.dtype
        assert np.array_equal(got, array)


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["a"]), np.zeros(1, "u1,f4")])
def test_unpickling_refuses_other_arrays(array):
    for protocol in (4, 5):
        with pytest.raises(pickle.UnpicklingError, match="not allowed here"):
            cifar.safe_unpickle(pickle.dumps({"x": array}, protocol))


# --- load ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnist"}, "one of glyph-lt, digits-lt"),
        ({"imbalance": 0.5}, "`imbalance` to be >= 1, got 0.5"),
        ({"kind": "linear"}, "`kind`"),
        ({"draw": "mine"}, "`draw`"),
        ({"imbalance": 1000}, "leave every class an image"),
    ],
)
def test_load_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**{"name": "digits-lt", **arguments})


def test_names():
    in_memory = ("glyph-lt", "digits-lt", "fashion-mnist-lt", "cifar10-lt", "cifar100-lt")
    texts, files = ("wordnet-lt", "agnews-lt"), ("imagenet-lt", "places-lt", "inat2018")
    assert (*in_memory, *texts, *files) == DATASETS
