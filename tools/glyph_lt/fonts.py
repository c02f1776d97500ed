"""One usable font file for each family in a folder of unpacked Debian packages."""

import logging
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError

from licences import font_licence

logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of odd dates in old files

LARGEST_FILE = 12_000_000  # bytes; beyond are the largest CJK fonts
NOT_TEXT = re.compile(
    r"dingbat|wingding|webding|symbol|icon|emoji|braille|music|barcode|chess|ornament|initial"
    r"|phonetic|fonetika|\bipa\b|\btipa|tscu|tamu|\bbits\b|semaphor|awesome|mathjax|katex|adinkra"
    r"|\bsvr|outline|border|\bkeys?\b|keyboard|jsmath|^dseg|stroke|blank|redact",
    re.IGNORECASE,
)
STYLE_WORDS = re.compile(
    r"\b(thin|hairline|extra-?light|ultra-?light|light|book|regular|roman|medium|demi|semi-?bold"
    r"|demi-?bold|bold|extra-?bold|ultra-?bold|heavy|black|ultra|italic|oblique|condensed|narrow"
    r"|cond|compressed|extended|expanded|wide|display|text|caption|subhead|deck|small|caps|sc|lf"
    r"|osf|tlf|pro|std|new|mono|alternates|alt|vf|variable|beta|otf|ttf|ui|unicode|\d+(pt)?)\b",
    re.IGNORECASE,
)
# Families that begin alike and are one design, though style words alone do not tell.
ONE_DESIGN = (
    *("Archiv", "BM HANNA", "Cabin", "CMU Serif", "Comic Neue", "Courier Prime", "Ethiopic WashRa"),
    *("IBM 3270", "IM FELL English", "Karla", "Lexend", "Libertinus", "Libre B", "Libre C"),
    *("M PLUS", "MMCedar", "Museum", "Myanmar Phiksel", "Roadgeek"),
)


@dataclass(frozen=True)
class Font:
    """A family, and the file that is drawn for it."""

    family: str
    version: str
    licence: str
    licence_found: str
    package: str
    path: Path
    characters: frozenset[str]
    rank: tuple[int, int, int, str]  # the smallest of a family is its regular style

    @property
    def stem(self) -> str:
        """The family's name without words for weight, width and optical size."""
        for start in ONE_DESIGN:
            if self.family.startswith(start):
                return start
        split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.family)
        words = re.sub(r"[^a-z]+", "", STYLE_WORDS.sub(" ", split).lower())
        return words or self.family.lower()


def _unicode_characters(font: TTFont) -> frozenset[str]:
    """The characters of a Unicode table; a symbol- or Mac-encoded font has none."""
    for table in font["cmap"].tables:
        if table.isUnicode() and table.format != 14:
            return frozenset(map(chr, font.getBestCmap() or {}))
    return frozenset()


def _read(path: Path, package: str, root: Path) -> Font | None:
    try:
        font = TTFont(path, lazy=True)
        names = font["name"]
        characters = _unicode_characters(font)
        os2 = font.get("OS/2")
        weight, width = (os2.usWeightClass, os2.usWidthClass) if os2 else (400, 5)
        pictorial = os2 is not None and os2.panose.bFamilyType == 5
        italic = bool(font["head"].macStyle & 2) or bool(os2 and os2.fsSelection & 1)
    except (TTLibError, KeyError, AssertionError, struct.error):
        return None

    def name(*ids: int) -> str:
        found = (names.getDebugName(i) for i in ids)
        return re.sub(r"\s+", " ", next((text for text in found if text), "")).strip()

    family = name(16, 1)
    fields = f"{name(13)} {name(14)}"
    licence = font_licence(fields, root / "usr/share/doc" / package / "copyright")
    unusable = (
        not re.search(r"\w\w", family) or not characters or pictorial or NOT_TEXT.search(family)
    )
    if unusable or licence is None:
        return None
    rank = (int(italic), abs(weight - 400), abs(width - 5), path.name)
    version = re.sub(r"^[Vv]ersion\s*", "", name(5))
    return Font(family, version, *licence, package, path, characters, rank)


def find_fonts(root: Path, packages: list[str]) -> Iterator[Font]:
    """The regular style of every usable family, by package and family."""
    families: dict[str, Font] = {}
    for package in sorted(packages):
        folder = root / package
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: run packages.py first")
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".ttf", ".otf"}):
            if path.is_symlink() or path.stat().st_size > LARGEST_FILE:
                continue
            font = _read(path, package, folder)
            if font is None:
                continue
            best = families.get(font.family)
            if best is None or (font.package == best.package and font.rank < best.rank):
                families[font.family] = font
    yield from (families[family] for family in sorted(families))
