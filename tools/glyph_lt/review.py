"""Contact sheets to look at before the file is frozen: a sheet a class, and the doubtful glyphs.

A glyph is doubtful if a classifier trained on the other designs puts it into another class. The
classifier is a ridge regression on random rectified features of the pixels: crude, but it asks of
every glyph what the others of its class look like.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from build import collect

COLUMNS = 36
FOLDS = 4
MOST = 600  # doubtful glyphs shown
FEATURES = 2000
Sample = tuple[str, str, str, NDArray[np.uint8]]  # character, family, cluster, glyph


def sheet(tiles: list[tuple[NDArray[np.uint8], str]], columns: int, size: int) -> Image.Image:
    """Glyphs in rows, dark on light, each with a line of text below."""
    line = 12 if any(text for _, text in tiles) else 1
    rows = -(-len(tiles) // columns)
    page = Image.new("L", (columns * (size + 1), rows * (size + line)), 255)
    pen = ImageDraw.Draw(page)
    for place, (glyph, text) in enumerate(tiles):
        x, y = place % columns * (size + 1), place // columns * (size + line)
        page.paste(Image.fromarray(255 - 17 * glyph).resize((size, size)), (x, y))
        if text:
            pen.text((x, y + size), text, font=ImageFont.load_default(10), fill=0)
    return page


def margins(samples: list[Sample]) -> tuple[NDArray[np.float64], list[str]]:
    """Own score minus the best other's, and the best other, by cross-validation over clusters."""
    names = sorted({character for character, *_ in samples})
    labels = np.array([names.index(character) for character, *_ in samples])
    clusters = sorted({cluster for *_, cluster, _ in samples})
    fold = np.array([clusters.index(cluster) % FOLDS for *_, cluster, _ in samples])
    pixels = np.stack([glyph.ravel() for *_, glyph in samples]) / 15.0
    pixels -= pixels.mean(0)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    generator = np.random.default_rng(0)
    features = np.maximum(pixels @ generator.standard_normal((pixels.shape[1], FEATURES)), 0)
    targets = np.eye(len(names))[labels]
    scores = np.empty_like(targets)
    for held_out in range(FOLDS):
        seen = fold != held_out
        weight = 1 / np.bincount(labels[seen], minlength=len(names))[labels[seen]]
        gram = (features[seen].T * weight) @ features[seen]
        gram[np.diag_indices_from(gram)] += 1e-3 * np.trace(gram) / FEATURES
        solved = np.linalg.solve(gram, (features[seen].T * weight) @ targets[seen])
        scores[~seen] = features[~seen] @ solved
    rows = np.arange(len(labels))
    own = scores[rows, labels]
    scores[rows, labels] = -np.inf
    return own - scores.max(1), [names[i] for i in scores.argmax(1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, help="folder of unpacked packages (packages.py)")
    parser.add_argument("out", type=Path, help="folder for the sheets and doubtful.csv")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    _, clusters, classes = collect(arguments.packages)
    for label, character in enumerate(classes):
        tiles = [(k.glyphs[character], "") for k in clusters if character in k.glyphs]
        name = f"{label:03d}_{ord(character):04x}.png"
        sheet(tiles, COLUMNS, size=28).save(arguments.out / name)
    samples = [
        (c, k.source[c], k.name, glyph) for k in clusters for c, glyph in k.glyphs.items()
        if c in classes
    ]  # fmt: skip
    margin, rivals = margins(samples)
    order = [int(i) for i in np.argsort(margin)[:MOST] if margin[i] < 0]
    with (arguments.out / "doubtful.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["character", "looks_like", "family", "margin"])
        for i in order:
            writer.writerow([samples[i][0], rivals[i], samples[i][1], f"{margin[i]:.3f}"])
    tiles = [(samples[i][3], f"{samples[i][0]}>{rivals[i]}") for i in order]
    sheet(tiles, COLUMNS // 2, size=56).save(arguments.out / "doubtful.png")
    print(
        f"{(margin < 0).sum()} of {len(samples)} glyphs are doubtful, the first {len(order)} shown"
    )


if __name__ == "__main__":
    main()
