"""Build ltkernels/data/files/glyph_lt.npz and FONTS.csv from Debian font packages."""

import argparse
import csv
import hashlib
from pathlib import Path

import numpy as np

from classes import CHARACTERS, PLAIN, PROBES
from cleaning import clean, read_blocklist
from clusters import Glyphs, design_clusters
from dataset import Cluster, choose_classes, make_arrays, make_clusters
from fonts import Font, find_fonts
from packages import read_packages
from render import open_face, render

HERE = Path(__file__).resolve().parent
FILES = HERE.parents[1] / "ltkernels/data/files"

COLUMNS = (
    *("family", "version", "licence", "licence_found", "package", "package_version"),
    *("cluster", "split"),
)


def draw_family(font: Font) -> Glyphs:
    """Every character of interest that the family has."""
    face = open_face(str(font.path))
    drawn = {c: render(face, c) for c in CHARACTERS + PROBES if c in font.characters}
    return {c: image for c, image in drawn.items() if image is not None}


def collect(packages: Path) -> tuple[list[Font], list[Cluster], list[str]]:
    """The fonts, their design clusters, and the classes in order."""
    blocked = read_blocklist(HERE / "blocklist.csv")
    fonts = list(find_fonts(packages, list(read_packages())))
    glyphs = [clean(draw_family(font), blocked.get(font.family, "")) for font in fonts]
    telling = "".join(c for c in CHARACTERS if c not in PLAIN)
    roots = design_clusters([font.stem for font in fonts], glyphs, telling)
    families = {font.family: drawn for font, drawn in zip(fonts, glyphs, strict=True)}
    cluster_of = {font.family: fonts[r].family for font, r in zip(fonts, roots, strict=True)}
    clusters = make_clusters(families, cluster_of)
    return fonts, clusters, choose_classes(clusters)


def write_fonts(path: Path, fonts: list[Font], clusters: list[Cluster], used: set[str]) -> None:
    """The families whose glyphs are in the file, each with its licence and package."""
    versions = read_packages()
    where = {family: k for k in clusters for family in k.source.values()}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for font in fonts:
            if font.family in used:
                cluster = where[font.family]
                row = [font.family, font.version, font.licence, font.licence_found, font.package]
                split = "test" if cluster.test else "train"
                writer.writerow([*row, versions[font.package], cluster.name, split])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path, help="folder of unpacked packages (packages.py)")
    parser.add_argument("--out", type=Path, default=FILES, help="where the two files go")
    arguments = parser.parse_args()
    fonts, clusters, classes = collect(arguments.packages)
    arrays, used = make_arrays(clusters, classes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.out / "glyph_lt.npz"
    np.savez_compressed(target, **arrays)
    write_fonts(arguments.out / "FONTS.csv", fonts, clusters, used)
    counts = np.bincount(arrays["train_labels"][arrays["train_index"]])
    test = sum(cluster.test for cluster in clusters)
    print(f"families {len(used)}, clusters {len(clusters)} ({test} test)")
    print(f"pool {len(arrays['train_labels'])}, drawn {counts.sum()}: {counts[0]} ... {counts[-1]}")
    print(f"bytes {target.stat().st_size}")
    print(f"sha256 {hashlib.sha256(target.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
