"""Where an unexpected error came from, in a few words: ``ValueError: boom in my reward (mine.py:12)``.

The place is the innermost frame of the user's own code (a reward, a judge, an algorithm) if the traceback has one, else
the innermost frame of douga, else the innermost one. The whole traceback goes to the log file of the process.
"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

from common.errors.messages import one_line

ROOT = Path(__file__).resolve().parents[2]
OWN = tuple(f"{ROOT / name}/" for name in ("actors", "benchmarks", "common", "deploy", "learner", "rewarders"))
LIBRARIES = tuple(sysconfig.get_paths()[name] + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))
PLACE = "douga_place"  # attribute of an error that was pickled: its traceback stays behind


def describe_error(error: BaseException) -> str:
    """Returns class, message and place of an unexpected error on one line."""
    place, message = place_of(error), one_line(error)
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{text} ({place})" if place else text


def place_of(error: BaseException) -> str:
    """Returns ``FILE:LINE`` of an error, "" if it is unknown. FILE has no folder."""
    kept = getattr(error, PLACE, None)
    if isinstance(kept, str):
        return kept
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if _is_users(frame.filename)]
    own = [frame for frame in frames if frame.filename.startswith(OWN)]
    chosen = users or own or list(frames)
    return f"{Path(chosen[-1].filename).name}:{chosen[-1].lineno}" if chosen else ""


def is_from_user_code(error: BaseException) -> bool:
    """Whether the error was raised in, or by a library called from, code that belongs neither to douga nor to a
    library."""
    frames = traceback.extract_tb(error.__traceback__)
    innermost = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)][-1:]
    return any(_is_users(frame.filename) for frame in innermost)


def keep_place(error: BaseException) -> None:
    """Stores the place in the error itself, so that it survives pickling."""
    setattr(error, PLACE, place_of(error))


def _is_users(file: str) -> bool:
    return not file.startswith((*OWN, *LIBRARIES, "<"))
