"""Where an unexpected error came from: the user's file and line, also behind a library and after pickling."""

from __future__ import annotations

import json
import pickle

import pytest

from common.digests import digest
from common.errors.places import describe_error, is_from_user_code, keep_place, place_of


def raised(act) -> Exception:
    with pytest.raises((ValueError, TypeError)) as caught:
        act()
    return caught.value


def boom() -> None:
    raise ValueError("boom\nin my reward")


LINE = boom.__code__.co_firstlineno + 1


def test_class_message_and_place_on_one_line():
    error = raised(boom)
    assert describe_error(error) == f"ValueError: boom in my reward (test_places.py:{LINE})"
    assert is_from_user_code(error)


def test_an_error_of_a_library_is_placed_at_the_line_that_called_it():
    error = raised(lambda: json.loads("{"))
    assert place_of(error).startswith("test_places.py:")
    assert is_from_user_code(error)


def test_an_error_in_douga_is_not_of_the_users_code():
    error = raised(lambda: digest(None))  # type: ignore[arg-type]
    assert not is_from_user_code(error)


def test_the_place_survives_pickling():
    error = raised(boom)
    keep_place(error)
    assert place_of(pickle.loads(pickle.dumps(error))) == f"test_places.py:{LINE}"


def test_an_error_that_was_never_raised_has_no_place():
    assert describe_error(KeyError()) == "KeyError"
