"""The options and the serving of every command that opens a web server. Imports nothing heavy by itself."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import Any

from common.errors import ConfigError

OPTIONS = frozenset({"host", "port", "token", "token-file"})
MIN_TOKEN = 16  # characters: nobody guesses that over a network


def add_options(command: Any, port: int) -> None:
    """Where to serve, and who is let in."""
    command.add_argument("--host", default="127.0.0.1", help="IP address to serve at (default: 127.0.0.1)")
    command.add_argument("--port", type=int, default=port, help=f"port; 0 takes a free one (default: {port})")
    command.add_argument("--token", help="needed off loopback, 16 characters or more (default: $DOUGA_TOKEN)")
    command.add_argument("--token-file", type=Path, metavar="FILE", help="file that holds it (chmod 600)")


def token_of(options: argparse.Namespace) -> str:
    """The token that clients must have; empty: none. `ConfigError` for one that can be guessed."""
    from common.web.auth import read_token  # noqa: PLC0415 - FastAPI

    if options.token_file is not None:
        token, where = read_token(options.token_file), f"--token-file {options.token_file}"
    else:
        token, where = options.token or os.environ.get("DOUGA_TOKEN", ""), "--token"
    if token and len(token) < MIN_TOKEN:
        raise ConfigError(f"{where}: {len(token)} characters are too few; {MIN_TOKEN} or more")
    return token


def opened(options: argparse.Namespace, token: str) -> socket.socket:
    """The listening socket. `ConfigError` off loopback without a token, or when the address cannot be had."""
    from common.web.auth import listen  # noqa: PLC0415

    return listen(options.host, options.port, token)


def address(listening: socket.socket) -> str:
    """``http://HOST:PORT`` of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: Any, listening: socket.socket, at_once: int | None = None) -> None:
    """Until SIGINT or SIGTERM. More than `at_once` requests are told to come again (503)."""
    import uvicorn  # noqa: PLC0415

    config = uvicorn.Config(app, log_level="warning", server_header=False, limit_concurrency=at_once)
    uvicorn.Server(config).run(sockets=[listening])
