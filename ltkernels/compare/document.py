"""A report as blocks, and the blocks as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Block", "Code", "Figure", "Heading", "Items", "Table", "Text", "to_html", "to_markdown"]


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the report's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; ``code`` in backticks."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of short lines."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines as they are typed."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table whose first column is names and whose others are numbers."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A picture.

    Args:
        file: where it lies, relative to the report.
        png: its content.
        caption: what is to be seen.
    """

    file: str
    png: bytes
    caption: str


Block: TypeAlias = Heading | Text | Items | Code | Table | Figure


def to_markdown(blocks: Sequence[Block]) -> str:
    """The report as Markdown; pictures are links to their files."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Items(lines):
            return "\n".join(f"- {line}" for line in lines)
        case Code(text):
            return f"```sh\n{text}\n```"
        case Table(titles, rows):
            rule = ["---", *["---:"] * (len(titles) - 1)]
            table: list[Sequence[str]] = [titles, rule, *rows]
            return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in table)
        case Figure(file, _, caption):
            return f"![{caption}]({file})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #555; }
"""


def to_html(blocks: Sequence[Block]) -> str:
    """The report as an HTML document with its pictures inside."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "report")
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Items(lines):
            return "<ul>" + "".join(f"<li>{_inline(line)}</li>" for line in lines) + "</ul>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Table(titles, rows):
            head = "".join(f"<th>{_inline(t)}</th>" for t in titles)
            body = "\n".join(
                "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            )
            return (
                f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n'
                "</tbody></table></div>"
            )
        case Figure(_, png, caption):
            data = base64.b64encode(png).decode("ascii")
            return (
                f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
                f"<figcaption>{_inline(caption)}</figcaption></figure>"
            )


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
