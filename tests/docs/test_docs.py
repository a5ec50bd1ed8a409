"""What the documentation says is so: generated pages, links, commands, keys and the examples."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config as site_config

from common.config import RunConfig, keys
from deploy.cli.main import build_parser, main
from docs import generate
from tests.support.tiny import FAMILIES, tiny_pipeline

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src")}


# Pages that follow from something else.


def test_generated_pages_are_as_their_command_writes_them(tmp_path: Path) -> None:
    assert generate.main([], tmp_path) == 0
    assert {file.name for file in tmp_path.iterdir()} == set(generate.PAGES)
    assert [name for name in generate.PAGES if (tmp_path / name).read_text() != (DOCS / name).read_text()] == []


def test_a_grid_is_a_table_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "ways-box.json").write_text(
        '{"name": "ways", "command": "python -m benchmarks.ways", "machine": {"processor": "P", "cores": 2, '
        '"memory_bytes": 16e9}, "versions": {"python": "3.11"}, "rows": [], "aims": [], "grid": {"columns": ["reward", '
        '"clips"], "rows": {"base": [{"value": 59.5, "low": null, "high": null, "signed": false}, null], "ours": '
        '[{"value": 1, "low": 0.5, "high": 1.5, "signed": true}, {"value": 640, "low": null, "high": null, "signed": '
        "false}]}}}"
    )
    page = generate.results_page(tmp_path)
    table = "| case | reward | clips |\n|---|---|---|\n| base | 59.50 |  |\n| ours | +1.00 [+0.50, +1.50] | 640 |\n"
    assert f"; python 3.11.\n\n{table}" in page
    assert "| ours | other |" not in page


def test_every_key_is_on_the_page() -> None:
    page = generate.config_page()
    assert [key.name for key in keys() if f"| `{key.name}` |" not in page] == []
    assert "| `algorithm.beta` | float > 0 | `5000.0` |  |  | gapo, dpo, human_pairs: DPO temperature" in page
    assert (
        "| `steps` | int >= 1 | `60` | `20` | yes | total optimizer steps; raise it to continue a finished run, "
        in page
    )
    assert "| `algorithm.name` | text |" in page


def test_a_result_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "speed-box.json").write_text(
        '{"name": "speed", "command": "python -m benchmarks.speed", "machine": {"processor": "P", "cores": 2, '
        '"memory_bytes": 16e9}, "versions": {"python": "3.11"}, "rows": [{"case": "a|b", "unit": "clips/s", "ours": '
        '12345.6, "other": 2, "limit": null, "ratio": {"median": 2, "min": 1, "max": 3}}], "aims": [{"aim": "fast", '
        '"value": 2, "target": ">= 3", "met": false}]}'
    )
    page = generate.results_page(tmp_path)
    assert "## speed, box\n\n`python -m benchmarks.speed` on P, 2 cores, 16 GB; python 3.11.\n" in page
    assert r"| a\|b | clips/s | 12,346 | 2 |  | 2.00 (1.00 .. 3.00) |" in page
    assert "| fast | 2 | >= 3 | missed |" in page


# The site.


class Page(HTMLParser):
    """A built page: its anchors, what it links to, and what it loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See `HTMLParser`."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given["href"]] if tag == "a" and "href" in given else []
        self.loaded += [given[name] for kind, name in LOADED if kind == tag and name in given]
        self.loaded += re.findall(r"url\(([^)]*)\)", given.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does: any warning ends it."""
    folder = tmp_path_factory.mktemp("site")
    build(site_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


def test_every_page_is_there(pages: dict[Path, Page], site: Path) -> None:
    built = {file.stem for file in pages if file.parent == site}
    assert {"index", *(page.stem for page in DOCS.glob("*.md"))} <= built
    assert "Commands" in (site / "index.html").read_text()


def test_every_internal_link_leads_somewhere(pages: dict[Path, Page], site: Path) -> None:
    broken, followed = [], 0
    for file, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or file.name == "404.html":  # that page's links are from the server's root
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else set()
            if not target.is_file() or (parts.fragment and parts.fragment not in known | {"searchbox"}):
                broken.append((file.name, link))
            followed += 1
    assert broken == []
    assert followed > 300


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page], site: Path) -> None:
    outside = re.compile(r"^\s*['\"]?(?:https?:)?//")
    loaded = [(file.name, link) for file, page in pages.items() for link in page.loaded]
    for style in site.rglob("*.css"):
        words = re.findall(r"url\(([^)]*)\)|@import\s+([^;]*)", style.read_text())
        loaded += [(style.name, one or other) for one, other in words]
    assert len(loaded) > 50
    assert [(name, link) for name, link in loaded if outside.match(link)] == []


# What is said of the code.


def spans(text: str) -> list[str]:
    """Everything in backticks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def lines(text: str) -> list[str]:
    """The lines of blocks."""
    return [line for block in re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]


def found(pattern: str, where: Callable[[str], list[str]]) -> set[tuple[str, str]]:
    """(page, match) of all pages."""
    texts = ((file.name, one) for file in WRITTEN for one in where(file.read_text()))
    return {(name, match) for name, one in texts for match in re.findall(pattern, one)}


def test_every_key_that_is_named_exists() -> None:
    sections = [name for name, field in RunConfig.model_fields.items() if hasattr(field.annotation, "model_fields")]
    dotted = rf"((?:{'|'.join(sections)})\.[a-z][a-z_.-]*[a-z0-9])"
    named = found(rf"^(?:--)?{dotted}(?=[ =]|$)", spans) | found(rf"--{dotted}", lines)
    files = (".html", ".json", ".jsonl", ".safetensors", "algorithm.strength")  # the last: of the page's own algorithm
    asked = {(page, name.replace("-", "_")) for page, name in named if not name.endswith(files)}
    known = list(keys())
    groups = {key.name.rsplit(".", depth)[0] for key in known for depth in (1, 2) if key.name.count(".") >= depth}
    assert len(asked) > 100
    assert {one for one in asked if one[1] not in groups and not any(key.covers(one[1]) for key in known)} == set()


def test_every_file_that_is_named_exists() -> None:
    folders = "actors|benchmarks|common|deploy|docs|learner|rewarders|tests"
    path = rf"(?:^|[\s(])((?:{folders})/[\w./-]+\.(?:py|toml|md|yaml|png|css))\b"
    named = found(path, spans) | found(path, lines)
    assert len(named) > 60
    assert {one for one in named if not (ROOT / one[1]).exists()} == set()


def test_what_the_architecture_locates_is_there() -> None:
    """The table "Where is ...?": every function or class is defined in the file beside it."""
    section = (DOCS / "architecture.md").read_text().partition("\n## Where is ...?\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| `([\w/.]+\.py)` \| `(\w+)` \|$", section, flags=re.MULTILINE)
    assert len(rows) == section.count("\n| ") - 1 > 10
    defined = {(file, name) for file, name in rows if re.search(rf"\b(def|class) {name}\b", (ROOT / file).read_text())}
    assert set(rows) - defined == set()


def test_every_command_that_is_shown_is_one() -> None:
    """The first word of every `douga ...` in a block, as the command line knows it."""
    parser = build_parser()
    known = next(iter(parser._subparsers._group_actions)).choices  # type: ignore[union-attr]
    shown = {command for _, command in found(r"^(?:\$ )?douga ([a-z]+)", lines)}
    assert shown >= {"run", "plan", "sample", "score", "annotate", "reward", "recover"}
    assert shown - set(known) == set()


def test_the_plan_is_what_the_command_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = re.findall(r"```\w*\n(.*?)```", (DOCS / "models.md").read_text(), re.DOTALL)
    block = next(one for one in shown if "$ douga" in one)
    *plans, refused = re.findall(r"\$ douga ([^\n]*)\n(.*?)(?=\n\$ |\Z)", block, re.DOTALL)
    for command, output in plans:
        assert main(shlex.split(command)) == 0
        assert capsys.readouterr().out.strip() == output.strip()
    assert main(shlex.split(refused[0])) == 2
    assert " ".join(capsys.readouterr().err.split()) == " ".join(refused[1].split())


# The examples.


def blocks(page: str) -> Iterator[tuple[str, str]]:
    yield from re.findall(r"```(\w+)\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def execute(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """A line of the page, in this process: packages are imported once for all of them."""
    match shlex.split(line):
        case ["export", "PYTHONPATH=."]:
            monkeypatch.syspath_prepend(Path.cwd())
            return 0
        case ["python", file]:
            runpy.run_path(file)
            return 0
        case ["douga", *words]:
            return main(words)
    raise AssertionError(f"not understood: {line}")


def test_the_page_on_large_models_starts_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: Any
) -> None:
    """With a tiny model of the same architecture in the place of the named one, and fewer clips."""
    monkeypatch.chdir(tmp_path)
    tiny_pipeline(tmp_path / "model", **FAMILIES["5B-I2V"])
    fewer = " --steps 1 --sampler.steps 2 --sampler.candidates 2 --learner.batch-size 1 --evaluation.prompts 2"
    more = {"run": fewer, "sample": " --sampler.steps 2"}
    shown = "".join(body for kind, body in blocks("models.md") if kind == "sh")
    for line in shown.replace("/models/CogVideoX-5b-I2V", "model").splitlines():
        assert execute(line + more.get(line.split()[1], ""), monkeypatch) == 0, line
    assert len(json.loads((tmp_path / "some" / "samples.json").read_text())) == 2
    assert (tmp_path / "mine" / "runs" / "mine" / "report.html").exists()


def test_the_page_on_extending_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("mine", "bright"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    said = {}
    for kind, body in blocks("extending.md"):
        if kind in ("python", "toml"):
            Path(body.partition("\n")[0].removeprefix("# ")).write_text(body)
        for line in body.splitlines() if kind == "sh" else ():
            assert execute(line, monkeypatch) == 0, line
            said[line] = capsys.readouterr().out
    assert sum(line.startswith("douga") for line in said) == 8
    assert "moves.evenness" in said["douga score made --config judged.toml"]
    assert (tmp_path / "runs" / "small" / "report.html").exists()
    brighter, run = [out for line, out in said.items() if line.startswith("douga run")]
    assert "light" in brighter
    assert {"warm", "moves.speed", "moves.evenness"} <= set(re.findall(r"[\w.]+", run))
