"""The page of a run in a real browser: it renews itself, videos play, the bottleneck is marked. Needs Chromium."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chromium import MARKS, PATIENCE, Browser, Page, expect
from tests.common.exchange.fakes import make_pairs, open_exchange
from tests.deploy.watch.runs import begun, history, playable, serving

ROOT = Path(__file__).parents[3]
LONG = 180_000  # milliseconds, for a real run to get on
Visit = Callable[..., Page]
pytestmark = MARKS


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens a page. What it complains about fails the test, but for missing clips and a token that is asked for."""
    contexts, complaints = [], []

    def start(url: str, **how) -> Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | how))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert [words for words in complaints if not re.search("status of 40[14]", words)] == []


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed after three pairs and two steps, with clips of 2 seconds."""
    monkeypatch.setattr("tests.common.exchange.fakes.candidate", playable)
    folder, config = begun(tmp_path)
    exchange = open_exchange(folder, config)
    make_pairs(exchange, 3)
    exchange.close()
    history(folder, time.time() - 100)
    return folder


def plays(page: Page) -> None:
    """Every video shown goes on, and begins again."""
    page.wait_for_function("() => document.querySelectorAll('#pairs video').length > 0")
    page.wait_for_function("() => [...document.querySelectorAll('#pairs video')].every(one => one.currentTime > 0.2)")
    page.wait_for_function(
        """() => [...document.querySelectorAll('#pairs video')].every(one => {
            one.top_ = Math.max(one.top_ || 0, one.currentTime);
            return one.top_ > 0.6 * one.duration;
        })"""
    )


@pytest.mark.timeout(900)
def test_a_live_run_from_its_beginning_to_its_end(visit: Visit, tmp_path: Path):
    words = ["run", "--mode", "serial", "--name", "live", "--root", tmp_path, "--steps", 8, "--guard.prompts", 0,
             "--evaluation.prompts", 2, "--learner.pairs-per-step", 2, "--sampler.steps", 5]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen([sys.executable, "-m", "deploy.cli", *map(str, words)], cwd=ROOT, env=env, stderr=said)
        try:
            while not (tmp_path / "live" / "config.toml").exists():
                assert run.poll() is None
                time.sleep(0.1)
            with serving(tmp_path / "live") as url:
                follow(visit(url))
                assert run.wait(180) == 0
        finally:
            run.kill()
            run.wait(30)


def follow(page: Page) -> None:
    """What is seen while the run goes on; nobody touches the page."""
    page.wait_for_selector("#phase.live", timeout=LONG)
    page.wait_for_selector("#pipeline li.slowest .tag", timeout=LONG)
    expect(page.locator("#pipeline li.slowest")).to_have_attribute("data-stage", re.compile("sampler|learner|rewarder"))
    page.wait_for_function(  # any of them: new ones come all the time
        "() => [...document.querySelectorAll('#pairs video')].some(one => one.currentTime > 0.2)", timeout=LONG
    )
    step = "document.querySelector('#facts dd').firstChild.data"
    for number in (1, 3):
        page.wait_for_function(f"() => Number({step}) >= {number}", timeout=LONG)
    page.wait_for_selector("#curves svg .push", state="attached", timeout=LONG)
    expect(page.locator("#workers li")).to_have_count(3)
    expect(page.locator("#phase")).to_have_text("finished", timeout=LONG)
    expect(page.locator("#words")).to_contain_text(re.compile("Aligned|Not aligned|held|fell|reward"))
    expect(page.locator("#pipeline li.slowest")).to_have_count(0)


def test_winner_and_loser_play_in_step_and_again_and_again(visit: Visit, stopped: Path):
    with serving(stopped) as url:
        page = visit(url)
        expect(page.locator("#pairs video")).to_have_count(3)
        plays(page)
        page.wait_for_function("() => document.querySelector('#pairs video').currentTime < 0.6")  # it has begun again
        sizes = page.evaluate("(one => [one.videoWidth, one.videoHeight])(document.querySelector('#pairs video'))")
        assert sizes == [512, 192]  # both halves are one picture
        card = page.locator(".pair").first
        expect(card).to_contain_text("winner 80.0")
        expect(card).to_contain_text("loser 30.0")
        expect(card.locator(".dimension")).to_have_count(6)
        before = page.evaluate("(window.card = document.querySelector('.pair')).dataset.ordinal")
        page.wait_for_timeout(2500)
        assert page.evaluate("document.querySelector('.pair') === window.card")  # a look does not begin it anew
        assert before == "2"


def test_a_run_that_stopped_says_how_it_goes_on_and_marks_what_happened(visit: Visit, stopped: Path):
    with serving(stopped) as url:
        page = visit(url)
        expect(page.locator("#phase")).to_have_text("not running")
        expect(page.locator("#words")).to_contain_text(f"go on with: douga run {stopped / 'config.toml'}")
        expect(page.locator("#words")).to_contain_text("71 % of <b>motion</b>")  # words, no markup
        curve = page.locator("#curves svg").first
        for kind, count in (("push", 2), ("refresh", 1), ("alarm", 1), ("resume", 1)):
            expect(curve.locator(f".{kind}")).to_have_count(count)


def test_clips_that_are_gone_are_said_to_be(visit: Visit, stopped: Path):
    for blob in (stopped / "blobs").iterdir():
        blob.unlink()
    with serving(stopped) as url:
        page = visit(url)
        expect(page.locator(".screen.none")).to_have_text(["clip is gone"] * 3)
        expect(page.locator(".pair").first).to_contain_text("winner 80.0")


@pytest.mark.parametrize("width", [390, 360])
def test_a_phone_shows_all_without_scrolling_sideways(visit: Visit, stopped: Path, width: int):
    with serving(stopped) as url:
        page = visit(url, viewport={"width": width, "height": 844}, has_touch=True, is_mobile=True)
        expect(page.locator("#pairs video")).to_have_count(3)
        expect(page.locator("#curves svg")).to_have_count(5)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        box = page.locator("#pairs video").first.bounding_box()
        assert box is not None
        assert (box["x"] >= 0, box["x"] + box["width"] <= width, box["width"] > 0.85 * width) == (True, True, True)


def test_a_token_is_asked_for(visit: Visit, stopped: Path):
    with serving(stopped, "correct horse battery") as url:
        page = visit(url.replace("127.0.0.1", "localhost"))
        page.get_by_label("Token").fill("correct horse battery")
        page.get_by_role("button", name="Enter").click()
        expect(page.locator("#run")).to_have_text("mine")
        plays(page)
