"""Vocabularies of actions: the built-in one, files of one's own, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.prompts.vocabulary import Vocabulary, open_vocabulary
from common.errors import ConfigError

NAMED_BY_THE_PAPER = {"speaking", "walking", "waving", "kissing", "crying", "hugging", "pushing", "pulling"}


def written(folder: Path, text: str) -> Vocabulary:
    (folder / "mine.toml").write_text(text)
    return open_vocabulary(str(folder / "mine.toml"))


def test_the_built_in_vocabulary_has_more_than_a_hundred_actions_and_those_of_the_paper() -> None:
    anime = open_vocabulary("anime")
    assert len(anime.actions) > 100
    assert set(anime.actions) >= NAMED_BY_THE_PAPER
    assert len(anime.kinds) >= 10


def test_case_and_white_space_of_a_label_do_not_matter(tmp_path: Path) -> None:
    mine = written(tmp_path, 'play = ["Holding  hands", "fishing"]\nwork = ["reading"]')
    assert mine.actions == ["holding hands", "fishing", "reading"]
    assert mine.action(" holding\tHands ") == "holding hands"
    with pytest.raises(ValueError, match=r"^category = 'fishng': unknown action; did you mean 'fishing'\?$"):
        mine.action("fishng")
    with pytest.raises(ValueError, match=r"^category = 'xyz': unknown action; mine.toml lists those that are known$"):
        mine.action("xyz")
    for nothing in (None, "", "  "):
        with pytest.raises(ValueError, match="no category: the action is missing"):
            mine.action(nothing)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no actions in it"),
        ("play = []", "play: a list of actions is expected, and at least one"),
        ('play = "fishing"', "play: a list of actions is expected, and at least one"),
        ('play = ["fishing", " "]', "play: ' ' is not an action; a name is expected"),
        ("play = [3]", "play: 3 is not an action; a name is expected"),
        ('play = ["fishing"]\nwork = ["Fishing "]', "'fishing' is in play and again in work"),
        ('play = ["fishing", "fishing"]', "'fishing' is in play and again in play"),
        ("play = [", "cannot be read: "),
    ],
)
def test_what_is_wrong_with_a_vocabulary_is_one_line(text: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, text)
    assert f"{tmp_path}/mine.toml: {fault}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"^vocabulary none.toml: neither anime nor a file$"):
        open_vocabulary("none.toml")
