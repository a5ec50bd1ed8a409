"""What an encoder does not read of captions is said once for each file."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from common.errors import ConfigError
from common.models.captions import TextReader, report_captions
from common.models.cogvideox import build_tokenizer

WORDS = ["a", "robot", "walks", "runs", ",", "."]


def told(*texts: str, length: int = 5, words: Sequence[str] = WORDS) -> list[str]:
    lines: list[str] = []
    reader = TextReader("the encoder", build_tokenizer(words, length), length)
    captions = [(f"line {place}", text) for place, text in enumerate(texts, start=1)]
    report_captions("p.jsonl", captions, reader, lines.append)
    return lines


def test_captions_that_fit_are_not_mentioned() -> None:
    assert told("a robot", "a robot walks a") == []  # 4 tokens, and the end


def test_what_is_lost_of_long_captions_is_said() -> None:
    assert told("a robot", "a robot walks a robot runs", "robot robot robot robot robot") == [
        "p.jsonl: 2 of 3 captions are longer than the encoder reads (5 tokens); first line 2: 7 tokens, "
        "lost is 'robot runs'"
    ]


def test_captions_that_become_the_same_are_said() -> None:
    (line,) = told("a robot walks a robot", "a robot walks a a", "robot robot robot robot robot")
    assert line.endswith("lost is 'robot'; 2 of them differ only in what is lost")


def test_the_share_of_unknown_words_is_said() -> None:
    assert told("a robot walks", "a cat walks", "日本語", length=9) == [
        "p.jsonl: the encoder does not know 29 % of the words, in 2 of 3 captions, 1 of them whole; "
        "first line 2: 'a cat walks'"
    ]


@pytest.mark.parametrize("texts", [("🤖 🏃", "日本語の説明"), ("Робот идёт, быстро.",), ("🤖, 🏃.",)])
def test_captions_without_a_known_word_are_refused(texts: tuple[str, ...]) -> None:
    """Spaces and punctuation say nothing, though a tokenizer knows them."""
    with pytest.raises(ConfigError) as caught:
        told(*texts, length=20)
    assert str(caught.value) == f"p.jsonl: the encoder knows no word of any caption; first line 1: {texts[0]!r}"
