"""The door of our web servers: where one listens, who may ask, and how much may be said at once.

| token | listens at | who may ask |
|---|---|---|
| none | loopback alone | whoever is on this machine, under loopback's names alone: a foreign page cannot get in by |
|      |                | giving its own name the address 127.0.0.1 |
| one  | one IP address | who has it: as a bearer token, or by the cookie that a login gives a browser for it |

The token travels in clear text: on open networks put TLS in front.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Collection
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import ConfigError

LOGIN = "/api/login"
PAGE_BYTES = 64 * 1024  # the largest body that a page's server takes
HEARD_OUT = 4  # times the largest body: of a larger one so much is read and dropped
SAFETY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def listen(host: str, port: int, token: str) -> socket.socket:
    """A listening socket. `ConfigError` off loopback without a token, or when the address cannot be had."""
    try:
        address = ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ConfigError(f"--host {host}: an IP address is needed, such as 127.0.0.1") from None
    if not address.is_loopback and not token:
        raise ConfigError(
            f"--host {host}: off loopback a token is needed: others could reach it; set DOUGA_TOKEN or --token-file"
        )
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: allowed are 0 to 65535")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        return socket.create_server((str(address), port), family=family)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: cannot serve there: {error.strerror or error}") from None


def read_token(file: Path) -> str:
    """The bearer token in a file. `ConfigError` when there is none, or others may read it."""
    try:
        mode, token = file.stat().st_mode, file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: no token can be read: {error}") from None
    if mode & 0o077:
        raise ConfigError(f"{file}: group or others may use it; chmod 600 {file}")
    if not token or not token.isascii() or " " in token:
        raise ConfigError(f"{file}: a token is one word of ASCII letters")
    return token


class Token:
    """What lets somebody in. An empty one lets everybody in."""

    def __init__(self, token: str) -> None:
        self._hash = _hashed(token) if token else ""
        self.cookie = _hashed(f"cookie:{self._hash}")  # stands for the token in a browser: of no use elsewhere
        self.cookie_name = f"douga_{_hashed(self.cookie)[:8]}"  # servers of one machine share its cookies

    def knows(self, given: str) -> bool:
        """Whether this is the token; takes as long for every wrong one."""
        return not self._hash or hmac.compare_digest(_hashed(given), self._hash)

    def admits(self, request: Request) -> bool:
        """Whether the request brings it, or its cookie."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        cookie = request.cookies.get(self.cookie_name, "").encode()
        by_header = scheme.lower() == "bearer" and self.knows(given.strip())
        return not self._hash or by_header or hmac.compare_digest(cookie, self.cookie.encode())


def _hashed(words: str) -> str:
    return sha256(words.encode()).hexdigest()


class AuthMiddleware:
    """Turns away who may not ask before a byte of the body is read, and bodies that are too large as they come."""

    def __init__(self, app: ASGIApp, token: str, most_bytes: int, open_to_all: Collection[str]) -> None:
        """Paths in `open_to_all` hold no data."""
        self._app, self._token, self._loopback = app, Token(token), not token
        self._most, self._open = most_bytes, frozenset(open_to_all)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, told = Request(scope), _safely(scope, send)
        length = request.headers.get("content-length", "")
        if self._loopback and not _is_loopback(request.headers.get("host", "")):
            await JSONResponse({"detail": "served under the names of loopback alone"}, 400)(scope, receive, told)
        elif scope["path"] not in self._open and not self._token.admits(request):
            await JSONResponse({"detail": "a token is needed"}, 401)(scope, receive, told)
        elif length.isdecimal() and int(length) > self._most:
            await self._hear_out(receive)
            await JSONResponse({"detail": self._too_large}, 413)(scope, receive, told)
        else:
            await self._app(scope, self._counted(receive), told)

    def _counted(self, receive: Receive) -> Receive:
        """A body without a stated length is counted as it comes."""
        seen = 0

        async def count() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise HTTPException(413, self._too_large)
            return message

        return count

    async def _hear_out(self, receive: Receive) -> None:
        """Within reason: who is cut off while it sends does not see why."""
        seen, more = 0, True
        while more and seen < HEARD_OUT * self._most:
            message = await receive()
            seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)

    @property
    def _too_large(self) -> str:
        return f"more than {self._most} bytes; a request has at most so many"


def _is_loopback(host: str) -> bool:
    """Whether a request's Host is loopback's: by name, or by address, which no foreign name can stand for."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _safely(scope: Scope, send: Send) -> Send:
    """`send`, which says with every answer what a browser may do with it."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(SAFETY)
            if scope["path"].startswith("/api/"):
                headers["Cache-Control"] = "no-store"
        await send(message)

    return told


class Login(BaseModel):
    """The token, typed in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    token: str = Field(max_length=1000)


def page_app(title: str, page: Path, token: str) -> FastAPI:
    """An application behind the door: serves the files of the folder `page` to all (index.html as /), and a login."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    paths = {f"/{file.name}".replace("/index.html", "/"): file for file in page.iterdir()}
    for path, file in paths.items():
        app.get(path)(lambda file=file: FileResponse(file))
    _add_login(app, Token(token))
    app.add_middleware(AuthMiddleware, token=token, most_bytes=PAGE_BYTES, open_to_all=[*paths, LOGIN])
    return app


def _add_login(app: FastAPI, token: Token) -> None:
    @app.post(LOGIN)
    def login(body: Login) -> Response:
        if not token.knows(body.token):
            raise HTTPException(401, "this is not the token")
        response = JSONResponse({})
        response.set_cookie(token.cookie_name, token.cookie, httponly=True, samesite="strict")
        return response
