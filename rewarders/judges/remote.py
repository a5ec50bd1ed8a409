"""A judge elsewhere, over HTTP: clips and prompts go out, scores come back (`rewarders/judges/server.py` answers).

```
GET  /judges                    --> {"NAME": {"outputs": [...], "digest": "..."}, ...}
POST /score  multipart/form-data:
     request  {"judge": "NAME", "prompts": [{"id", "text", "character", "category", "image": true|false}, ...]}
     clips    an mp4 file per prompt
     images   a first frame (PNG) for each prompt with "image": true
                                --> {"digest": "...", "scores": [{OUTPUT: value} | null], "problems": [null | "why"]}
Authorization: Bearer TOKEN     where the server wants one; 401 otherwise
```
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from common.web.auth import read_token
from rewarders.interface import Clip, JudgeFailed, JudgeUnavailable, Opinion

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds between two tries; the pause doubles
PATIENCE = 3  # batches in a row without an answer after which the judge counts as lost
BUSY = (429, 502, 503, 504)  # worth another try, perhaps at another server


class Remote:
    """A `rewarders.interface.Judge` that asks the servers in ``url``, each in its turn."""

    def __init__(self, judge: JudgeConfig, device: str = "") -> None:
        """`ConfigError` when no server answers, or none has the judge `judge.path` (empty: the only one)."""
        self._servers = judge.servers
        for url in self._servers:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"url = {url!r}: http://HOST:PORT or https://HOST:PORT is needed")
        if not self._servers:
            raise ConfigError("url: an address is needed, http(s)://HOST:PORT")
        self._turn = cycle(self._servers)
        token = read_token(Path(judge.token_file)) if judge.token_file else ""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(timeout=judge.timeout, headers=headers)
        self._tries, self._lost = judge.retries + 1, 0
        self.name, self.outputs, self.digest = self._introduced(judge.path)

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[Opinion]:
        """See `Judge.judge`.

        `ValueError` when the server refuses the request; `JudgeFailed` when it has changed, or was silent too often.
        """
        asked = json.dumps({"judge": self.name, "prompts": [_prompt(prompt) for prompt in prompts]})
        files = [("clips", (f"{i}.mp4", bytes(clip.mp4()), "video/mp4")) for i, clip in enumerate(clips)]
        files += [
            ("images", (f"{i}.png", bytes(prompt.image), "image/png"))
            for i, prompt in enumerate(prompts)
            if prompt.image
        ]
        answer = self._ask("POST", "/score", data={"request": asked}, files=files)
        try:
            said = answer.json()
            if said["digest"] != self.digest:
                raise JudgeFailed(f"{answer.url}: judge {self.name} is another one now (digest {said['digest']})")
            if len(said["scores"]) != len(clips):
                raise ValueError(f"{len(said['scores'])} answers to {len(clips)} clips")
            return [self._opinion(*one) for one in zip(said["scores"], said["problems"], strict=True)]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{answer.url}: an answer of another form: {error!r}") from None

    def _opinion(self, values: dict[str, Any] | None, problem: str | None) -> Opinion:
        if values is None:
            return str(problem or "no score")
        return {output: float(values[output]) for output in self.outputs}

    def _introduced(self, path: str) -> tuple[str, tuple[str, ...], str]:
        try:
            said = self._ask("GET", "/judges").json()
            names = sorted(said)
            if not path and len(names) != 1:
                raise ConfigError(f"{self._servers[0]}: serves {', '.join(names)}; which one? say so in path")
            if path and path not in said:
                raise ConfigError(f"path = {path!r}: {self._servers[0]} serves {', '.join(names) or 'nothing'}")
            name = path or names[0]
            return name, tuple(said[name]["outputs"]), str(said[name]["digest"])
        except (JudgeUnavailable, JudgeFailed) as error:
            raise ConfigError(str(error)) from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{self._servers[0]}: no server of judges: {error}") from None

    def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        """The answer of the first server that gives one."""
        tries = Retrying(
            stop=stop_after_attempt(self._tries),
            wait=wait_exponential_jitter(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE, jitter=FIRST_PAUSE),
            retry=retry_if_exception(_passing),
            before_sleep=self._note_retry,
        )
        try:
            answer = tries(self._once, method, path, **body)
        except RetryError as error:
            self._lost += 1
            words = f"{', '.join(self._servers)}: no answer in {self._tries} tries: {error.last_attempt.exception()!r}"
            raise (JudgeFailed if self._lost >= PATIENCE else JudgeUnavailable)(words) from None
        except httpx.HTTPStatusError as error:
            raise _refused(error.response) from None
        self._lost = 0
        return answer

    def _note_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("judge at %s: try %d of %d failed: %r", ", ".join(self._servers), state.attempt_number, self._tries,
                    error)  # fmt: skip

    def _once(self, method: str, path: str, **body: Any) -> httpx.Response:
        return self._client.request(method, f"{next(self._turn)}{path}", **body).raise_for_status()


def _passing(error: BaseException) -> bool:
    """Whether another try may help."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in BUSY
    return isinstance(error, httpx.TransportError)


def _refused(answer: httpx.Response) -> Exception:
    words = f"{answer.url}: {answer.status_code} {answer.reason_phrase}: {answer.text[:200]}"
    if answer.status_code in (401, 403, 404):
        return JudgeFailed(words)
    return ValueError(words)


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "text": prompt.text,
        "character": prompt.character,
        "category": prompt.category,
        "image": prompt.image is not None,
    }
