"""Glyphs that do not show the character they stand for."""

import csv
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classes import CHARACTERS, FALLBACKS
from clusters import SAME, Glyphs

ALIKE = 1.0  # mean absolute difference in levels up to which a small letter is a small capital
UNICASE_SIGNS = "aegrbd"  # a design that draws one of these like its capital has no small letters
FLAG = 0.06  # a 1 whose halves differ less is an old style one, drawn like a Roman I
PLACEHOLDER = 3  # a picture that stands for so many characters is a fallback box
MOST_TWINS = 12  # characters that share a picture; a font with more has no shapes of its own
SOLID = 0.93  # ink in the glyph's own box from which on it is a block, not a letter
BARS = "I1!"  # may fill their box


def read_blocklist(path: Path) -> dict[str, str]:
    """Family -> what not to take from it, found by looking: characters, or `all`, `lower`."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["family"]: row["characters"] for row in csv.DictReader(file)}


def _distance(glyphs: Glyphs, first: str, second: str) -> float:
    if first not in glyphs or second not in glyphs:
        return np.inf
    return float(np.abs(glyphs[first].astype(np.int16) - glyphs[second]).mean())


def _same_picture(glyphs: Glyphs, characters: Iterable[str]) -> list[tuple[str, str]]:
    present = [c for c in characters if c in glyphs]
    return [(a, b) for a, b in combinations(present, 2) if _distance(glyphs, a, b) < SAME]


def _box(glyph: NDArray[np.uint8]) -> NDArray[np.int16]:
    rows, columns = np.flatnonzero(glyph.any(1)), np.flatnonzero(glyph.any(0))
    return glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.int16)


def _solid(character: str, glyph: NDArray[np.uint8]) -> bool:
    return character not in BARS and bool(_box(glyph).mean() > SOLID * 15)


def _asymmetry(glyph: NDArray[np.uint8]) -> float:
    box = _box(glyph)
    return float(np.abs(box - box[:, ::-1]).sum() / 2 / box.sum())


def clean(glyphs: Glyphs, blocked: str) -> Glyphs:
    """The glyphs of a family that can be trusted, of the characters that are classes."""
    small = {c for c in glyphs if c.islower()}
    words = {"all": set(glyphs), "lower": small}
    dropped = {c for word in blocked.split() for c in words.get(word, word)}
    dropped |= {c for c, base in FALLBACKS.items() if _distance(glyphs, c, base) < SAME}
    if any(_distance(glyphs, c, c.upper()) < ALIKE for c in UNICASE_SIGNS):
        dropped |= small
    if "1" in glyphs and _asymmetry(glyphs["1"]) < FLAG:
        dropped.add("1")
    dropped |= {c for c, glyph in glyphs.items() if _solid(c, glyph)}
    kept = {c: glyph for c, glyph in glyphs.items() if c in CHARACTERS and c not in dropped}
    uses = Counter(c for pair in _same_picture(kept, kept) for c in pair)
    if len(twins := set(uses)) > MOST_TWINS or max(uses.values(), default=0) >= PLACEHOLDER:
        return {}
    return {c: glyph for c, glyph in kept.items() if c not in twins}
