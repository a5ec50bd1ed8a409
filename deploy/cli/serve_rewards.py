"""``douga reward serve``: the judges of a configuration over HTTP, for runs elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.config import RunConfig, load_config
from common.errors import ConfigError
from deploy import web_server

HEADS = "heads"  # the name under which the AnimeReward heads are served
MEBIBYTE = 1 << 20
AT_ONCE = 16  # requests that may wait; more are told to come again (503)
OPTIONS = web_server.OPTIONS | {"most-mb"}
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
    web_server.add_options(serve, 8100)
    serve.add_argument("--most-mb", type=int, default=256, help="largest request, MiB (default: 256)")


def command(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    """Serve until SIGINT or SIGTERM."""
    config = load_config(options.config, flags)
    from deploy.cli.run import or_failed  # noqa: PLC0415 - `--help` answers without rich and torch

    return or_failed(partial(_serve, config, options))


def _serve(config: RunConfig, options: argparse.Namespace) -> int:
    token = web_server.token_of(options)
    with web_server.opened(options, token) as listening:  # who connects before the judges are loaded waits
        app = app_of(config, token, options.most_mb * MEBIBYTE)
        print(f"judges at {web_server.address(listening)}", file=sys.stderr, flush=True)
        web_server.serve(app, listening, AT_ONCE)
    return 0


def app_of(config: RunConfig, token: str, most_bytes: int) -> Any:
    """The web application with the configuration's judges, loaded. `ConfigError` for what is missing."""
    from rewarders.checkpoints import load_heads  # noqa: PLC0415
    from rewarders.judges import open_judge  # noqa: PLC0415
    from rewarders.judges.server import RewardsAsJudge, create_app  # noqa: PLC0415

    reward, device = config.reward, config.model.device
    judges: dict[str, Any] = {HEADS: RewardsAsJudge(load_heads(reward.path, device))} if reward.path else {}
    if HEADS in reward.judges and judges:
        raise ConfigError(f"reward.judges.{HEADS}: the heads of reward.path are served under this name")
    judges |= {name: open_judge(name, judge, device) for name, judge in reward.judges.items()}
    return create_app(judges, token, most_bytes)
