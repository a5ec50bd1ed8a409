"""A judge on another machine, over HTTP: sends clips and prompts, receives scores. `rewarders/judges/server.py`
answers.

```
GET  /judges                    --> {"NAME": {"outputs": [...], "digest": "...",
                                              "readers": [{"name": "...", "length": tokens}]}, ...}
POST /captions  {"judge": "NAME", "reader": its place in "readers", "captions": ["...", ...]}
                                --> {"cuts": [null | {"tokens": n, "read": "...", "lost": "..."}, ...]}
POST /score  multipart/form-data:
     request  {"judge": "NAME", "prompts": [{"id", "text", "character", "category", "image": true|false}, ...]}
     clips    an mp4 file per prompt
     images   a first frame (PNG) for each prompt with "image": true
                                --> {"digest": "...", "scores": [{OUTPUT: value} | null], "problems": [null | "why"]}
"readers" are the text encoders that cut captions. A server may leave them out, and then needs no /captions.
Authorization: Bearer TOKEN     if the server has a token; else it answers 401
```

Proxies in the environment (HTTP_PROXY, ALL_PROXY) are not used; the key ``proxy`` sets one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
from tenacity import RetryCallState, RetryError

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from common.models.captions import CHUNK, Cut
from common.web.auth import read_token
from common.web.clients import open_client
from common.web.retries import retrying
from rewarders.interface import Clip, JudgeFailedError, JudgeResult, JudgeUnavailableError

log = logging.getLogger(__name__)

MAX_UNANSWERED = 3  # consecutive batches without an answer before the judge counts as failed


@dataclass(frozen=True)
class RemoteReader:
    """A `CaptionReader` on a judge server."""

    name: str
    length: int
    judge: RemoteJudge
    place: int  # in the server's list

    def cuts(self, texts: Sequence[str]) -> list[Cut | None]:
        """See `CaptionReader`. Raises `ConfigError` if the server does not answer."""
        chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
        return [cut for chunk in chunks for cut in self.judge.cuts(self.place, chunk)]


class RemoteJudge:
    """A `rewarders.interface.Judge` that queries the servers in ``url``, round-robin."""

    def __init__(self, judge: JudgeConfig, device: str = "") -> None:
        """Raises `ConfigError` if no server answers, or if none has the judge `judge.path` (empty: the only one)."""
        self._servers = judge.servers
        for url in self._servers:
            _check_address(url)
        if not self._servers:
            raise ConfigError("url: must be at least one http(s)://HOST:PORT")
        self._next_server = cycle(self._servers)
        token = read_token(Path(judge.token_file)) if judge.token_file else ""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = open_client("proxy", judge.proxy, judge.timeout, headers)
        self._through = f" through the proxy {judge.proxy}" if judge.proxy else ""
        self._attempts, self._unanswered = judge.retries + 1, 0
        self._readers: list[dict[str, Any]] = []
        self.name, self.outputs, self.digest = self._discover(judge.path)

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `Judge.judge`.

        Raises `ValueError` if the server refuses the request, `JudgeUnavailableError` if all attempts fail, and
        `JudgeFailedError` if it denies access (401, 403, 404), its digest has changed, or `MAX_UNANSWERED` batches in
        a row failed.
        """
        asked = json.dumps({"judge": self.name, "prompts": [_prompt(prompt) for prompt in prompts]})
        files = [("clips", (f"{i}.mp4", bytes(clip.mp4()), "video/mp4")) for i, clip in enumerate(clips)]
        files += [
            ("images", (f"{i}.png", bytes(prompt.image), "image/png"))
            for i, prompt in enumerate(prompts)
            if prompt.image
        ]
        answer = self._request_with_retries("POST", "/score", data={"request": asked}, files=files)
        try:
            reply = answer.json()
            if reply["digest"] != self.digest:
                raise JudgeFailedError(
                    f"{answer.url}: judge {self.name} has changed: its digest is now {reply['digest']}"
                )
            if len(reply["scores"]) != len(clips):
                raise ValueError(f"got {len(reply['scores'])} results for {len(clips)} clips")
            return [self._result(*one) for one in zip(reply["scores"], reply["problems"], strict=True)]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{answer.url}: malformed answer: {error!r}") from None

    def readers(self, name: str) -> list[RemoteReader]:
        """The text encoders of the judge that cut captions; messages call the judge `name`."""
        called = [f"{name} ({one['name']})" if one["name"] else name for one in self._readers]
        return [
            RemoteReader(said, one["length"], self, place)
            for place, (said, one) in enumerate(zip(called, self._readers, strict=True))
        ]

    def cuts(self, reader: int, captions: Sequence[str]) -> list[Cut | None]:
        """See `CaptionReader.cuts`. Raises `ConfigError` if the server does not answer as the protocol says."""
        asked = {"judge": self.name, "reader": reader, "captions": list(captions)}
        try:
            answer = self._request_with_retries("POST", "/captions", json=asked).json()["cuts"]
            found = [
                None if one is None else Cut(int(one["tokens"]), str(one["read"]), str(one["lost"])) for one in answer
            ]
            if len(found) != len(captions):
                raise ValueError(f"got {len(found)} results for {len(captions)} captions")
            return found
        except (JudgeUnavailableError, JudgeFailedError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._servers[0]}: /captions: {error}") from None

    def _result(self, values: dict[str, Any] | None, problem: str | None) -> JudgeResult:
        if values is None:
            return str(problem or "no score")
        return {output: float(values[output]) for output in self.outputs}

    def _discover(self, path: str) -> tuple[str, tuple[str, ...], str]:
        try:
            reply = self._request_with_retries("GET", "/judges").json()
            names = sorted(reply)
            if not path and len(names) != 1:
                raise ConfigError(f"{self._servers[0]}: serves {', '.join(names)}; set path to one of them")
            if path and path not in reply:
                raise ConfigError(f"path = {path!r}: {self._servers[0]} serves {', '.join(names) or 'nothing'}")
            name = path or names[0]
            self._readers = [
                {"name": str(one["name"]), "length": int(one["length"])} for one in reply[name].get("readers", [])
            ]
            return name, tuple(reply[name]["outputs"]), str(reply[name]["digest"])
        except (JudgeUnavailableError, JudgeFailedError) as error:
            raise ConfigError(str(error)) from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{self._servers[0]}: is not a judge server: {error}") from None

    def _request_with_retries(self, method: str, path: str, **body: Any) -> httpx.Response:
        """Returns the first successful response."""
        try:
            answer = retrying(self._attempts, self._log_retry)(self._request, method, path, **body)
        except RetryError as error:
            self._unanswered += 1
            cause = error.last_attempt.exception()
            message = f"{', '.join(self._servers)}: no answer{self._through} in {self._attempts} attempts: {cause!r}"
            raise (JudgeFailedError if self._unanswered >= MAX_UNANSWERED else JudgeUnavailableError)(message) from None
        except httpx.HTTPStatusError as error:
            raise _refusal(error.response) from None
        except httpx.HTTPError as error:  # redirects without end, an answer that cannot be decoded
            raise ValueError(f"{', '.join(self._servers)}: {error!r}") from None
        self._unanswered = 0
        return answer

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        servers = ", ".join(self._servers) + self._through
        log.warning("judge at %s: attempt %d of %d failed: %r", servers, state.attempt_number, self._attempts, error)

    def _request(self, method: str, path: str, **body: Any) -> httpx.Response:
        return self._client.request(method, f"{next(self._next_server)}{path}", **body).raise_for_status()


def _check_address(url: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"url = {url!r}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"url = {url!r}: must be http://HOST:PORT or https://HOST:PORT")


def _refusal(answer: httpx.Response) -> Exception:
    message = f"{answer.url}: {answer.status_code} {answer.reason_phrase}: {answer.text[:200]}"
    if answer.status_code in (401, 403, 404):
        return JudgeFailedError(message)
    return ValueError(message)


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "text": prompt.text,
        "character": prompt.character,
        "category": prompt.category,
        "image": prompt.image is not None,
    }
