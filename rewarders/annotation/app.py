"""The local web page: FastAPI over a `Survey`.

| request | response |
|---|---|
| GET /, /annotate.js, /annotate.css | the page; contains no data |
| POST /api/login {token} | a cookie, if a token is set |
| GET /api/survey | rubric, numbers of clips, pairs and annotators |
| GET /api/next?annotator&kind | this annotator's current task, and their progress |
| POST /api/rate, /api/choose, /api/undo | stores an answer or takes the last one back; then as /api/next |
| GET /api/results | `inter_annotator.results` without sources: the page stays blind |
| GET /clips/KEY, /frames/KEY | a video with Range support, a first frame |

Authentication: `common/web/auth.py`. A KEY is looked up in the survey and never used as a path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict

from common.web.auth import page_app
from rewarders.annotation import inter_annotator
from rewarders.annotation.playback import PlaybackCheck
from rewarders.annotation.survey import Kind, Side, Survey, UnknownItemError

PAGE = Path(__file__).parent / "page"


class RequestBody(BaseModel):
    """Base class of request bodies: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RateRequest(RequestBody):
    """Ratings of one clip."""

    annotator: str
    item: str
    ratings: dict[str, int]


class ChooseRequest(RequestBody):
    """The better side of one pair."""

    annotator: str
    item: str
    side: Side


class UndoRequest(RequestBody):
    """Takes back the annotator's last answer."""

    annotator: str
    kind: Kind


def make_app(survey: Survey, playback: PlaybackCheck, token: str = "") -> FastAPI:
    """Returns the application. An empty `token` is for loopback only."""
    app = page_app("douga annotate", PAGE, token)
    app.add_exception_handler(UnknownItemError, lambda _, error: JSONResponse({"detail": str(error)}, 404))
    app.add_exception_handler(ValueError, lambda _, error: JSONResponse({"detail": str(error)}, 422))
    _add_read_routes(app, survey)
    _add_answer_routes(app, survey)
    _add_media_routes(app, survey, playback)
    return app


def _add_read_routes(app: FastAPI, survey: Survey) -> None:
    @app.get("/api/survey")
    def describe_survey() -> dict:
        sizes = {"clips": len(survey.clips), "pairs": len(survey.pairs), "annotators": survey.annotators}
        return {"rubric": survey.rubric.model_dump(), **sizes}

    @app.get("/api/next")
    def next_task(annotator: Annotated[str, Query(max_length=200)], kind: Kind) -> dict:
        return survey.next(annotator, kind)

    @app.get("/api/results")
    def results() -> dict:
        return inter_annotator.without_sources(inter_annotator.results(survey))


def _add_answer_routes(app: FastAPI, survey: Survey) -> None:
    @app.post("/api/rate")
    def rate(body: RateRequest) -> dict:
        survey.rate(body.annotator, body.item, body.ratings)
        return survey.next(body.annotator, "rate")

    @app.post("/api/choose")
    def choose(body: ChooseRequest) -> dict:
        survey.choose(body.annotator, body.item, body.side)
        return survey.next(body.annotator, "compare")

    @app.post("/api/undo")
    def undo(body: UndoRequest) -> dict:
        undone = survey.undo(body.annotator, body.kind)
        return survey.next(body.annotator, body.kind) | {"undone": undone}


def _add_media_routes(app: FastAPI, survey: Survey, playback: PlaybackCheck) -> None:
    @app.get("/clips/{key}")
    def clip(key: str) -> Response:
        return FileResponse(playback.video(survey.clip(key)), media_type="video/mp4")

    @app.get("/frames/{key}")
    def frame(key: str) -> Response:
        return Response(playback.first_frame(survey.clip(key)), media_type="image/png")
