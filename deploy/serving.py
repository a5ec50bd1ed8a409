"""``douga reward serve``: the judges of a configuration over HTTP, for runs elsewhere."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from common.config import ConfigError, RunConfig, load_config

HEADS = "heads"  # the name under which the AnimeReward heads are served
MEBIBYTE = 1 << 20
AT_ONCE = 16  # requests that may wait; more are told to come again (503)
OPTIONS = frozenset({"host", "port", "token-file", "most-mb"})
WORDS = """\
Serves every judge of the configuration under its name, and the heads of reward.path as 'heads'. A run asks them with
kind = 'remote', url = 'http://HOST:PORT', path = NAME.

examples:
  douga reward serve                                          the embedded toon heads, on loopback
  douga reward serve judges.toml --host 10.0.0.5 --token-file token.txt
  douga reward serve --reward.path '' --reward.judges.a.kind clip_score --reward.judges.a.path /models/clip

Off loopback a token is needed (chmod 600 FILE). It travels in clear text: on open networks put TLS in front.
"""


def add_serve(kinds: Any, add: Callable[..., Any]) -> None:
    """Put ``serve`` among the kinds of ``douga reward``; `add` is `cli._add`."""
    serve = add(kinds, "serve", command, "serve judges over HTTP to other machines or environments", WORDS, keys=True)
    serve.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    serve.add_argument("--host", default="127.0.0.1", help="IP address to serve at (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8100, help="0: a free one (default: 8100)")
    serve.add_argument("--token-file", type=Path, help="file that holds the bearer token that clients must have")
    serve.add_argument("--most-mb", type=int, default=256, help="largest request, MiB (default: 256)")


def command(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    """Serve until SIGINT or SIGTERM."""
    config = load_config(options.config, flags)
    from deploy.start import or_failed  # noqa: PLC0415 - `--help` answers without rich and torch

    return or_failed(partial(_serve, config, options))


def _serve(config: RunConfig, options: argparse.Namespace) -> int:
    from rewarders.judges.remote import read_token  # noqa: PLC0415

    token = read_token(options.token_file) if options.token_file else ""
    with bound(options.host, options.port, token) as listening:
        server = server_of(config, token, options.most_mb * MEBIBYTE)
        host, port = listening.getsockname()[:2]
        print(f"judges at http://{host}:{port}", file=sys.stderr, flush=True)
        server.run(sockets=[listening])
    return 0


def server_of(config: RunConfig, token: str, most_bytes: int) -> Any:
    """A `uvicorn.Server` with the configuration's judges, loaded. `ConfigError` for what is missing."""
    import uvicorn  # noqa: PLC0415

    from rewarders.anime import load_heads  # noqa: PLC0415
    from rewarders.judges import open_judge  # noqa: PLC0415
    from rewarders.judges.server import Panel, application  # noqa: PLC0415

    reward, device = config.reward, config.model.device
    judges: dict[str, Any] = {HEADS: Panel(load_heads(reward.path, device))} if reward.path else {}
    if HEADS in reward.judges and judges:
        raise ConfigError(f"reward.judges.{HEADS}: the heads of reward.path are served under this name")
    judges |= {name: open_judge(name, judge, device) for name, judge in reward.judges.items()}
    app = application(judges, token, most_bytes)
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", limit_concurrency=AT_ONCE))


def bound(host: str, port: int, token: str) -> socket.socket:
    """A listening socket. `ConfigError` off loopback without a token, or when the address cannot be had."""
    try:
        address = ip_address(host)
    except ValueError:
        raise ConfigError(f"--host {host}: an IP address is needed, such as 127.0.0.1") from None
    if not address.is_loopback and not token:
        raise ConfigError(f"--host {host}: off loopback a token is needed; give --token-file")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()  # who connects before the judges are loaded waits
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(f"--host {host} --port {port}: {error}") from None
    return listening
