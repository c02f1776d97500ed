"""The characters a class may be made of.

Glyphs are scaled to one box, so a character whose shape is another's at a different size (o, O and
0, Greek and Cyrillic twins of Latin letters, C and c ...) can not be told apart: one of each such
group is a class, the others are left out. So are letters that some designs draw like another: the
ligature oe, alpha, eta, theta's and psi's other case.
"""

DIGITS = "123456789"
LATIN_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LATIN_SMALL = "abdefghijmnqrty"
SYMBOLS = "!#$%&*+=?@£§©€¥®±«™{"
LATIN_EXTENDED = "ÅÆÇÉÑÖØÞßðæŁŠžŐűğŒĄ"
GREEK = "ΓΔΣΨΩγδεζθλμξπσφω"
CYRILLIC = "БДЖИЙЛЦЧШЩЪЫЮЯЄЭЉЊЂ"

CHARACTERS = DIGITS + LATIN_CAPITALS + LATIN_SMALL + SYMBOLS + LATIN_EXTENDED + GREEK + CYRILLIC

# Characters that are no class, rendered only to find fonts that draw one glyph for two characters.
PROBES = "cklosuvwxz0"

# A font that draws both of a pair alike lacks the second: it shows a fallback for it.
FALLBACKS = {
    **{small: small.upper() for small in LATIN_SMALL},
    "Å": "A", "Ç": "C", "É": "E", "Ñ": "N", "Ö": "O", "Ø": "O", "Ł": "L", "Š": "S", "ž": "z",
    "Ő": "O", "ű": "u", "ğ": "g", "Ą": "A", "Й": "И", "Щ": "Ш", "Ц": "И",
}  # fmt: skip

# Shapes with no room for a design: two families may share these without being related.
PLAIN = "1IEFHLTilt=+!ΓΔ"
