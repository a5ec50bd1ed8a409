"""Judges served over HTTP: the other side of `rewarders/judges/remote.py`, which says what is asked and answered.

One request is scored at a time; the others wait. A clip that cannot be read or judged gets ``null`` and the reason in
``problems``; a request that is not understood 422. Who may ask, and how much: `common/web/auth.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from common.messages import Prompt
from common.web.auth import AuthMiddleware
from rewarders.interface import Clip, Judge, Opinion, Reward
from rewarders.rewarder import opinions, read_clip

Answer = dict[str, Any]


class AskedPrompt(BaseModel):
    """What a clip was sampled for."""

    model_config = ConfigDict(extra="forbid")

    text: str
    id: str = ""
    character: str | None = None
    category: str | None = None
    image: bool = False  # its first frame is among the images


class Asked(BaseModel):
    """The part ``request``."""

    model_config = ConfigDict(extra="forbid")

    judge: str
    prompts: list[AskedPrompt] = Field(min_length=1)


def application(judges: Mapping[str, Judge], token: str, most_bytes: int) -> FastAPI:
    """The web application that serves `judges`. An empty `token` lets everybody in."""
    app = FastAPI(title="douga judges", docs_url=None, redoc_url=None, openapi_url=None)
    desk = Desk(judges)

    @app.get("/health")
    def health() -> Answer:
        return {"status": "ok", "scored": desk.scored, "refused": desk.refused}

    @app.get("/judges")
    def introduce() -> Answer:
        return desk.introduce()

    @app.post("/score")
    def score(
        request: Annotated[str, Form()],
        clips: Annotated[list[UploadFile], File()],
        images: Annotated[list[UploadFile] | None, File()] = None,
    ) -> JSONResponse:
        pictures = [one.file.read() for one in images or []]
        return JSONResponse(desk.score(request, [one.file.read() for one in clips], pictures))

    app.add_middleware(AuthMiddleware, token=token, max_bytes=most_bytes, public_paths=["/health"])
    return app


class Panel:
    """Several rewards as one `Judge`: their dimensions are its outputs."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._rewards = tuple(rewards)
        self.outputs = tuple(reward.dimension for reward in rewards)
        self.digest = " ".join(reward.digest for reward in rewards)

    def judge(self, clips: Sequence[Clip], prompts: Sequence[Prompt]) -> list[Opinion]:
        """See `Judge.judge`."""
        frames = [clip.frames for clip in clips]
        columns = [reward.score(frames, prompts) for reward in self._rewards]
        return [dict(zip(self.outputs, row, strict=True)) for row in zip(*columns, strict=True)]


class Desk:
    """Reads requests and asks the judges, one request at a time."""

    def __init__(self, judges: Mapping[str, Judge]) -> None:
        self._judges, self._lock = dict(judges), Lock()
        self.scored = self.refused = 0  # clips

    def introduce(self) -> Answer:
        """What there is to ask."""
        return {name: {"outputs": judge.outputs, "digest": judge.digest} for name, judge in self._judges.items()}

    def score(self, request: str, files: list[bytes], images: list[bytes]) -> Answer:
        """The answer to a request. `HTTPException` when it cannot be understood."""
        try:
            asked = Asked.model_validate_json(request)
        except ValidationError as error:
            raise HTTPException(422, f"request: {error.errors()[0]['msg']}") from None
        if asked.judge not in self._judges:
            raise HTTPException(404, f"no judge {asked.judge!r:.60}; there are {', '.join(self._judges)}")
        if len(files) != len(asked.prompts) or len(images) != sum(one.image for one in asked.prompts):
            raise HTTPException(422, f"{len(asked.prompts)} prompts, {len(files)} clips, {len(images)} images")
        judge, pictures = self._judges[asked.judge], iter(images)
        prompts = [_prompt(i, one, next(pictures) if one.image else None) for i, one in enumerate(asked.prompts)]
        found = self._opinions(judge, [_clip(file) for file in files], prompts)
        problems = [_problem(one) for one in found]
        self.refused += sum(problem is not None for problem in problems)
        self.scored += sum(problem is None for problem in problems)
        scores = [None if problem else one for one, problem in zip(found, problems, strict=True)]
        return {"digest": judge.digest, "scores": scores, "problems": problems}

    def _opinions(self, judge: Judge, clips: list[Clip | str], prompts: list[Prompt]) -> list[Opinion]:
        good = [(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True) if isinstance(clip, Clip)]
        with self._lock:
            found = iter(opinions(judge, [clip for clip, _ in good], [prompt for _, prompt in good]))
        return [clip if isinstance(clip, str) else next(found) for clip in clips]


def _clip(file: bytes) -> Clip | str:
    try:
        return read_clip(file)
    except ValueError as error:
        return str(error)


def _prompt(ordinal: int, asked: AskedPrompt, image: bytes | None) -> Prompt:
    return Prompt(ordinal, asked.id, asked.text, image, character=asked.character, category=asked.category)


def _problem(opinion: Opinion) -> str | None:
    if isinstance(opinion, str):
        return opinion or "no score"
    broken = [output for output, value in opinion.items() if not math.isfinite(value)]
    return f"{', '.join(broken)}: no finite score" if broken else None
