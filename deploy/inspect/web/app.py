"""The web page of a run: FastAPI over a `DashboardState`. Read-only.

| request | what |
|---|---|
| GET /, /watch.js, /watch.css | the page; holds no data |
| POST /api/login {token} | a cookie, where a token is set |
| GET /api/run?tag= | how things stand, the newest pairs, and drawings where they changed since `tag` |
| GET /pairs/ORDINAL.mp4 | winner left, loser right, in one video with Range support |

Who may ask: `common/web/auth.py`. An ORDINAL is looked up among the pairs shown, and never used as a path.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response
from fastapi.responses import FileResponse, JSONResponse

from common.errors import BAD_INPUT
from common.web.auth import page_app
from deploy import web_server
from deploy.inspect.snapshot import RunReader
from deploy.inspect.web.videos import Gone, VideoCache
from deploy.inspect.web.view import DashboardState

PAGE = Path(__file__).parent / "page"


def make_app(lookout: DashboardState, screening: VideoCache, token: str = "") -> FastAPI:
    """The application; without a `token`, for loopback alone."""
    app = page_app("douga watch", PAGE, token)
    app.add_exception_handler(Gone, lambda _, error: JSONResponse({"detail": str(error)}, 404))
    for kind in BAD_INPUT:
        app.add_exception_handler(kind, lambda _, error: JSONResponse({"detail": str(error)}, 503))

    @app.get("/api/run")
    def run(tag: Annotated[str, Query(max_length=100)] = "") -> dict[str, Any]:
        return lookout.look(tag)

    @app.get("/pairs/{ordinal}.mp4")
    def video(ordinal: int) -> Response:
        pair = lookout.pair(ordinal)
        if pair is None:
            raise Gone("clip is gone")
        return FileResponse(screening.video(pair.winner.file, pair.loser.file), media_type="video/mp4")

    return app


def serve(reader: RunReader, options: argparse.Namespace) -> int:
    """Until Ctrl-C or SIGTERM. `ConfigError` for an open door."""
    token = web_server.token_of(options)
    with web_server.opened(options, token) as listening, closing(VideoCache(reader.folder / "blobs")) as screening:
        print(f"open {web_server.address(listening)}/ - Ctrl-C ends it; the run goes on", flush=True)
        web_server.serve(make_app(DashboardState(reader), screening, token), listening)
    return 0
