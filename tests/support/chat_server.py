"""A real HTTP server with OpenAI's chat interface in a thread, for tests. It answers with scripted replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from common.web.auth import listen

SECONDS = 20.0
Reply = tuple[int, Any]  # HTTP status, JSON


@dataclass
class ChatServer:
    """What it was asked, and its address."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies, with the header in "authorization"


def said(text: str | None, reason: str = "stop") -> Reply:
    """A reply with one choice."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}


@contextmanager
def chat_server(answer: Callable[[str], Reply], models: Sequence[str] = ("writer",)) -> Iterator[ChatServer]:
    """Run a server inside the context. `answer` gets the caption of a request."""
    server, app = ChatServer(), FastAPI()

    @app.get("/v1/models")
    def names() -> Any:
        return {"object": "list", "data": [{"id": name} for name in models]}

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> JSONResponse:
        body = await request.json()
        server.asked.append(body | {"authorization": request.headers.get("authorization")})
        caption = body["messages"][-1]["content"].rpartition("Short: ")[2].removesuffix("\nLong:")
        status, reply = answer(caption)
        return JSONResponse(reply, status)

    with listen("127.0.0.1", 0, "") as listening:
        running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            yield server
        finally:
            running.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()
