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

Who may ask: without a token whoever is on this machine, under the names of loopback alone (a foreign page cannot reach
it by giving its own name the address 127.0.0.1). With a token whoever has it, as a bearer token or by the cookie. A KEY
is looked up among the survey's, and never used as a path.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rewarders.human import agreement
from rewarders.human.screening import Screening
from rewarders.human.survey import Kind, Side, Survey, Unknown

PAGE = Path(__file__).parent / "page"
LOOPBACK_NAMES = ["127.0.0.1", "localhost"]
COOKIE = "douga_annotate"
MAX_BODY = 64 * 1024
SAFETY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Body(BaseModel):
    """What is posted: nothing but the fields asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Login(Body):
    """The token, typed in."""

    token: str = Field(max_length=1000)


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


def make_app(survey: Survey, screening: Screening, token: str | None = None) -> FastAPI:
    """The application; `token` None: for loopback alone."""
    app = FastAPI(title="douga annotate", docs_url=None, redoc_url=None, openapi_url=None)
    guard = Guard(token)
    app.middleware("http")(guard.within)
    if token is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_NAMES)
    app.add_exception_handler(Unknown, lambda _, error: JSONResponse({"detail": str(error)}, 404))
    app.add_exception_handler(ValueError, lambda _, error: JSONResponse({"detail": str(error)}, 422))
    _add_page(app)
    _add_login(app, guard)
    _add_asking(app, survey, guard)
    _add_answering(app, survey, guard)
    _add_media(app, survey, screening, guard)
    return app


class Guard:
    """Who may ask, and how much."""

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else _hashed(token)

    def knows(self, token: str) -> bool:
        """Whether this is the token; takes as long for every wrong one."""
        return self._token is None or hmac.compare_digest(_hashed(token), self._token)

    def cookie(self) -> str:
        """What stands for the token in a browser: of no use elsewhere."""
        return sha256(f"cookie:{self._token}".encode()).hexdigest()

    def check(self, request: Request) -> None:
        """401 for whoever has neither token nor cookie."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        by_header = scheme.lower() == "bearer" and self.knows(given.strip())
        by_cookie = hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self.cookie().encode())
        if self._token is not None and not by_header and not by_cookie:
            raise HTTPException(401, "a token is needed")

    async def within(self, request: Request, then: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse what is too large; say on every answer what a browser may do with it."""
        length = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers or not length.isdecimal() or int(length) > MAX_BODY:
            return JSONResponse({"detail": f"a request has at most {MAX_BODY} bytes"}, 413)
        response = await then(request)
        response.headers.update(SAFETY)
        if request.url.path.startswith("/api/"):
            response.headers["Cache-Control"] = "no-store"
        return response


def _hashed(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def _add_page(app: FastAPI) -> None:
    for path, file in (("/", "index.html"), ("/annotate.js", "annotate.js"), ("/annotate.css", "annotate.css")):
        app.get(path, include_in_schema=False)(lambda file=PAGE / file: FileResponse(file))


def _add_login(app: FastAPI, guard: Guard) -> None:
    @app.post("/api/login")
    def login(body: Login) -> Response:
        if not guard.knows(body.token):
            raise HTTPException(401, "this is not the token")
        response = JSONResponse({})
        response.set_cookie(COOKIE, guard.cookie(), httponly=True, samesite="strict")
        return response


def _add_asking(app: FastAPI, survey: Survey, guard: Guard) -> None:
    allowed = [Depends(guard.check)]

    @app.get("/api/survey", dependencies=allowed)
    def about() -> dict:
        sizes = {"clips": len(survey.clips), "pairs": len(survey.pairs), "annotators": survey.annotators}
        return {"rubric": survey.rubric.model_dump(), **sizes}

    @app.get("/api/next", dependencies=allowed)
    def following(annotator: Annotated[str, Query(max_length=200)], kind: Kind) -> dict:
        return survey.next(annotator, kind)

    @app.get("/api/results", dependencies=allowed)
    def results() -> dict:
        return agreement.results(survey)


def _add_answering(app: FastAPI, survey: Survey, guard: Guard) -> None:
    allowed = [Depends(guard.check)]

    @app.post("/api/rate", dependencies=allowed)
    def rate(body: Rating) -> dict:
        survey.rate(body.annotator, body.item, body.ratings)
        return survey.next(body.annotator, "rate")

    @app.post("/api/choose", dependencies=allowed)
    def choose(body: Choosing) -> dict:
        survey.choose(body.annotator, body.item, body.side)
        return survey.next(body.annotator, "compare")

    @app.post("/api/undo", dependencies=allowed)
    def undo(body: Undoing) -> dict:
        undone = survey.undo(body.annotator, body.kind)
        return survey.next(body.annotator, body.kind) | {"undone": undone}


def _add_media(app: FastAPI, survey: Survey, screening: Screening, guard: Guard) -> None:
    allowed = [Depends(guard.check)]

    @app.get("/clips/{key}", dependencies=allowed)
    def clip(key: str) -> Response:
        return FileResponse(screening.video(survey.clip(key)), media_type="video/mp4")

    @app.get("/frames/{key}", dependencies=allowed)
    def frame(key: str) -> Response:
        return Response(screening.first_frame(survey.clip(key)), media_type="image/png")
