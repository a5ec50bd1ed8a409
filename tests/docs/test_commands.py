"""Every command that the documentation shows is one: its own parser takes it, or `ELSEWHERE` says why none can here.

Pages are also executed, with a tiny model in the place of the named one: the blocks marked ``sh`` of models.md and
extending.md in `test_docs.py` and of rewards.md in `test_rewards_page.py`; all of annotate.md in
`test_annotate_page.py`, of candidates.md and evaluation.md in `test_own_model_pages.py`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from common.config import keys, load_config
from deploy.cli.flags import split_flags
from deploy.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {  # programs whose commands are not run by tests -> why, and what is checked of them instead
    "kubectl": "needs a Kubernetes cluster; files are YAML, inserted objects JSON, douga's part is parsed",
    "ray": "needs Ray nodes; douga's part is parsed here, and tests/deploy/launch/test_job.py submits a job",
    "docker": "needs a Docker daemon; the Dockerfile exists",
    "pip": "needs a package index",
    "hf": "needs a model hub",
    "pre-commit": "needs a checkout with git hooks",
    "evaluate.py": "VBench's own program, which has to be installed with its checkpoints",
    "evaluate_i2v.py": "the same",
    "make_model.py": "the page's own file; test_docs.py runs it",
}
PROGRAMS = ("douga", "python", "make", *(name for name in ELSEWHERE if not name.endswith(".py")))
START = re.compile(rf"(?:\$ )?((?:[A-Z]+=\S+ )*(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS)})(?: .*)?)$")


def commands(text: str) -> Iterator[str]:
    """The commands in the blocks of a page: lines joined at backslashes, without what is said beside them."""
    for kind, body in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
        if kind in ("python", "toml", "yaml", "json"):
            continue
        whole = re.sub(r"\s*\\\n\s*", " ", body)
        for line in re.sub(r"(?<=[{,\]])\n\s+", " ", whole).splitlines():  # a JSON object over several lines
            if found := START.match(line):
                yield re.split(r"\s+#|\s{3,}(?!--)", found[1])[0].strip()


def shown() -> list[tuple[str, str]]:
    """(page, command) of all complete commands. Synopses, with brackets, bars or dots, are none."""
    found = [(page.name, one) for page in PAGES for one in commands(page.read_text())]
    return [(page, one) for page, one in found if not re.search(r" \| |\[|\.\.\.$", one.partition(" -- ")[0])]


def words_of(command: str) -> list[str]:
    words = shlex.split(command.replace("$C/", "deploy/launch/configs/"))
    while re.fullmatch(r"[A-Z]+=\S+", words[0]):
        words.pop(0)
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def check(words: list[str]) -> str:
    """Why these words are no command; "" if they are one."""
    match words:
        case ["douga", *rest] | ["python", "-m", "deploy.cli", *rest]:
            return check_douga([word for word in rest if word != "..."])
        case ["python", "-m", module, *_]:
            return "" if find_spec(module) else f"no module {module}"
        case ["python", file, *_]:
            return "" if file in ELSEWHERE else f"{file} is not in ELSEWHERE"
        case ["make", *targets]:
            made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            return next((f"no target {one}" for one in targets if "=" not in one and one not in made), "")
        case [program, *rest] if program in ELSEWHERE:
            return check_elsewhere(rest)
    return f"{words[0]} is not in ELSEWHERE"


def check_douga(words: list[str]) -> str:
    """Parses as `douga` does, and loads the values of the keys that need no others."""
    parser = build_parser()
    flags, rest = split_flags(words, parser.own_options(words))
    options = parser.parse_args(rest)
    names = {name.replace("-", "_"): value for name, value in flags.items()}
    known = list(keys())
    unknown = [name for name in names if not any(key.covers(name) for key in known)]
    unknown = [name for name in unknown if not name.startswith("algorithm.")]  # those of an algorithm of one's own
    if unknown or (flags and not options.takes_keys):
        return f"unknown option: {unknown or flags}"
    load_config(None, {name: value for name, value in names.items() if alone(name)})
    return ""


def alone(name: str) -> bool:
    """Whether a key's value can be checked without the configuration file beside it."""
    return not name.startswith(("algorithm.", "reward.")) and name not in ("candidates", "pairs", "pairs_category")


def check_elsewhere(rest: list[str]) -> str:
    if "--" in rest:
        inner = rest[rest.index("--") + 1 :]
        if inner[0] in ("douga", "python"):
            return check(inner)
    for word, value in pairwise(rest):
        if word in ("--filename", "--file") and "/" in value:
            text = (ROOT / value).read_text()
            if value.endswith(".yaml") and not all(isinstance(one, dict) for one in yaml.safe_load_all(text)):
                return f"{value} is no manifest"
    for word in rest:
        if word.startswith("--overrides="):
            json.loads(word.partition("=")[2])
    return ""


@pytest.mark.parametrize(("page", "command"), [pytest.param(*one, id=f"{one[0]}: {one[1][:60]}") for one in shown()])
def test_every_complete_command_is_taken_by_its_parser(page: str, command: str) -> None:
    assert check(words_of(command)) == "", f"{page}: {command}"


def test_nothing_is_passed_over() -> None:
    found = shown()
    assert len(found) > 90
    pages = {page for page, _ in found}
    assert pages >= {"annotate.md", "evaluation.md", "deploy.md", "candidates.md", "rewards.md", "published-rewards.md"}


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("douga run my.toml --learner.speed 3", "unknown option: ['learner.speed']"),
        ("douga logs RUN --learner.lr 3", "unknown option"),
        ("make nothing", "no target nothing"),
        ("python -m benchmarks.nothing", "no module benchmarks.nothing"),
        ("python other.py", "other.py is not in ELSEWHERE"),
        ("ray job submit -- douga run my.toml --learner.speed 3", "unknown option: ['learner.speed']"),
    ],
)
def test_wrong_commands_are_found(command: str, why: str) -> None:
    assert check(words_of(command)).startswith(why)


def test_options_that_are_named_in_the_text_exist() -> None:
    """`douga COMMAND --option` in backticks: not complete, but its options are the command's, or keys."""
    wrong, parser, known = [], build_parser(), list(keys())
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for span in re.findall(r"`douga ([a-z][^`]*)`", text):
            words = span.split()
            own = parser.own_options(words)
            for option in (word[2:].partition("=")[0] for word in words if re.match(r"--[a-z]", word)):
                if option not in own and not any(key.covers(option.replace("-", "_")) for key in known):
                    wrong.append((page.name, span, option))
    assert wrong == []
