"""At the start of a run, what the policy and the rewards do not read is said: one line for each file and encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from common.config import RunConfig, load_config
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.images import encode_png
from deploy.cli.serve_rewards import app_of
from deploy.runtime.factories import open_inputs
from rewarders.anime_reward import VideoTextConsistency
from rewarders.head_files import save_heads
from tests.support.rewarders.serving import serving_app
from tests.support.tiny import FRAMES, HEIGHT, WIDTH, tiny_pipeline
from tests.support.tiny_encoders import tiny_clip

LONG = " ".join(["a robot walks"] * 20)  # 60 words: more than the policy (12 tokens) and CLIP (40) read
CAPTIONS = [f"a robot walks {'in ' * number}the cave" for number in range(8)]
SIZE: dict[str, Any] = {"model.frames": FRAMES, "model.height": HEIGHT, "model.width": WIDTH, "model.fps": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_pipeline(folder / "pipeline")
    clip = tiny_clip(folder / "clip")
    save_heads([VideoTextConsistency.create({"vision": clip, "text": clip})], folder / "heads")
    return folder


def told(models: Path, folder: Path, captions: list[str], **values: Any) -> list[str]:
    """What is said at the start of a run with these captions, all of which are held out and trained on."""
    (folder / "a.png").write_bytes(encode_png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    rows = [{"image": "a.png", "prompt": text, "split": "train"} for text in captions]
    rows += [{"image": "a.png", "prompt": text, "split": "heldout"} for text in ("the robot runs", "the robot jumps")]
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return opened(config_of({"model.path": models / "pipeline", "prompts": file, "evaluation.prompts": 0, **values}))


def config_of(values: dict[str, Any]) -> RunConfig:
    given = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return load_config(None, SIZE | given)


def opened(config: RunConfig) -> list[str]:
    lines: list[str] = []
    open_inputs(config, lines.append)
    return lines


def test_each_encoder_that_cuts_captions_is_named_once(models: Path, tmp_path: Path) -> None:
    rewards = {"reward.path": models / "heads", "reward.judges.one.kind": "clip_score"}
    rewards |= {"reward.judges.one.path": models / "clip", "reward.judges.two.kind": "frame_ssim"}
    lines = told(models, tmp_path, [*CAPTIONS, LONG, f"{LONG} left"], **rewards)
    where = f"{tmp_path / 'prompts.jsonl'}: "
    assert [line.removeprefix(where).split("lost is")[0] for line in lines] == [
        f"{count} of 12 captions are longer than {name} reads ({length} tokens); first line {first}: {tokens} tokens, "
        for count, name, length, first, tokens in [
            (3, "the policy's text encoder", 12, 8, 13),
            (2, "head text", 40, 9, 62),
            (2, "reward.judges.one", 40, 9, 62),
        ]
    ]
    assert lines[0].endswith("lost is 'cave'; 2 of them differ only in what is lost")


def test_the_encoders_of_a_judge_server_are_named(models: Path, tmp_path: Path) -> None:
    served = {"reward.path": models / "heads", "reward.judges.one.kind": "clip_score"}
    served |= {"reward.judges.one.path": models / "clip", "reward.judges.two.kind": "frame_ssim"}
    with serving_app(app_of(config_of(served), "", 1 << 20)) as url:
        rewards: dict[str, Any] = {"reward.path": ""}
        for name, path in (("a", "heads"), ("b", "one"), ("c", "two")):
            how = {"kind": "remote", "url": url, "path": path, "retries": 0}
            rewards |= {f"reward.judges.{name}.{key}": value for key, value in how.items()}
        _, *lines = told(models, tmp_path, [*CAPTIONS, LONG, f"{LONG} left"], **rewards)
        refused = httpx.post(f"{url}/captions", json={"judge": "two", "reader": 0, "captions": ["x"]})
    said = "2 of 12 captions are longer than {} reads (40 tokens); first line 9: 62 tokens, lost is "
    assert [line.partition(": ")[2].split("'")[0] for line in lines] == [
        said.format("reward.judges.a (head text)"),
        said.format("reward.judges.b"),
    ]
    assert all(line.endswith("2 of them differ only in what is lost") for line in lines)
    assert refused.status_code == 422
    assert "has 0 readers" in refused.text


def test_a_server_that_names_no_encoders_or_does_not_answer_is_passed_over(models: Path, tmp_path: Path) -> None:
    rewards = {"reward.path": "", "reward.judges.a.kind": "remote", "reward.judges.a.retries": 0}
    with serving_app(described({"grey": {"outputs": ["mean"], "digest": "1"}})) as url:
        old = told(models, tmp_path, [LONG], **rewards, **{"reward.judges.a.url": url})
    gone = told(models, tmp_path, [LONG], **rewards, **{"reward.judges.a.url": url})
    assert len(old) == len(gone) == 1
    assert "the policy's text encoder" in old[0]


def described(judges: dict[str, Any]) -> FastAPI:
    """A server with another implementation of the protocol, which has no /captions."""
    app = FastAPI()
    app.get("/judges")(lambda: judges)
    return app


def test_captions_that_are_read_whole_are_not_mentioned(models: Path, tmp_path: Path) -> None:
    assert told(models, tmp_path, CAPTIONS[:5]) == []


def test_captions_without_a_word_that_the_toon_heads_know_are_said(models: Path, tmp_path: Path) -> None:
    (line,) = told(models, tmp_path, ["a robot walks", "a robot", "the robot in the cave"])
    assert line == (
        f"{tmp_path / 'prompts.jsonl'}: the toon heads motion and text know no word of 2 of 5 captions (they know "
        "climbs, jumps, left, right, runs, up, walks); first line 2: 'a robot'"
    )
    judge = {"reward.path": "", "reward.judges.a.kind": "frame_ssim"}
    assert told(models, tmp_path, ["a robot walks", "a robot"], **judge) == []


def test_unknown_words_are_said_or_refused(models: Path, tmp_path: Path) -> None:
    (line,) = told(models, tmp_path, ["a robot 🤖 walks", "a robot runs"])
    assert line.endswith("does not know 7.7 % of the words, in 1 of 4 captions, 0 of them whole; first line 1: "
                         "'a robot 🤖 walks'")  # fmt: skip
    (tmp_path / "a.mp4").write_bytes(encode_mp4(np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8), 8))
    (tmp_path / "a.txt").write_text("日本語の説明", encoding="utf-8")
    values = {"model.path": models / "pipeline", "pairs": tmp_path, "algorithm.name": "sft"}
    with pytest.raises(ConfigError, match=r"knows no word of any caption; first a\.mp4: '日本語の説明'"):
        opened(config_of(values | {"sampler.candidates": 1, "evaluation.prompts": 0, "guardrails.prompts": 0}))


def test_repeated_prompts_are_said(models: Path, tmp_path: Path) -> None:
    (line,) = told(models, tmp_path, ["a robot walks", "a robot runs", "a robot walks"])
    assert line == (
        f"{tmp_path / 'prompts.jsonl'}: 1 of 5 prompts repeat another one, caption and image; "
        "first line 3, as line 1"
    )  # fmt: skip


@pytest.mark.parametrize(("asked", "said"), [(0, False), (2, True), (10, True)])
def test_too_few_held_out_prompts_for_a_verdict_are_said_at_the_start(
    models: Path, tmp_path: Path, asked: int, said: bool
) -> None:
    lines = told(models, tmp_path, CAPTIONS[:2], **{"evaluation.prompts": asked})
    few = f"prompts = '{tmp_path / 'prompts.jsonl'}': 2 distinct held-out prompts are compared; a verdict needs 10: "
    assert [line.startswith(few) for line in lines] == [True] * said
