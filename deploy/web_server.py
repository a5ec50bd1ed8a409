"""Shared by all commands with a web server: token, listening socket, serving. Importing it is cheap."""

from __future__ import annotations

import argparse
import os
import socket
from typing import Any

from common.errors import ConfigError

MIN_TOKEN = 16  # characters; too long to be guessed over a network


def token_of(options: argparse.Namespace) -> str:
    """Returns the token that clients must send; empty: none. Raises `ConfigError` if it is shorter than `MIN_TOKEN`."""
    from common.web.auth import read_token  # noqa: PLC0415 - FastAPI

    if options.token_file is not None:
        token, where = read_token(options.token_file), f"--token-file {options.token_file}"
    else:
        token, where = options.token or os.environ.get("DOUGA_TOKEN", ""), "--token"
    if token and len(token) < MIN_TOKEN:
        raise ConfigError(f"{where}: {len(token)} characters are too few; {MIN_TOKEN} or more")
    return token


def opened(options: argparse.Namespace, token: str) -> socket.socket:
    """Returns the listening socket. Raises `ConfigError` off loopback without a token, or if the address is in use."""
    from common.web.auth import listen  # noqa: PLC0415

    return listen(options.host, options.port, token)


def address(listening: socket.socket) -> str:
    """Returns the URL ``http://HOST:PORT`` of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: Any, listening: socket.socket, at_once: int | None = None) -> None:
    """Serves `app` until SIGINT or SIGTERM. Requests above `at_once` concurrent ones get HTTP 503."""
    import uvicorn  # noqa: PLC0415

    config = uvicorn.Config(app, log_level="warning", server_header=False, limit_concurrency=at_once)
    uvicorn.Server(config).run(sockets=[listening])
