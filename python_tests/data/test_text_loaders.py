"""wordnet-lt and agnews-lt on small files of their formats."""

from __future__ import annotations

import pytest
import torch

from ltkernels.data import (
    TextOptions,
    agnews,
    load,
    long_tailed_counts,
    tokenize,
    vocabulary_of,
    wordnet,
)
from tiny_text import write_agnews, write_wordnet

SIZES = {"noun.person": 40, "verb.motion": 30, "adj.all": 12}
LARGEST = ("noun.person", "verb.motion", "adj.all")


@pytest.fixture(autouse=True)
def no_outside_data(monkeypatch, tmp_path):
    """Nothing that lies on the machine decides a test."""
    monkeypatch.delenv("LTKERNELS_DATA", raising=False)
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.chdir(tmp_path)


def texts_of(data, inputs):
    words = vocabulary_of(data).words
    return [" ".join(words[i] for i in row if i) for row in inputs.tolist()]


# -- wordnet-lt -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["root", "root/wordnet", "environment", "data", "system"])
def test_wordnet_is_read_from_every_place_it_may_be_in(where, tmp_path, monkeypatch):
    root = None
    if where == "environment":
        monkeypatch.setenv("LTKERNELS_DATA", str(tmp_path / "elsewhere"))
        folder = tmp_path / "elsewhere" / "wordnet"
    else:
        folder = tmp_path / where
        root = tmp_path / "root" if where.startswith("root") else None
    made = write_wordnet(folder, SIZES)
    data = load("wordnet-lt", root=root)
    assert data.num_classes == 45
    assert data.class_names[:3] == LARGEST
    assert len(set(data.class_names)) == 45
    # Two thirds of the smallest class, 6, are for the test of every class; the rest trains.
    assert data.test_labels.bincount().tolist() == [4] * 45
    assert data.class_counts.tolist() == [36, 26, 8] + [2] * 42
    definitions = {" ".join(tokenize(text)): name for text, name in made.items()}
    texts = texts_of(data, data.train_inputs)
    for text, label in zip(texts, data.train_labels.tolist(), strict=True):
        assert definitions[text] == data.class_names[label]


def test_wordnets_numbers_name_its_files():
    names = wordnet.LEXICOGRAPHER_FILES
    assert len(names) == len(set(names)) == 45
    known = {0: "adj.all", 3: "noun.Tops", 16: "noun.motive", 18: "noun.person", 28: "noun.time"}
    known |= {29: "verb.body", 38: "verb.motion", 43: "verb.weather", 44: "adj.ppl"}
    assert {number: names[number] for number in known} == known


def test_the_vocabulary_is_of_training_texts_alone(tmp_path):
    write_wordnet(tmp_path, SIZES)
    data = load("wordnet-lt", root=tmp_path)
    words = set(vocabulary_of(data).words)
    seen = set(data.train_inputs.unique().tolist())
    assert seen == {0, *range(2, len(words))}
    limited = load("wordnet-lt", root=tmp_path, text=TextOptions(3, min_count=30, max_words=2))
    assert vocabulary_of(limited).words[2:] == ("the", "noun")  # of three words that are kept
    assert limited.train_inputs.shape[1] == limited.test_inputs.shape[1] == 3
    assert (limited.train_inputs == 1).any()


def test_a_vocabulary_without_a_word_is_an_error(tmp_path):
    write_agnews(tmp_path, per_class=5)
    message = r"`text.min_count`: no word of the \d+ training texts occurs 1,000,000 times"
    with pytest.raises(ValueError, match=message):
        load("agnews-lt", root=tmp_path, imbalance=1, text=TextOptions(min_count=10**6))


def test_test_texts_are_fixed_and_apart_from_training(tmp_path):
    write_wordnet(tmp_path, SIZES)
    source = wordnet.load_wordnet(tmp_path)
    assert set(source.pool_texts).isdisjoint(source.test_texts)
    assert len(source.pool_texts) + len(source.test_texts) == sum(SIZES.values()) + 42 * 6
    one, two = load("wordnet-lt", root=tmp_path, seed=1), load("wordnet-lt", root=tmp_path, seed=2)
    assert torch.equal(one.test_inputs, two.test_inputs)
    assert one.split_hash == two.split_hash


def test_a_definition_that_comes_twice_is_not_tested(tmp_path):
    write_wordnet(tmp_path, dict.fromkeys(SIZES, 6))
    path = tmp_path / "data.adv"
    line = path.read_text().splitlines()[-1]
    path.write_text(path.read_text() + (line + "\n") * 9)
    source = wordnet.load_wordnet(tmp_path)
    text = line.partition(" | ")[2].partition(";")[0]
    assert source.pool_texts.count(text) == 10
    assert text not in source.test_texts


def test_wordnets_imbalance_draws_from_the_pool(tmp_path):
    write_wordnet(tmp_path, SIZES)
    natural = load("wordnet-lt", root=tmp_path)
    drawn = load("wordnet-lt", root=tmp_path, imbalance=2, kind="step", seed=1)
    counts = drawn.class_counts.tolist()
    assert counts == long_tailed_counts(counts[0], 45, 2, "step")
    assert torch.equal(natural.train_labels[drawn.train_indices], drawn.train_labels)
    # A smaller training set has fewer words.
    assert len(vocabulary_of(drawn)) < len(vocabulary_of(natural))
    again = load("wordnet-lt", root=tmp_path, imbalance=2, kind="step", seed=2)
    assert again.split_hash != drawn.split_hash


@pytest.mark.parametrize("arguments", [{"kind": "step"}, {"draw": "official"}])
def test_what_is_not_drawn_has_no_profile(arguments, tmp_path):
    write_wordnet(tmp_path, SIZES)
    with pytest.raises(ValueError, match="expected `imbalance` with"):
        load("wordnet-lt", root=tmp_path, **arguments)


def test_wordnet_missing_names_layout_folders_and_package(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("wordnet-lt")
    text = str(error.value)
    for folder in (tmp_path / "data", tmp_path / "data" / "wordnet", tmp_path / "system"):
        assert str(folder) in text
    for part in (*wordnet.FILE_NAMES, "LTKERNELS_DATA", "data.root", "Debian package wordnet-base"):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "line",
    ["00001740 03 n 01 entity 0 000", "00001740 45 n 01 entity | x", "00001740 | x", "x", ""],
)
def test_wordnet_damaged_line_is_named(line, tmp_path):
    write_wordnet(tmp_path, SIZES)
    path = tmp_path / "data.verb"
    place = len(path.read_text().splitlines()) + 1
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=rf"data\.verb, line {place} is no synset"):
        load("wordnet-lt", root=tmp_path)


def test_wordnet_without_a_class(tmp_path):
    write_wordnet(tmp_path, {"adj.ppl": 1})
    with pytest.raises(ValueError, match=r"too few texts of adj\.ppl: .* got 1"):
        load("wordnet-lt", root=tmp_path)


# -- agnews-lt ------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("folder", ["", "ag_news_csv"])
def test_agnews_is_read_and_drawn(header, folder, tmp_path):
    write_agnews(tmp_path / folder, per_class=100, header=header)
    data = load("agnews-lt", root=tmp_path)
    assert data.class_names == ("World", "Sports", "Business", "Sci/Tech")
    assert data.class_counts.tolist() == long_tailed_counts(100, 4, 100) == [100, 21, 4, 1]
    assert data.test_labels.tolist() == [2, 0, 3, 1] * 2
    for text, label in zip(
        texts_of(data, data.train_inputs), data.train_labels.tolist(), strict=True
    ):
        assert text.startswith(f"title {label + 1} , n")
        assert text.endswith("it 's tr")


def test_agnews_draws_like_the_others(tmp_path):
    write_agnews(tmp_path, per_class=40)
    ours = load("agnews-lt", root=tmp_path, imbalance=4)
    official = load("agnews-lt", root=tmp_path, imbalance=4, draw="official")
    assert ours.class_counts.tolist() == official.class_counts.tolist()
    assert ours.split_hash != official.split_hash
    step = load("agnews-lt", root=tmp_path, imbalance=4, kind="step")
    assert step.class_counts.tolist() == [40, 40, 10, 10]


def test_agnews_cells_may_hold_quotes_and_lines(tmp_path):
    write_agnews(tmp_path, per_class=4)
    path = tmp_path / "train.csv"
    path.write_text('"1","a ""b"", c","d\ne"\n' + path.read_text())
    texts, labels = agnews.read_news(path)
    assert texts[0] == 'a "b", c d e'
    assert labels[0] == 0


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("It #39;s &lt;b&gt;new&lt;/b&gt; &amp; good", "It's  new  & good"),
        (r"one\two", "one two"),
        ("36 #36;5 #x", "36$5 #x"),
        ("3 < 4 > 2", "3 < 4 > 2"),
    ],
)
def test_news_are_cleaned(text, clean):
    assert agnews.clean_news(text) == clean


def test_agnews_missing_names_layout_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("agnews-lt", root=tmp_path / "nowhere")
    for part in ("train.csv", "test.csv", str(tmp_path / "nowhere"), "ag_news_csv"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'"5","t","d"\n', r"train\.csv, line 41: expected a class from 1 to 4.*begin with '5'"),
        (b'"1","t"\n', "line 41: .* got 2 cells"),
        (b'"Class Index","t","d"\n', "line 41: expected a class"),
        (b'"1","\xff","d"\n', r"train\.csv is damaged"),
    ],
)
def test_agnews_damaged_row_is_named(row, message, tmp_path):
    write_agnews(tmp_path, per_class=10)
    path = tmp_path / "train.csv"
    path.write_bytes(path.read_bytes() + row)
    with pytest.raises(ValueError, match=message):
        load("agnews-lt", root=tmp_path)
