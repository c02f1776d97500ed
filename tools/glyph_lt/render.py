"""A character of a font as a 28x28 image."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

SIDE = 28
BOX = 22  # the glyph's longer side: three pixels of margin
LEVELS = 16  # greys kept: what the file holds is mostly entropy of edge pixels
EM = 160  # drawn at this size, then averaged down: no hinting left, even antialiasing


def open_face(path: str) -> ImageFont.FreeTypeFont:
    """The font at drawing size, without substitutions of glyphs."""
    return ImageFont.truetype(path, EM, layout_engine=ImageFont.Layout.BASIC)


def render(face: ImageFont.FreeTypeFont, character: str) -> NDArray[np.uint8] | None:
    """Grey levels 0 ... 15, the glyph's box scaled to 22 pixels and centred; None if blank."""
    try:
        mask = face.getmask(character, mode="L")
    except OSError:  # FreeType refuses the outline
        return None
    if 0 in mask.size:
        return None
    ink = np.asarray(mask, dtype=np.uint8).reshape(mask.size[1], mask.size[0])
    rows, columns = np.flatnonzero(ink.max(1) > 64), np.flatnonzero(ink.max(0) > 64)
    if not rows.size:
        return None
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = ink.shape
    scale = BOX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BOX), dtype=np.float64)
    levels = np.round(small * ((LEVELS - 1) / small.max())).astype(np.uint8)
    image = np.zeros((SIDE, SIDE), dtype=np.uint8)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    image[top : top + size[1], left : left + size[0]] = levels
    return image
