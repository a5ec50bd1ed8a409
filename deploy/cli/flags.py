"""The parser of all commands, and configuration keys as flags (``--learner.lr 1e-5``). Imports no torch.

A command declares its options with argparse. All other ``--NAME`` arguments are configuration keys; `split_flags`
removes them before argparse parses the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, NoReturn

from common.config import keys, leaves, load_config
from common.errors import ConfigError
from deploy.run_dir.layout import TOON

TRUE_WORDS = ("true", "false", "yes", "no", "on", "off", "1", "0")
RUN = "run folder, or its name under runs/"  # help of every RUN argument

FILL = TextWrapper(width=110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)

Action = Callable[[argparse.Namespace, Mapping[str, Any]], int]  # parsed options, configuration flags -> exit code


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with one-line errors. It knows its options, and builds `late_epilog` only for ``--help``."""

    def __init__(self, *args: Any, late_epilog: Callable[[], str] | None = None, **how: Any) -> None:
        self._kinds: Mapping[str, Any] = {}  # subcommand -> its parser
        self._late_epilog = late_epilog
        how.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **how)

    def add_subparsers(self, **how: Any) -> Any:
        """See argparse. A subcommand is required."""
        action = super().add_subparsers(required=True, **how)
        self._kinds = action.choices
        return action

    def own_options(self, arguments: Sequence[str]) -> frozenset[str]:
        """Returns the option names, without dashes, of the command that `arguments` begins with."""
        if arguments and arguments[0] in self._kinds:
            return self._kinds[arguments[0]].own_options(arguments[1:])
        names = (name for action in self._actions for name in action.option_strings)  # those of groups are among them
        return frozenset(name[2:] for name in names if name.startswith("--"))

    def format_help(self) -> str:
        """See argparse."""
        if self._late_epilog is not None:
            self.epilog = self._late_epilog()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raises `ConfigError`, which is printed as one line like all other bad input."""
        raise ConfigError(f"{message}; see: {self.prog} --help")


def add_command(commands: Any, name: str, act: Action, summary: str, epilog: str = "", **how: Any) -> Parser:
    """Adds the command `name` with the one-line help `summary`. `how` is passed to `Parser`.

    With ``takes_keys=True`` the command accepts configuration keys as flags.
    """
    takes_keys = how.pop("takes_keys", False)
    command: Parser = commands.add_parser(name, help=summary, description=summary, epilog=epilog, **how)
    command.set_defaults(act=act, takes_keys=takes_keys, prog=command.prog)
    return command


def add_server_options(command: Parser, port: int) -> None:
    """Adds the options of a command that starts a web server (`deploy/web_server.py`)."""
    command.add_argument("--host", default="127.0.0.1", help="IP address to listen on (default: 127.0.0.1)")
    command.add_argument("--port", type=int, default=port, help=f"port to listen on; 0: a free one (default: {port})")
    command.add_argument(
        "--token", help="token for clients, at least 16 characters; required off loopback (default: $DOUGA_TOKEN)"
    )
    command.add_argument("--token-file", type=Path, metavar="FILE", help="read the token from this file (chmod 600)")


def split_flags(arguments: Sequence[str], own: frozenset[str]) -> tuple[dict[str, Any], list[str]]:
    """Splits `arguments` into configuration flags and the rest for argparse, which includes the options in `own`.

    The value of a boolean key may be omitted and is then true. Raises `ConfigError` if another key has no value.
    """
    switches = {key.name for key in keys() if isinstance(key.default, bool)}
    flags: dict[str, Any] = {}
    rest: list[str] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name in own or not name:
            rest.append(word)
        elif equals:
            flags[name] = value
        elif name.replace("-", "_") in switches:
            flags[name] = queue.pop(0) if queue and queue[0].lower() in TRUE_WORDS else "true"
        elif not queue or queue[0].startswith("--"):
            raise ConfigError(f"--{name}: a value is missing")
        else:
            flags[name] = queue.pop(0)
    return flags, rest


def describe_keys() -> str:
    """Returns a text with every configuration key: its type, default and meaning."""
    toon = leaves(load_config(TOON).model_dump())
    lines = ["configuration keys (type; default; value of the embedded toon run if it differs):", ""]
    section = ""
    for key in keys():
        if "." in key.name and key.name.split(".")[0] != section:
            section = key.name.split(".")[0]
            lines.append("")
        default = _shown(key.default)
        value = toon.get(key.name, key.default)
        other = f"; toon {_shown(value)}" if value != key.default else ""
        lines.append(f"  --{key.name.replace('_', '-')}  ({key.kind}; {default}{other})")
        lines.append(f"      {key.description}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
