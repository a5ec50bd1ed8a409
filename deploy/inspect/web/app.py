"""The web page of a run: FastAPI over a `DashboardState`. Read-only.

| request | response |
|---|---|
| GET /, /watch.js, /watch.css | the page, without data |
| POST /api/login {token} | sets the login cookie if the server has a token |
| GET /api/run?tag= | the status, the newest groups, and the curves if they have changed since `tag` |
| GET /groups/ORDINAL.mp4 | a group's kept candidates side by side in one video, with Range support |

Authentication: `common/web/auth.py`. ORDINAL is looked up among the groups shown and never used as a path.
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
from deploy.inspect.web.videos import GONE, ClipGoneError, VideoCache
from deploy.inspect.web.view import DashboardState

PAGE = Path(__file__).parent / "page"


def make_app(dashboard: DashboardState, videos: VideoCache, token: str = "") -> FastAPI:
    """Returns the application. An empty `token` is for loopback only.

    Errors of the run folder become HTTP 503; a clip that no longer exists becomes 404.
    """
    app = page_app("douga watch", PAGE, token)
    app.add_exception_handler(ClipGoneError, lambda _, error: JSONResponse({"detail": str(error)}, 404))
    for kind in BAD_INPUT:
        app.add_exception_handler(kind, lambda _, error: JSONResponse({"detail": str(error)}, 503))

    @app.get("/api/run")
    def run(tag: Annotated[str, Query(max_length=100)] = "") -> dict[str, Any]:
        return dashboard.page_data(tag)

    @app.get("/groups/{ordinal}.mp4")
    def video(ordinal: int) -> Response:
        group = dashboard.group(ordinal)
        if group is None:
            raise ClipGoneError(GONE)
        return FileResponse(videos.video([one.file for one in group.kept]), media_type="video/mp4")

    return app


def serve(reader: RunReader, options: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C or SIGTERM. Raises `ConfigError` for a missing or short token off loopback."""
    token = web_server.token_of(options)
    with web_server.opened(options, token) as listening, closing(VideoCache(reader.folder / "blobs")) as videos:
        print(f"open {web_server.address(listening)}/ - Ctrl-C closes the page, not the run", flush=True)
        web_server.serve(make_app(DashboardState(reader), videos, token), listening)
    return 0
