"""Asks a judge for a batch of clips. A bad clip, answer or line of the judge's code costs one clip its score.

| the judge | the clip's result |
|---|---|
| gives a number per output | the numbers, as floats |
| gives a string, or a value that is no number | the reason |
| raises `ValueError`, gives a wrong number of results | the reason, if the clip fails alone as well |
| raises anything else | the same, as `UnexpectedError`: class, message, file and line; the traceback is logged |
| raises `JudgeUnavailableError` | the reason, for the whole batch |

Out of memory, a failed GPU, `JudgeHangsError`, `JudgeFailedError` and `ConfigError` are raised: no other clip would
fare better.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping, Sequence, Set
from typing import Any

from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from common.errors.places import describe_error, is_from_user_code, place_of
from common.messages import Prompt
from rewarders.interface import Clip, Judge, JudgeFailedError, JudgeResult, JudgeUnavailableError
from rewarders.judging.thread import JUDGES, Call, JudgeHangsError

log = logging.getLogger(__name__)

GPU_FAILURES = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS")  # after these the process has to be restarted
MOST_LOGGED = 100  # places whose tracebacks are logged


class UnexpectedError(str):
    """The reason of a clip without a score whose judge raised something else than `ValueError`."""


class OnceLog:
    """Logs what recurs with every batch only once: a traceback per place, a slow batch path per judge."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def traceback(self, name: str, error: Exception) -> None:
        """Logs the traceback of a judge's error, once per file and line."""
        if self._is_new(f"{name} {place_of(error)}"):
            log.error("judge %s: %s", name, describe_error(error), exc_info=error)

    def slow(self, name: str, clips: int, why: str) -> None:
        """Logs that a judge cannot score batches."""
        if self._is_new(name):
            log.warning("judge %s refuses %d clips at once (%s); they are scored one by one, slower", name, clips, why)

    def _is_new(self, key: str) -> bool:
        new = key not in self._said and len(self._said) < MOST_LOGGED
        self._said.add(key)
        return new


_ONCE = OnceLog()


def judge_clips(
    judge: Judge,
    clips: Sequence[Clip],
    prompts: Sequence[Prompt],
    once: OnceLog = _ONCE,
    call: Call = JUDGES.call,
) -> list[JudgeResult]:
    """Returns the judge's results; if it refuses the batch, those of its clips one by one.

    `call` runs the judge's code (`JudgeThread.call`). Raises the errors that no clip causes (see above).
    """
    if not clips:
        return []
    name = ", ".join(judge.outputs)
    whole = _attempt(judge, name, clips, prompts, once, call)
    if isinstance(whole, list):
        return whole
    if len(clips) == 1:
        log.warning("%s of a clip for prompt %s: %s", name, prompts[0].id, whole)
        return [whole]
    alone = [judge_clips(judge, [clip], [prompt], once, call)[0] for clip, prompt in zip(clips, prompts, strict=True)]
    if not any(isinstance(one, str) for one in alone):
        once.slow(name, len(clips), whole)
    return alone


def _attempt(
    judge: Judge, name: str, clips: Sequence[Clip], prompts: Sequence[Prompt], once: OnceLog, call: Call
) -> list[JudgeResult] | str:
    """Returns the results, or why the judge refuses the batch."""
    try:
        what = f"judge {name}: scoring {len(clips)} clips"
        answer = call(what, lambda: judge.judge(clips, prompts))
        return checked_results(judge.outputs, answer, len(clips))
    except JudgeUnavailableError as error:
        log.warning("%s of %d clips: %s", name, len(clips), error)
        return [str(error) for _ in clips]
    except (ConfigError, JudgeFailedError, JudgeHangsError):
        raise
    except ValueError as error:
        if not is_from_user_code(error):
            return one_line(error)
        once.traceback(name, error)
        return f"judge {name}: {describe_error(error)}"
    except Exception as error:
        reraise_oom(error)
        if any(mark in str(error) for mark in GPU_FAILURES):
            raise
        once.traceback(name, error)
        return UnexpectedError(f"judge {name}: {describe_error(error)}")


def checked_results(outputs: Sequence[str], results: Any, clips: int) -> list[JudgeResult]:
    """Returns a judge's answer with floats as values, and a reason for each result that is none.

    Raises `ValueError` if there is not one result per clip.
    """
    if isinstance(results, Coroutine):
        results.close()
        raise ValueError("is an async function; it must return a list of results")
    if isinstance(results, str | Mapping | Set) or not hasattr(results, "__len__"):
        raise ValueError(f"gave {type(results).__name__} instead of a list of results")
    if len(results) != clips:
        raise ValueError(f"gave {len(results)} results for {clips} clips")
    return [one if isinstance(one, str) else _checked(outputs, one) for one in results]


def _checked(outputs: Sequence[str], result: Any) -> JudgeResult:
    if not isinstance(result, Mapping):
        return f"gave {_shown(result)} instead of a value per output"
    values: dict[str, float] = {}
    for output in outputs:
        if output not in result:
            return f"gave no value for {output}"
        number = _number(result[output])
        if number is None:
            return f"gave {_shown(result[output])} for {output} instead of a number"
        values[output] = number
    return values


def _number(value: Any) -> float | None:
    """Converts a number of Python, numpy or torch. Text is no number, even if it reads like one."""
    try:
        plain = value.item() if hasattr(value, "item") else value
        return None if isinstance(plain, str | bytes | bool) else float(plain)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _shown(value: Any) -> str:
    return f"{one_line(repr(value)):.60}"
