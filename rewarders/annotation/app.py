"""The local web page: FastAPI over a `Survey`.

| request | what |
|---|---|
| GET /, /annotate.js, /annotate.css | the page; holds no data |
| POST /api/login {token} | a cookie, where a token is set |
| GET /api/survey | rubric, what there is |
| GET /api/next?annotator&kind | the task of this person now, and their progress |
| POST /api/rate, /api/choose, /api/undo | an answer, and back |
| GET /api/results | `agreement.results` |
| GET /clips/KEY, /frames/KEY | a video with Range support, a first frame |

Who may ask: `common/web/auth.py`. A KEY is looked up among the survey's, and never used as a path.
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
from rewarders.annotation.survey import Kind, Side, Survey, Unknown

PAGE = Path(__file__).parent / "page"


class Body(BaseModel):
    """What is posted: nothing but the fields asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Rating(Body):
    """Ratings of one clip."""

    annotator: str
    item: str
    ratings: dict[str, int]


class Choosing(Body):
    """The better side of one pair."""

    annotator: str
    item: str
    side: Side


class Undoing(Body):
    """One step back."""

    annotator: str
    kind: Kind


def make_app(survey: Survey, screening: PlaybackCheck, token: str = "") -> FastAPI:
    """The application; without a `token`, for loopback alone."""
    app = page_app("douga annotate", PAGE, token)
    app.add_exception_handler(Unknown, lambda _, error: JSONResponse({"detail": str(error)}, 404))
    app.add_exception_handler(ValueError, lambda _, error: JSONResponse({"detail": str(error)}, 422))
    _add_asking(app, survey)
    _add_answering(app, survey)
    _add_media(app, survey, screening)
    return app


def _add_asking(app: FastAPI, survey: Survey) -> None:
    @app.get("/api/survey")
    def about() -> dict:
        sizes = {"clips": len(survey.clips), "pairs": len(survey.pairs), "annotators": survey.annotators}
        return {"rubric": survey.rubric.model_dump(), **sizes}

    @app.get("/api/next")
    def following(annotator: Annotated[str, Query(max_length=200)], kind: Kind) -> dict:
        return survey.next(annotator, kind)

    @app.get("/api/results")
    def results() -> dict:
        return inter_annotator.results(survey)


def _add_answering(app: FastAPI, survey: Survey) -> None:
    @app.post("/api/rate")
    def rate(body: Rating) -> dict:
        survey.rate(body.annotator, body.item, body.ratings)
        return survey.next(body.annotator, "rate")

    @app.post("/api/choose")
    def choose(body: Choosing) -> dict:
        survey.choose(body.annotator, body.item, body.side)
        return survey.next(body.annotator, "compare")

    @app.post("/api/undo")
    def undo(body: Undoing) -> dict:
        undone = survey.undo(body.annotator, body.kind)
        return survey.next(body.annotator, body.kind) | {"undone": undone}


def _add_media(app: FastAPI, survey: Survey, screening: PlaybackCheck) -> None:
    @app.get("/clips/{key}")
    def clip(key: str) -> Response:
        return FileResponse(screening.video(survey.clip(key)), media_type="video/mp4")

    @app.get("/frames/{key}")
    def frame(key: str) -> Response:
        return Response(screening.first_frame(survey.clip(key)), media_type="image/png")
