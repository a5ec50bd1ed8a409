"""The tables of docs/papers.md against the configurations of the papers."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from common.config import leaves, load_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text()
CONFIGS = {
    "GAPO": "gapo",
    "OnlineVPO": "onlinevpo",
    "HuViDPO, stage 1": "huvidpo-stage1",
    "HuViDPO, stage 2": "huvidpo-stage2",
}


def file_of(paper: str) -> Path:
    return ROOT / "deploy" / "launch" / "configs" / f"{CONFIGS[paper]}.toml"


def section(title: str) -> str:
    found = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def settings(paper: str) -> dict[str, tuple[Any, str]]:
    """Key -> (value, source) of a table of settings. Fails on a row that is not one."""
    rows = [line for line in section(f"Settings of {paper}").splitlines() if line.startswith("|")][2:]
    found = {}
    for row in rows:
        match = re.fullmatch(r"\| [^|]+ \| `([\w.]+)` \| `([^`]+)` \| ([^|]+) \|", row)
        assert match is not None, row
        key, value, source = match.groups()
        assert key not in found, key
        found[key] = (tomllib.loads(f"value = {value}")["value"], source)
    return found


def quoted(file: Path) -> set[str]:
    """The keys of a TOML file whose comment names the paper or its public code."""
    section, found = "", set()
    for line in file.read_text().splitlines():
        header, setting = (
            re.match(r"\[([\w.]+)\]", line),
            re.match(r"([\w.]+) = .*# (?!ours).*\b(paper|public code)\b", line),
        )
        section = f"{header[1]}." if header else section
        if setting:
            found.add(section + setting[1])
    return found


def test_every_paper_has_its_tables_deviations_first() -> None:
    titles = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    expected = []
    for paper, tables in (("GAPO", ["GAPO"]), ("OnlineVPO", ["OnlineVPO"]), ("HuViDPO", list(CONFIGS)[2:])):
        expected += [f"Deviations of {paper}", *(f"Settings of {one}" for one in tables)]
        expected.append(f"Equations, tables and figures of {paper}")
    assert titles == expected
    assert all(len(section(title).strip().splitlines()) > 8 for title in titles)


@pytest.mark.parametrize("paper", CONFIGS)
def test_every_setting_is_what_the_configuration_has(paper: str) -> None:
    loaded = leaves(load_config(file_of(paper)).model_dump(mode="json"))
    stated = settings(paper)
    assert len(stated) >= 10
    assert {key: value for key, (value, _) in stated.items()} == {key: loaded[key] for key in stated}


@pytest.mark.parametrize("paper", CONFIGS)
def test_what_a_configuration_quotes_is_in_the_table(paper: str) -> None:
    keys = quoted(file_of(paper))
    assert len(keys) >= 5
    assert keys - set(settings(paper)) == set()


def test_the_steps_follow_from_the_papers_numbers() -> None:
    gapo, stage_2 = (load_config(file_of(paper)) for paper in ("GAPO", "HuViDPO, stage 2"))
    assert gapo.steps * gapo.learner.batch_size == 2000 * gapo.exchange.max_times_trained
    assert gapo.learner.steps_per_push == gapo.steps  # offline
    pairs = 16 * 15 // 2
    assert stage_2.steps * stage_2.learner.batch_size == 12 * pairs
    assert stage_2.learner.checkpoint_every == pairs


def test_every_equation_and_table_has_a_row() -> None:
    last = {  # of the papers' texts
        "GAPO": {"equation": 13, "table": 7, "figure": 7},
        "OnlineVPO": {"equation": 3, "table": 6, "figure": 5},
        "HuViDPO": {"equation": 25, "table": 2, "figure": 9},
    }
    for paper, counts in last.items():
        firsts = re.findall(r"^\| ([^|]+) \|", section(f"Equations, tables and figures of {paper}"), re.MULTILINE)
        for kind, count in counts.items():
            missing = set(range(1, count + 1)) - numbers(kind, firsts)
            assert missing <= ({3} if (paper, kind) == ("HuViDPO", "figure") else set()), (paper, kind)


def numbers(kind: str, rows: list[str]) -> set[int]:
    """The numbers of `kind` that rows name: "equations 1 to 9", "table 1, table 6", "figures 3, 6, 7"."""
    found: set[int] = set()
    for row in rows:
        for words in re.findall(rf"{kind}s? ((?:\d+(?:, | and | to )?)+)", row):
            if " to " in words:
                first, end = map(int, words.split(" to "))
                found |= set(range(first, end + 1))
            found |= {int(number) for number in re.findall(r"\d+", words)}
    return found


def test_every_module_that_the_page_names_has_tests() -> None:
    """Its own file, or those of its folder, as the page says."""
    named = set(re.findall(r"`((?:actors|common|deploy|learner|rewarders)/[\w/]+)\.py`", PAGE))
    assert len(named) > 20
    for module in named:
        assert (ROOT / f"{module}.py").is_file(), module
        assert list((ROOT / "tests" / module).parent.glob("test_*.py")), module
