"""Makes untrusted text, such as a file name, safe to show in a terminal, a log or Markdown."""

import re


def printable(text: str) -> str:
    """Return a text as one line: characters that cannot be printed, such as line ends and terminal commands, are escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def in_markdown(text: str) -> str:
    """Return a text that Markdown shows unchanged in a paragraph or a cell, never as HTML, a picture, code or a link.

    Some renderers still link a bare address, but such a link shows its target.
    """
    return re.sub(r"([\\`*_<>\[\]|&~])", r"\\\1", printable(" ".join(text.split())))


def table_row(*cells: object) -> str:
    """Return a row of a Markdown table that shows each cell unchanged."""
    return "".join(["| ", " | ".join(in_markdown(str(cell)) for cell in cells), " |"])
