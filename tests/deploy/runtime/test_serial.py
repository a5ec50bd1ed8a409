"""The serial loop on a tiny model: a run folder is complete, and stopping, crashing and resuming change no result."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.prompts.source import open_prompts
from common.config import load_config
from common.data.video import contact_sheet, decode_clip
from common.errors import ConfigError
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.messages import Purpose
from deploy.results import contact_sheet as sheet
from deploy.results import report
from deploy.run_dir import layout, timeline
from deploy.run_dir.jsonl import latest_by_step, read_json_lines
from deploy.runtime import serial
from deploy.runtime.evaluation import StuckError
from tests.support import toy
from tests.support.tiny import tiny_pipeline

LAST = ("weights_digest", "verdict", "learned", "oracle", "by_prompt", "prompts", "step")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model")


def fresh(root: Path, model: Path) -> Path:
    root.mkdir(exist_ok=True)
    (root / "model").symlink_to(model)
    return root


@pytest.fixture(scope="module")
def unbroken(model, tmp_path_factory) -> tuple[Path, dict]:
    """An uninterrupted run of four steps: its folder and its result."""
    config = toy.config(fresh(tmp_path_factory.mktemp("unbroken"), model))
    outcome = serial.run(config, toy.rewards())
    assert outcome.result is not None
    return config.folder, outcome.result


def what_counts(result: dict) -> dict:
    """A result without the version number, which rises with every start."""
    return {name: result[name] for name in LAST}


def clips(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "clips").iterdir())}


def test_a_finished_run_folder_is_complete(unbroken):
    folder, result = unbroken
    there = {path.name for path in folder.iterdir()}
    expected = {"config.toml", "ledger.sqlite", "blobs", "checkpoints", "weights", "clips", "metrics.jsonl"}
    assert expected | {"events.jsonl", "result.json"} <= there
    assert len(clips(folder)) == 4  # two held-out prompts, base and aligned
    assert [record["step"] for record in read_json_lines(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    events = [record["event"] for record in read_json_lines(folder / "events.jsonl")]
    assert events == ["started", "evaluated", "trained", "evaluated", "finished"]
    assert layout.read_result(folder) == result


def test_steps_refreshes_and_pushes_come_on_schedule(unbroken):
    steps = latest_by_step(read_json_lines(unbroken[0] / "metrics.jsonl"))
    assert [record["refreshed"] for record in steps] == [False, False, True, False]
    assert [record["pushed"] for record in steps] == [True] * 4
    assert [record["lag"] for record in steps] == [0.0] * 4
    assert steps[0]["metrics"]["dpo_logits"] == 0.0  # policy and reference are still the same
    assert steps[3]["metrics"]["dpo_logits"] == 0.0  # also after the refresh
    assert steps[2]["metrics"]["dpo_logits"] != 0.0


def test_every_unit_of_work_is_on_the_time_axis(unbroken):
    folder = unbroken[0]
    events = read_json_lines(folder / "events.jsonl")
    work = timeline.read(read_json_lines(folder / "timeline.jsonl"), events)
    assert work.workers == ["sampler-0", "rewarder-0", "learner-0"]
    assert len([bar for bar in work.bars if bar.kind == "sampling"]) == 2 + 8 + 2  # base, four steps of two, aligned
    assert len([bar for bar in work.bars if bar.kind == "learning"]) == 4
    assert 0 < work.busy() <= work.seconds
    assert all(one.end <= two.start + 2e-3 for one, two in zip(work.bars, work.bars[1:], strict=False))  # one process
    assert [name for _, name in work.marks] == ["started", "evaluated", "trained", "evaluated", "finished"]


def test_the_ledger_accounts_for_every_group(unbroken):
    folder, _ = unbroken
    config = load_config(folder / "config.toml")
    exchange = LocalExchange(folder, config, open_prompts(config.prompts, config.seed))
    exchange.check()
    assert exchange.counts()[State.TRAINED] == 8
    assert sum(exchange.counts().values()) == 8  # max_lag = 0: nothing was sampled that was not trained
    assert exchange.counts(Purpose.EVAL)[State.DONE] == 4
    exchange.close()


def test_base_and_aligned_differ_but_start_from_the_same_seeds(unbroken):
    folder, result = unbroken
    made = clips(folder)
    assert made["heldout-0000-base.mp4"] != made["heldout-0000-aligned.mp4"]
    assert len({record["seed"] for record in result["by_prompt"]}) == 2


def test_a_finished_run_returns_its_result_without_any_model(unbroken):
    folder, result = unbroken
    config = load_config(folder / "config.toml", {"verify": "true"})
    (config.root.parent / "model").rename(config.root.parent / "away")
    try:
        assert serial.run(config).result == result
    finally:
        (config.root.parent / "away").rename(config.root.parent / "model")


def test_the_same_seed_gives_the_same_run(unbroken, model, tmp_path):
    config = toy.config(fresh(tmp_path, model))
    again = serial.run(config, toy.rewards()).result
    assert again == unbroken[1]
    assert clips(config.folder) == clips(unbroken[0])


def test_a_stopped_run_resumes_to_the_same_weights(unbroken, model, tmp_path):
    config = toy.config(fresh(tmp_path, model))

    def two_steps() -> bool:
        return len(read_json_lines(config.folder / "metrics.jsonl")) == 3

    stopped = serial.run(config, toy.rewards(), stop=two_steps)
    assert (stopped.step, stopped.finished) == (3, False)
    resumed = serial.run(config, toy.rewards())
    assert resumed.result is not None
    assert what_counts(resumed.result) == what_counts(unbroken[1])
    events = [record["event"] for record in read_json_lines(config.folder / "events.jsonl")]
    assert events == ["started", "evaluated", "interrupted", "resumed", "trained", "evaluated", "finished"]


class Death(Exception):
    """Ends the run as a crash would: the learner saves nothing."""


def die() -> bool:
    raise Death


@pytest.mark.parametrize("calls", [14, 29])
def test_a_crashed_run_resumes_to_the_same_weights(unbroken, model, tmp_path, calls):
    config = toy.config(fresh(tmp_path, model))
    with pytest.raises(Death):
        serial.run(config, toy.rewards(), stop=toy.after(calls, die))
    resumed = serial.run(config, toy.rewards())
    assert resumed.result is not None
    assert what_counts(resumed.result) == what_counts(unbroken[1])
    assert clips(config.folder) == clips(unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize("calls", [2, 9, 20, 28])
def test_a_killed_process_resumes_to_the_same_weights(unbroken, model, tmp_path, calls):
    root = fresh(tmp_path, model)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.toy", str(root), str(calls)], check=False, capture_output=True
    )
    assert done.returncode == -9, done.stderr.decode()[-500:]
    resumed = serial.run(toy.config(root), toy.rewards())
    assert resumed.result is not None
    assert what_counts(resumed.result) == what_counts(unbroken[1])


def test_a_finished_run_continues_with_more_steps(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "toy")
    flags = {"root": str(tmp_path), "evaluation.prompts": "3"}
    longer = serial.run(load_config(unbroken[0] / "config.toml", flags | {"steps": "5"}), toy.rewards())
    assert longer.result is not None
    assert longer.result["step"] == 5
    assert longer.result["prompts"] == 3
    assert longer.result["weights_digest"] != unbroken[1]["weights_digest"]
    with pytest.raises(ConfigError, match="5 steps are done, more than steps = 2"):
        serial.run(load_config(tmp_path / "toy" / "config.toml", {"steps": "2"}), toy.rewards())


def test_a_learning_rate_of_zero_changes_nothing(model, tmp_path):
    result = serial.run(toy.config(fresh(tmp_path, model), steps=1, **{"learner.lr": 0}), toy.rewards()).result
    assert result is not None
    assert result["learned"]["reward"]["change"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert not result["verdict"]["passed"]


def test_rewards_without_pairs_are_an_error_instead_of_an_endless_loop(model, tmp_path, monkeypatch):
    monkeypatch.setattr(serial, "MAX_ROUNDS_WITHOUT_STEP", 2)
    config = toy.config(fresh(tmp_path, model), steps=1)
    with pytest.raises(StuckError, match=r"needs 2 pairs and has 0, .*'tied': 4"):
        serial.run(config, toy.rewards(toy.ConstantReward))


class Gap(toy.HashReward):
    """Has no score for the first held-out prompt, and, with `all_held_out`, for none of them."""

    all_held_out = False

    def score(self, clips, prompts):
        holes = [one.purpose is Purpose.EVAL and (self.all_held_out or one.ordinal == 0) for one in prompts]
        values = super().score(clips, prompts)
        return [float("nan") if hole else value for value, hole in zip(values, holes, strict=True)]


def test_a_held_out_clip_without_a_score_does_not_stop_the_run(model, tmp_path):
    config = toy.config(fresh(tmp_path, model), steps=1, **{"evaluation.prompts": 4})
    result = serial.run(config, toy.rewards(Gap)).result
    assert result is not None
    assert (result["asked"], result["clips"], result["prompts"]) == (4, 3, 3)
    left_out = [(one["side"], one["reason"].split(":")[0]) for one in result["left_out"]]
    assert left_out == [("base", "nan score"), ("aligned", "nan score")]
    assert len({one["id"] for one in result["left_out"]}) == 1
    assert result["left_out"][0]["id"] not in {record["id"] for record in result["by_prompt"]}
    assert result["left_out"][0]["id"] in result["verdict"]["message"]
    assert serial.run(config, toy.rewards(Gap)).result == result  # it is finished


def test_held_out_prompts_without_any_score_are_an_error(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Gap, "all_held_out", True)
    config = toy.config(fresh(tmp_path, model), steps=1)
    with pytest.raises(StuckError, match="2 of 2 prompts have no scores: nan score"):
        serial.run(config, toy.rewards(Gap))


def test_bad_input_is_found_before_a_folder_is_created(model, tmp_path):
    root = fresh(tmp_path, model)
    for flags in ({"model.path": root / "none"}, {"model.frames": 10}, {"prompts": root / "none.csv"}):
        with pytest.raises(ConfigError):
            serial.run(toy.config(root, **flags), toy.rewards())
    with pytest.raises(ConfigError, match=r"reward\.weights\.appeal = 1\.0: no reward head scores"):
        serial.run(toy.config(root), toy.rewards()[:1])
    assert not (root / "runs").exists()


# The report.


class Checker(HTMLParser):
    """Tags must close in order."""

    VOID = ("meta", "br", "img", "input", "link")
    SELF_CLOSING = ("line", "circle", "rect", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.videos: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "video":
            self.videos.append(values["src"])
            assert {"autoplay", "loop", "muted", "playsinline"} <= values.keys()
        self.outside += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.SELF_CLOSING

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_well_formed_page_with_its_videos(unbroken):
    folder, result = unbroken
    page = report.write(folder).read_text()
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert checker.outside == []  # loads nothing from other hosts
    assert len(checker.videos) == 2  # evaluation.clips
    assert all(re.match(r"data:video/mp4;base64,[A-Za-z0-9+/]+=*$", video) for video in checker.videos)
    assert result["verdict"]["message"].split(":")[0] in page
    for words in ("Learned reward", "Oracle", "Timeline", "prefers-color-scheme", result["weights_digest"]):
        assert words in page
    assert "--name toy-again" in page
    assert "after step 3" in page  # the refresh


def test_the_picture_shows_gains_and_a_loss(unbroken):
    folder, result = unbroken
    report.write(folder)
    picture = np.asarray(Image.open(folder / "report.png").convert("RGB"))
    clips = [decode_clip(path.read_bytes()) for path in sorted((folder / "clips").glob("*.mp4"))]
    row = np.asarray(contact_sheet(clips[:1]))
    shown = min(3, len(result["by_prompt"]))
    assert picture.shape[0] == sheet.LINE * (shown + 1) + 2 * shown * row.shape[0]
    best = max(result["by_prompt"], key=report.change_of)
    base = np.asarray(contact_sheet([decode_clip((folder / "clips" / best["base"]["clip"]).read_bytes())]))
    assert (picture[2 * sheet.LINE :][: base.shape[0], : base.shape[1]] == base).all()


def test_a_run_without_a_result_has_no_report(model, tmp_path):
    config = toy.config(fresh(tmp_path, model))
    assert not serial.run(config, toy.rewards(), stop=lambda: True).finished
    with pytest.raises(ConfigError, match="no result yet; finish the run first: douga run"):
        report.write(config.folder)
