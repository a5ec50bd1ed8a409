"""``douga reward serve``: serves the judges of a configuration over HTTP, for runs on other machines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import RunConfig, load_config
from common.errors import ConfigError
from deploy import web_server
from deploy.cli.flags import add_command, add_server_options

HEADS = "heads"  # the name under which the AnimeReward heads are served
MEBIBYTE = 1 << 20
AT_ONCE = 16  # maximum number of concurrent requests; further ones get HTTP 503
SERVE = """\
Loads the judges of a configuration and serves each under its name, and the heads of reward.path as 'heads'. A run uses
them with kind = 'remote', url = 'http://HOST:PORT', path = NAME. Writes no files; Ctrl-C stops it.

examples:
  douga reward serve                                          the embedded toon heads, on loopback
  douga reward serve judges.toml --host 10.0.0.5 --token-file token.txt
  douga reward serve --reward.path '' --reward.judges.a.kind clip_score --reward.judges.a.path /models/clip

Off loopback a token is required (chmod 600 FILE). It is sent in clear text: on untrusted networks, put a TLS proxy in
front.
"""


def add(kinds: Any) -> None:
    """Adds ``serve`` to the kinds of ``douga reward``."""
    summary = "serve judges over HTTP, to other machines or Python environments"
    serve = add_command(kinds, "serve", _serve, summary, SERVE, takes_keys=True)
    serve.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="default: all defaults (toon heads)")
    add_server_options(serve, 8100)
    serve.add_argument("--most-mb", type=int, default=256, help="maximum size of a request, MiB (default: 256)")


def _serve(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    if options.most_mb < 1:
        raise ConfigError(f"--most-mb {options.most_mb}: must be at least 1")
    config = load_config(options.config, flags)
    token = web_server.token_of(options)
    with web_server.opened(options, token) as listening:  # bound before loading: early clients wait instead of failing
        app = app_of(config, token, options.most_mb * MEBIBYTE)
        print(f"judges at {web_server.address(listening)}", file=sys.stderr, flush=True)
        web_server.serve(app, listening, AT_ONCE)
    return 0


def app_of(config: RunConfig, token: str, most_bytes: int) -> Any:
    """Loads the configuration's judges and returns the web application. Raises `ConfigError` if one cannot be loaded.

    `most_bytes` is the maximum size of a request.
    """
    from rewarders.captions import head_readers, judge_readers
    from rewarders.head_files import load_heads
    from rewarders.judges import open_judge
    from rewarders.judges.server import RewardsAsJudge, create_app

    reward, device = config.reward, config.model.device
    judges: dict[str, Any] = {HEADS: RewardsAsJudge(load_heads(reward.path, device))} if reward.path else {}
    if HEADS in reward.judges and judges:
        raise ConfigError(f"reward.judges.{HEADS}: the heads of reward.path are served under this name")
    judges |= {name: open_judge(name, judge, device) for name, judge in reward.judges.items()}
    readers = {HEADS: list(head_readers(reward.path))}
    readers |= {name: list(judge_readers("", judge)) for name, judge in reward.judges.items()}
    return create_app(judges, token, most_bytes, readers=readers)
