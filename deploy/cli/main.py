"""The command line. Parsing and ``--help`` need no torch, so they answer at once.

One module per group of commands declares the options and holds the action: it imports what it needs when it runs.
Exit codes: 0 done, 1 `--verify` failed, 2 bad input, 3 the run stopped with an error, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

try:
    from common.errors import BAD_INPUT, ConfigError, RunFailed, StorageError
    from common.version import VERSION
    from deploy.cli import annotate, clips, data, inspect, logs, monitor, plan, results, rewards, run, worker
    from deploy.cli.flags import Parser, split_flags
    from deploy.runtime.oom import needed_by
except ModuleNotFoundError as missing:
    # In a job of Ray a bare `python` is the one on the PATH that Ray was started with.
    words = f"{sys.executable} has no {missing.name}; name the project's own interpreter, .venv/bin/python, in full"
    print(f"douga: {words}", file=sys.stderr)
    sys.exit(2)

GROUPS = (run, worker, plan, clips, results, data, rewards, annotate, inspect, logs, monitor)  # as --help lists them


def main(argv: Sequence[str] | None = None) -> int:
    """The command `douga`; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_code(partial(_dispatch, words))


def exit_code(act: Callable[[], int]) -> int:
    """Returns the exit code of `act`. An error that a user can act on is printed as one line on stderr."""
    try:
        with needed_by("this process"):
            return act()
    except BAD_INPUT as error:
        print(f"douga: {error}", file=sys.stderr)
        return 2
    except (RunFailed, StorageError) as error:
        print(f"douga: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("douga: interrupted; rerun the same command to resume from the last checkpoint", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    parser = build_parser()
    flags, rest = split_flags(words, parser.own_options(words))
    options = parser.parse_args(rest)
    if flags and not options.takes_keys:
        raise ConfigError(f"--{next(iter(flags))}: unknown option; see: {options.prog} --help")
    return options.act(options, flags)


def build_parser() -> Parser:
    """Returns the parser of the whole command line."""
    parser = Parser(
        prog="douga",
        description="Post-train image-to-video diffusion models with online preference optimization.",
        epilog=run.EXAMPLES + "\nall keys: douga config",
    )
    parser.add_argument("--version", action="version", version=f"douga {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for group in GROUPS:
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
