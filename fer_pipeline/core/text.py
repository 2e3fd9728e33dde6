"""Texts of strangers, such as names of files, as they are shown: in a terminal or a log, and in Markdown."""

import re


def printable(text: str) -> str:
    """Return a text on one line: what cannot be printed, such as a line's end or a terminal's command, is escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def in_markdown(text: str) -> str:
    """Return a text so that Markdown shows it as it is, in a paragraph or a cell: no HTML, picture or code comes of it.

    No link either, but what some renderers make of a bare address, which shows where it leads.
    """
    return re.sub(r"([\\`*_<>\[\]|&~])", r"\\\1", printable(" ".join(text.split())))


def table_row(*cells: object) -> str:
    """Return a row of a Markdown table, in which each cell shows what it holds."""
    return "".join(["| ", " | ".join(in_markdown(str(cell)) for cell in cells), " |"])
