"""Texts of tokens that anything can show: bytes may be control characters."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with everything that has no shape written out.

    The converter behind .png and .pdf ends the whole process at a control character, and a terminal
    obeys it.

    >>> print(printable("a\\x00 b\\n"))
    a\\x00 b\\n
    """
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
