"""Texts of errors: one line, of limited length."""

from __future__ import annotations

LONGEST = 300  # characters


def one_line(error: object) -> str:
    """The message of a library's error on one line, at most `LONGEST` characters, to quote it in an error of ours."""
    return " ".join(str(error).split())[:LONGEST]
