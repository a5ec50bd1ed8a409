"""When an HTTP client asks again: after lost connections and the statuses of a busy server, with doubling pauses."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds between two attempts; the pause doubles
RETRY_STATUS = (429, 502, 503, 504)  # HTTP statuses worth another attempt, perhaps at another server


def retrying(attempts: int, before_sleep: Callable[[RetryCallState], None] | None = None) -> Retrying:
    """``retrying(n)(call, ...)`` calls up to `n` times. Raises tenacity's `RetryError` if the last attempt fails.

    Errors for which another attempt is of no use pass through unchanged.
    """
    return Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_exponential_jitter(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE, jitter=FIRST_PAUSE),
        retry=retry_if_exception(_is_retryable),
        before_sleep=before_sleep,
    )


def _is_retryable(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in RETRY_STATUS
    return isinstance(error, httpx.TransportError)
