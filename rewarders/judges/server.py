"""Serves judges over HTTP; `rewarders/judges/remote.py` documents the protocol and is the client.

Requests are scored one at a time; the others wait. A clip that cannot be decoded or judged gets ``null`` and a reason
in ``problems``; a malformed request gets 422. Authentication and size limits: `common/web/auth.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from common.messages import Prompt
from common.models.captions import CaptionReader
from common.web.auth import AuthMiddleware
from rewarders.interface import Clip, Judge, JudgeResult, Reward
from rewarders.judging.results import OnceLog, judge_clips
from rewarders.judging.thread import JUDGES, Call
from rewarders.rewarder import read_clip

Json = dict[str, Any]


class RequestPrompt(BaseModel):
    """The prompt that a clip was sampled for."""

    model_config = ConfigDict(extra="forbid")

    text: str
    id: str = ""
    character: str | None = None
    category: str | None = None
    image: bool = False  # whether `images` has its first frame


class ScoreRequest(BaseModel):
    """The form field ``request``."""

    model_config = ConfigDict(extra="forbid")

    judge: str
    prompts: list[RequestPrompt] = Field(min_length=1)


class CaptionsRequest(BaseModel):
    """The body of a request to /captions."""

    model_config = ConfigDict(extra="forbid")

    judge: str
    reader: int = Field(ge=0)
    captions: list[str]


def create_app(
    judges: Mapping[str, Judge],
    token: str,
    most_bytes: int,
    call: Call = JUDGES.call,
    readers: Mapping[str, Sequence[CaptionReader]] = MappingProxyType({}),
) -> FastAPI:
    """Returns the web application that serves `judges`. With an empty `token`, requests need no authentication.

    `readers` are the judges' text encoders that cut captions.
    `call` runs the judges' code: a client in the same process needs another thread than the server.
    """
    app = FastAPI(title="douga judges", docs_url=None, redoc_url=None, openapi_url=None)
    service = JudgeService(judges, call, readers)

    @app.get("/health")
    def health() -> Json:
        return {"status": "ok", "scored": service.scored, "refused": service.refused}

    @app.get("/judges")
    def list_judges() -> Json:
        return service.list_judges()

    @app.post("/captions")
    def captions(request: CaptionsRequest) -> Json:
        return service.captions(request)

    @app.post("/score")
    def score(
        request: Annotated[str, Form()],
        clips: Annotated[list[UploadFile], File()],
        images: Annotated[list[UploadFile] | None, File()] = None,
    ) -> JSONResponse:
        first_frames = [one.file.read() for one in images or []]
        return JSONResponse(service.score(request, [one.file.read() for one in clips], first_frames))

    app.add_middleware(AuthMiddleware, token=token, max_bytes=most_bytes, public_paths=["/health"])
    return app


class RewardsAsJudge:
    """Several rewards as one `Judge`: their dimensions are its outputs."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._rewards = tuple(rewards)
        self.outputs = tuple(reward.dimension for reward in rewards)
        self.digest = " ".join(reward.digest for reward in rewards)

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[JudgeResult]:
        """See `Judge.judge`."""
        frames = [clip.frames for clip in clips]
        columns = [reward.score(frames, prompts) for reward in self._rewards]
        return [dict(zip(self.outputs, row, strict=True)) for row in zip(*columns, strict=True)]


class JudgeService:
    """Parses requests and runs the judges, one request at a time."""

    def __init__(
        self,
        judges: Mapping[str, Judge],
        call: Call = JUDGES.call,
        readers: Mapping[str, Sequence[CaptionReader]] = MappingProxyType({}),
    ) -> None:
        self._judges, self._call = dict(judges), call  # calls wait for each other
        self._readers = {name: list(readers.get(name, ())) for name in judges}
        self._once = OnceLog()
        self.scored = self.refused = 0  # clips

    def list_judges(self) -> Json:
        """Returns name, outputs, digest and text encoders of every judge."""
        return {
            name: {
                "outputs": judge.outputs,
                "digest": judge.digest,
                "readers": [{"name": one.name, "length": one.length} for one in self._readers[name]],
            }
            for name, judge in self._judges.items()
        }

    def captions(self, asked: CaptionsRequest) -> Json:
        """Returns what a text encoder does not read of captions. Raises `HTTPException` if there is no such encoder."""
        readers = self._readers.get(asked.judge, [])
        if asked.reader >= len(readers):
            raise HTTPException(
                422, f"judge {asked.judge!r:.60} has {len(readers)} readers, none of place {asked.reader}"
            )
        return {"cuts": [cut and asdict(cut) for cut in readers[asked.reader].cuts(asked.captions)]}

    def score(self, request: str, files: list[bytes], images: list[bytes]) -> Json:
        """Returns the response to a score request. Raises `HTTPException` if the request is malformed."""
        try:
            asked = ScoreRequest.model_validate_json(request)
        except ValidationError as error:
            raise HTTPException(422, f"request: {error.errors()[0]['msg']}") from None
        if asked.judge not in self._judges:
            raise HTTPException(404, f"no judge {asked.judge!r:.60}; available: {', '.join(self._judges)}")
        if len(files) != len(asked.prompts) or len(images) != sum(one.image for one in asked.prompts):
            raise HTTPException(422, f"{len(asked.prompts)} prompts, {len(files)} clips, {len(images)} images")
        judge, first_frames = self._judges[asked.judge], iter(images)
        prompts = [_prompt(i, one, next(first_frames) if one.image else None) for i, one in enumerate(asked.prompts)]
        results = self._judge_readable(judge, [_clip(file) for file in files], prompts)
        problems = [_problem_of(one) for one in results]
        self.refused += sum(problem is not None for problem in problems)
        self.scored += sum(problem is None for problem in problems)
        scores = [None if problem else one for one, problem in zip(results, problems, strict=True)]
        return {"digest": judge.digest, "scores": scores, "problems": problems}

    def _judge_readable(self, judge: Judge, clips: list[Clip | str], prompts: list[Prompt]) -> list[JudgeResult]:
        good = [(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True) if isinstance(clip, Clip)]
        shown, asked = [clip for clip, _ in good], [prompt for _, prompt in good]
        results = iter(judge_clips(judge, shown, asked, self._once, self._call))
        return [clip if isinstance(clip, str) else next(results) for clip in clips]


def _clip(file: bytes) -> Clip | str:
    try:
        return read_clip(file)
    except ValueError as error:
        return str(error)


def _prompt(ordinal: int, asked: RequestPrompt, image: bytes | None) -> Prompt:
    return Prompt(ordinal, asked.id, asked.text, image, character=asked.character, category=asked.category)


def _problem_of(result: JudgeResult) -> str | None:
    if isinstance(result, str):
        return result or "no score"
    broken = [output for output, value in result.items() if not math.isfinite(value)]
    return f"{', '.join(broken)}: no finite score" if broken else None
