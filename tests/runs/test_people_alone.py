"""A run on people's ratings alone, HuViDPO's way: it needs no reward, and people compare its held-out clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig, to_toml
from common.data.video import encode_mp4
from common.toon.world import FRAMES, HEIGHT, WIDTH
from deploy.annotate.sources import find_clips
from deploy.cli.main import main
from deploy.inspect.snapshot import RunReader
from deploy.inspect.web.view import DashboardState
from deploy.run_dir import layout
from deploy.run_dir.jsonl import METRICS, read_json_lines
from rewarders.annotation.items import make_pairs
from tests.deploy.runtime.test_serial import fresh, model
from tests.support import toy
from tests.support.videos import quarters

__all__ = ["model"]  # the fixture

MESSAGE = "No reward scores the clips. People can compare base and aligned model on 2 held-out prompts: douga annotate "


@pytest.fixture
def own(model: Path, tmp_path: Path) -> RunConfig:
    """Two steps on four rated clips of one category, without heads and judges."""
    root, rows = fresh(tmp_path / "own", model), []
    for place in range(4):
        (root / f"{place}.mp4").write_bytes(encode_mp4(quarters(FRAMES, HEIGHT, WIDTH) // (place + 1), 8))
        row = {"clip": f"{place}.mp4", "prompt": f"a ball bounces {place}", "category": "ball", "source": "real"}
        rows.append(row | {"ratings": {"alice": {"smoothness": 1 + place}}})
    file = root / "ratings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = {"reward.path": "", "algorithm.name": "human_pairs", "algorithm.beta": 50.0, "pairs": file, "steps": 2}
    return toy.config(root, **how)


def run(config: RunConfig, *flags: Any) -> int:
    """The exit code of the command; its configuration is a file."""
    file = config.root.parent / "run.toml"
    file.write_text(to_toml(config))
    return main(["run", str(file), *map(str, flags)])


def test_held_out_clips_are_left_to_people(own: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(own) == 0
    told = capsys.readouterr().out
    message = f"{MESSAGE}{own.folder}"
    assert message in told.splitlines()
    assert "learned reward" not in told
    steps = read_json_lines(own.folder / METRICS)
    assert [step["step"] for step in steps] == [1, 2]
    assert all(0 < step["reward"] < 1 for step in steps)

    result = layout.read_result(own.folder)
    assert result is not None
    assert (result["asked"], result["clips"], result["learned"], result["oracle"]) == (2, 2, {}, {})
    assert result["verdict"] == {"passed": None, "message": message}
    assert all((own.folder / "clips" / one[side]["clip"]).is_file() for one in result["by_prompt"] for side in one
               if side in ("base", "aligned"))  # fmt: skip

    _, clips = find_clips(own.folder)
    assert sorted(clip.source for clip in clips) == ["base", "base", "version 2", "version 2"]
    assert len(make_pairs(clips, 9, 0)) == 2

    page = (own.folder / layout.REPORT).read_text()
    assert message in page
    assert "Before and after" not in page
    assert page.count("<video") == 2
    assert (own.folder / layout.PICTURE).is_file()
    shown = DashboardState(RunReader(own.folder)).page_data("")
    assert message in str(shown["status"])
    assert all(0 < one["reward"] < 100 and list(one["scores"]) == ["people"] for one in shown["groups"][0]["kept"])

    for command in (["run", str(own.root.parent / "run.toml")], ["status", str(own.folder)]):
        assert main(command) == 0
        assert message in " ".join(capsys.readouterr().out.split())
    assert main(["report", str(own.folder)]) == 0


def test_a_run_without_reward_and_comparison_finishes(own: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(own, "--evaluation.prompts", 0) == 0
    assert "2 steps; without a comparison, because evaluation.prompts = 0" in capsys.readouterr().out
    assert main(["status", str(own.folder)]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["report", str(own.folder)]) == 2
    assert "no comparison to report, because evaluation.prompts = 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"pairs": ""}, "nothing scores the clips; only pairs, which people rated, need no reward"),
        ({"verify": "true"}, "verify: reward.path is empty and there are no judges"),
        ({"guardrails.prompts": 4}, "guardrails.prompts = 4: reward.path is empty and there are no judges"),
    ],
)
def test_what_needs_a_reward_says_so(
    own: RunConfig, flags: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(own, *(part for key, value in flags.items() for part in (f"--{key}", value))) == 2
    assert said in capsys.readouterr().err
    assert not own.folder.exists()
