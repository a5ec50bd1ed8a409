"""Access control of all web servers: listening address, token or cookie, and maximum request size.

| token | listens at | accepts |
|---|---|---|
| none | loopback only | requests whose Host header is loopback, so that DNS rebinding fails: a foreign web page |
|      |               | cannot get in by pointing its own name at 127.0.0.1 |
| set  | one IP address | requests with the bearer token, or with the cookie that the login page sets |

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
PAGE_BYTES = 64 * 1024  # maximum request body of a page's server
DRAIN_FACTOR = 4  # of a body that is too large, up to this many times the maximum is read and dropped
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def listen(host: str, port: int, token: str) -> socket.socket:
    """Open a listening socket.

    Raises:
        ConfigError: the address is not loopback and there is no token, or it cannot be bound.
    """
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
    """Read the bearer token from a file. Raises `ConfigError` if there is none, or if others may read the file."""
    try:
        mode, token = file.stat().st_mode, file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot read the token: {error}") from None
    if mode & 0o077:
        raise ConfigError(f"{file}: group or others may use it; chmod 600 {file}")
    if not token or not token.isascii() or " " in token:
        raise ConfigError(f"{file}: a token must be ASCII text without spaces")
    return token


class Token:
    """A bearer token and its cookie. An empty token authorizes everybody."""

    def __init__(self, token: str) -> None:
        self._hash = _hashed(token) if token else ""
        self.cookie = _hashed(f"cookie:{self._hash}")  # the token cannot be derived from it
        self.cookie_name = f"douga_{_hashed(self.cookie)[:8]}"  # browsers share cookies between ports of one host

    def matches(self, given: str) -> bool:
        """Whether `given` is the token. Compares in constant time."""
        return not self._hash or hmac.compare_digest(_hashed(given), self._hash)

    def authorizes(self, request: Request) -> bool:
        """Whether the request carries the token or its cookie."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        cookie = request.cookies.get(self.cookie_name, "").encode()
        by_header = scheme.lower() == "bearer" and self.matches(given.strip())
        return not self._hash or by_header or hmac.compare_digest(cookie, self.cookie.encode())


def _hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()


class AuthMiddleware:
    """Rejects unauthorized requests before their body is read, and bodies above the size limit while they arrive."""

    def __init__(self, app: ASGIApp, token: str, max_bytes: int, public_paths: Collection[str]) -> None:
        """`public_paths` need no token; they must not serve any data."""
        self._app, self._token, self._loopback = app, Token(token), not token
        self._max_bytes, self._public = max_bytes, frozenset(public_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, send = Request(scope), _with_security_headers(scope, send)
        length = request.headers.get("content-length", "")
        if self._loopback and not _is_loopback(request.headers.get("host", "")):
            await JSONResponse({"detail": "only loopback host names are served"}, 400)(scope, receive, send)
        elif scope["path"] not in self._public and not self._token.authorizes(request):
            await JSONResponse({"detail": "a token is needed"}, 401)(scope, receive, send)
        elif length.isdecimal() and int(length) > self._max_bytes:
            await self._drain(receive)
            await JSONResponse({"detail": self._too_large}, 413)(scope, receive, send)
        else:
            await self._app(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        """Count the body while it arrives: its length may be missing or wrong."""
        seen = 0

        async def count() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise HTTPException(413, self._too_large)
            return message

        return count

    async def _drain(self, receive: Receive) -> None:
        """Read and drop a limited part of the body: a client that is cut off while it sends never sees the reply."""
        seen, more = 0, True
        while more and seen < DRAIN_FACTOR * self._max_bytes:
            message = await receive()
            seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)

    @property
    def _too_large(self) -> str:
        return f"the request is too large; at most {self._max_bytes} bytes are allowed"


def _is_loopback(host: str) -> bool:
    """Whether a Host header is ``localhost`` or a loopback address; a rebound foreign name is neither."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _with_security_headers(scope: Scope, send: Send) -> Send:
    """`send`, with security headers added to every response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(SECURITY_HEADERS)
            if scope["path"].startswith("/api/"):
                headers["Cache-Control"] = "no-store"
        await send(message)

    return send_with_headers


class Login(BaseModel):
    """Body of a login request: the token."""

    model_config = ConfigDict(extra="forbid", strict=True)

    token: str = Field(max_length=1000)


def page_app(title: str, page: Path, token: str) -> FastAPI:
    """An application with `AuthMiddleware` and a login. Files in the folder `page` are public; index.html is ``/``."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    paths = {f"/{file.name}".replace("/index.html", "/"): file for file in page.iterdir()}
    for path, file in paths.items():
        app.get(path)(lambda file=file: FileResponse(file))
    _add_login(app, Token(token))
    app.add_middleware(AuthMiddleware, token=token, max_bytes=PAGE_BYTES, public_paths=[*paths, LOGIN])
    return app


def _add_login(app: FastAPI, token: Token) -> None:
    @app.post(LOGIN)
    def login(body: Login) -> Response:
        if not token.matches(body.token):
            raise HTTPException(401, "wrong token")
        response = JSONResponse({})
        response.set_cookie(token.cookie_name, token.cookie, httponly=True, samesite="strict")
        return response
