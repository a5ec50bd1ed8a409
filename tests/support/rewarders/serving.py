"""A real server of judges in a thread, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Thread

import uvicorn
from fastapi import FastAPI

from common.web.auth import listen
from rewarders.interface import Judge
from rewarders.judges.server import create_app
from rewarders.judging.thread import JudgeThread

SECONDS = 20.0


@contextmanager
def serving(judges: Mapping[str, Judge], token: str = "", most_bytes: int = 1 << 20) -> Iterator[str]:
    """Run a server inside the context; yields its address."""
    with serving_app(create_app(judges, token, most_bytes, JudgeThread().call), token) as url:
        yield url


@contextmanager
def serving_app(app: FastAPI, token: str = "") -> Iterator[str]:
    """Run a web application inside the context; yields its address."""
    with listen("127.0.0.1", 0, token) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()
