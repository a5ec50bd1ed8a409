"""The table as Markdown and LaTeX, the page, and the files for VBench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.candidate_set.folder import read_set
from common.errors import ConfigError
from deploy.evaluation.figures import MeasuredModel, compare, measure
from deploy.evaluation.page import write_page
from deploy.evaluation.tables import heading, latex, markdown
from deploy.evaluation.vbench import export_vbench
from tests.deploy.evaluation.test_figures import model
from tests.support.candidates import group, make_set


@pytest.fixture
def models(tmp_path: Path) -> list[MeasuredModel]:
    base = model(tmp_path, "base_5b", {0: [10.0], 1: [20.0]})
    return [base, model(tmp_path, "ours", {0: [12.0], 1: [22.0]})]


def test_markdown_and_latex_rows(models: list[MeasuredModel]) -> None:
    found = compare(models, "base_5b")
    assert heading(found).startswith("2 prompts, same seeds; mean, and change from base_5b")
    assert markdown(found).splitlines()[2:] == [
        "|  | base_5b | ours |",
        "| --- | ---: | ---: |",
        "| appeal | 15.00 | 17.00 (+2.00 [+2.00, +2.00]) |",
    ]
    assert latex(found).splitlines()[1:] == [
        r" & appeal \\ \midrule",
        r"base\_5b & 15.00 \\",
        r"ours & \textbf{17.00} {\scriptsize [+2.00, +2.00]} \\",
    ]


def test_the_page_links_every_clip_and_survives_any_prompt(models: list[MeasuredModel], tmp_path: Path) -> None:
    found = compare(models, "base_5b")
    page = write_page(tmp_path, found, models).read_text()
    raw = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    data = json.loads(raw)
    assert data["labels"] == ["base_5b", "ours"]
    for prompt in data["prompts"]:
        for files in prompt["clips"].values():
            assert all((tmp_path / file).is_file() for file in files)
    assert [prompt["changes"]["ours"]["appeal"] for prompt in data["prompts"]] == [2.0, 2.0]


def test_a_prompt_cannot_end_the_script(tmp_path: Path) -> None:
    made = [group(number, [1.0], text="</script><b>") for number in range(2)]
    one = measure("a", read_set(make_set(tmp_path / "a", made)), None)
    page = write_page(tmp_path, compare([one], "a"), [one]).read_text()
    assert "</script><b>" not in page


def test_vbench_reads_the_prompt_from_the_name(models: list[MeasuredModel], tmp_path: Path) -> None:
    out = tmp_path / "vb"
    assert export_vbench(out, models) == 4
    assert sorted(path.name for path in (out / "ours").iterdir()) == ["a cat walks 0-0.mp4", "a cat walks 1-0.mp4"]
    assert (out / "ours" / "a cat walks 0-0.mp4").read_bytes() == b"mp4"
    assert (out / "images" / "a cat walks 1.png").read_bytes() == b"png"
    prompts = json.loads((out / "ours.json").read_text())
    assert prompts[str((out / "ours" / "a cat walks 1-0.mp4").resolve())] == "a cat walks 1"


def test_a_prompt_that_cannot_be_a_file_name_is_named_before_anything_is_written(tmp_path: Path) -> None:
    made = [group(number, [1.0], text="left/right") for number in range(2)]
    one = measure("a", read_set(make_set(tmp_path / "a", made)), None)
    with pytest.raises(ConfigError, match="prompt-0: VBench reads the prompt from the file name"):
        export_vbench(tmp_path / "vb", [one])
    assert not (tmp_path / "vb").exists()
