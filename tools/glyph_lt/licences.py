"""Which licence a font file is under, and where that is written."""

import re
from pathlib import Path

# In order: the first that matches names the licence.
ACCEPTED = (
    ("OFL", r"\bofl\b|ofl-?1|open ?font licen[cs]e|scripts\.sil\.org|openfontlicense"),
    ("Apache", r"\bapache\b"),
    ("CC0", r"\bcc0\b|publicdomain/zero"),
    ("MIT", r"\bmit\b|\bexpat\b|permission is hereby granted, free of charge"),
    ("public domain", r"(?<!not in the )public[ -]domain"),
)
REFUSED = (
    r"general public|\bl?a?gpl|creative ?commons(?! zero)|\bcc[ -]by|\bby-(sa|nc|nd)\b"
    r"|non-?commercial|personal use|free for private|not allowed|shareware"
)


def _accepted(text: str) -> str | None:
    """The first accepted licence that `text` names; none if it also names a refused one."""
    lowered = text.lower()
    if re.search(REFUSED, lowered):
        return None
    return next((name for name, pattern in ACCEPTED if re.search(pattern, lowered)), None)


def name_table_licence(fields: str) -> str | None:
    """Licence named by the fields 13 and 14 of a font's name table."""
    return _accepted(fields)


def copyright_licence(path: Path) -> str | None:
    """Licence of everything but the packaging, as a Debian copyright file states it.

    A machine-readable file counts if each of its `Files:` paragraphs has an accepted licence among
    its alternatives; any other file counts only if it names no refused licence at all.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if not re.match(r"\s*Format:", text):
        return _accepted(text)
    found = []
    for paragraph in re.split(r"\n\s*\n(?=\S)", text):
        files = re.search(r"^Files:\s*(.+)", paragraph, re.MULTILINE)
        licence = re.search(r"^License:\s*(.+)", paragraph, re.MULTILINE)
        if not files or files[1].startswith("debian/"):
            continue
        if not licence or re.search(r"\band\b", licence[1]):
            return None
        alternatives = [_accepted(name) for name in re.split(r"\bor\b|\|", licence[1])]
        accepted = [name for name in alternatives if name]
        if not accepted:
            return None
        found.append(accepted[0])
    return found[0] if found and len(set(found)) == 1 else None


def font_licence(fields: str, copyright_file: Path) -> tuple[str, str] | None:
    """(licence, where it was found), or None if it is not surely one of the accepted ones.

    The copyright file is asked only where the font itself says nothing of a licence.
    """
    if licence := name_table_licence(fields):
        return licence, "name table"
    if re.search(r"licen[cs]|grant|permi[ts]|" + REFUSED, fields.lower()):
        return None
    if copyright_file.exists() and (licence := copyright_licence(copyright_file)):
        return licence, "debian copyright"
    return None
