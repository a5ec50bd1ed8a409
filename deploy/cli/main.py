"""The entry point of `douga`. Parsing and ``--help`` import no torch, so they are fast.

Each module in `GROUPS` declares the options of its commands and their actions; an action imports what it needs when it
runs. Exit codes: 0 success, 1 a check failed or rows are missing, 2 bad input, 3 the run stopped with an error, or an
unexpected error, whose traceback is kept in a file, 130 interrupted, 141 nobody reads the output any more.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

try:
    from common.errors import ConfigError
    from common.errors.endings import READER_LEFT, UNEXPECTED, ending_of
    from common.version import VERSION
    from deploy.cli import annotate, clips, collect, data, inspect, logs, monitor, plan, results, rewards, run, worker
    from deploy.cli.flags import Parser, split_flags
    from deploy.logs.library_messages import drop_meaningless
    from deploy.runtime.oom import needed_by
except ModuleNotFoundError as missing:
    # In a Ray job, `python` is the one on the PATH of the process that started Ray.
    print(f"douga: {sys.executable} has no {missing.name}; use the full path of .venv/bin/python", file=sys.stderr)
    sys.exit(2)

UTF8 = "PYTHONUTF8"
GROUPS = (
    run,
    worker,
    plan,
    collect,
    clips,
    results,
    data,
    rewards,
    annotate,
    inspect,
    logs,
    monitor,
)  # in the order of --help


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a `douga` command, by default from `sys.argv`. Returns the exit code."""
    if argv is None:
        _use_utf8()
        _have_home()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a caption that the terminal cannot show is no error
    drop_meaningless()
    return exit_code(partial(_dispatch, arguments))


def _use_utf8() -> None:
    """Starts this program again in Python's UTF-8 mode, unless it has UTF-8 file names: libraries need them."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get(UTF8) != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {UTF8: "1"})


def _have_home() -> None:
    """Sets HOME to ``/``, as container engines do, where neither it nor an account names one: Ray ends without."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def exit_code(act: Callable[[], int]) -> int:
    """Runs `act` and returns its exit code. An error that a user can act on is printed as one line on stderr."""
    try:
        with needed_by("this process"):
            return act()
    except (Exception, KeyboardInterrupt) as error:
        ending = ending_of(error)
        if ending.code == READER_LEFT:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer goes there
            return ending.code
        where = _traceback_file(error) if ending.line.startswith(UNEXPECTED) else ""
        print(f"douga: {ending.line}{where}", file=sys.stderr)
        return ending.code


def _traceback_file(error: BaseException) -> str:
    """Writes the traceback of an unexpected error to a file, and returns the words that name it."""
    try:
        number, name = tempfile.mkstemp(prefix="douga-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
    except OSError:
        return ""
    return f"; traceback: {name}"


def _dispatch(arguments: list[str]) -> int:
    for argument in arguments:
        if "\x00" in argument:
            raise ConfigError(f"{argument!r:.80}: has a NUL character")
        try:
            os.fsencode(argument)
        except UnicodeEncodeError:
            raise ConfigError(f"{argument!r:.80}: cannot be encoded as {sys.getfilesystemencoding()}") from None
    parser = build_parser()
    flags, rest = split_flags(arguments, parser.own_options(arguments))
    options = parser.parse_args(rest)
    if flags and not options.takes_keys:
        raise ConfigError(f"--{next(iter(flags))}: unknown option; see: {options.prog} --help")
    _check_working_directory()
    return options.act(options, flags)


def _check_working_directory() -> None:
    """Raises `ConfigError` if it was deleted: no relative path means anything then, and Ray cannot start."""
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() is no clearer
    except OSError as error:
        raise ConfigError(f"the current directory cannot be used: {error.strerror}; cd to another one") from None


def build_parser() -> Parser:
    """Returns the parser of the whole command line."""
    parser = Parser(
        prog="douga",
        description="Post-train image-to-video diffusion models with online preference optimization.",
        epilog=run.EXAMPLES + "\nhelp on a command: douga COMMAND --help\nall configuration keys: douga config",
    )
    parser.add_argument("--version", action="version", version=f"douga {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for group in GROUPS:
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
