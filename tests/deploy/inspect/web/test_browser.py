"""The page of a run in a real browser: it updates itself, plays videos, marks the bottleneck. Needs Chromium."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.chromium import MARKS, PATIENCE, Browser, Page, expect
from tests.support.web_runs import killed, serving

ROOT = Path(__file__).parents[4]
LONG = 300_000  # milliseconds, for a real run to make progress
Visit = Callable[..., Page]
Serve = Callable[..., str]
pytestmark = MARKS


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves the page of a run folder until the test ends; returns the address."""
    with ExitStack() as stack:
        yield lambda *how: stack.enter_context(serving(*how))


@pytest.fixture
def visit(browser: Browser, serve: Serve) -> Iterator[Visit]:
    """Opens a page, which closes before its server does.

    Errors in its console fail the test, except 401 and 404.
    """
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
    assert [message for message in complaints if not re.search("status of 40[14]", message)] == []


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed after three pairs and two steps, with clips of 2 seconds."""
    return killed(tmp_path, monkeypatch)


def plays(page: Page) -> None:
    """Every video plays."""
    page.wait_for_function("() => document.querySelectorAll('#pairs video').length > 0")
    page.wait_for_function("() => [...document.querySelectorAll('#pairs video')].every(one => one.currentTime > 0.2)")
    page.wait_for_function(
        """() => [...document.querySelectorAll('#pairs video')].every(one => {
            one.top_ = Math.max(one.top_ || 0, one.currentTime);
            return one.top_ > 0.6 * one.duration;
        })"""
    )


@pytest.mark.timeout(900)
def test_a_live_run_from_start_to_finish(visit: Visit, serve: Serve, tmp_path: Path):
    words = ["run", "--mode", "serial", "--name", "live", "--root", tmp_path, "--steps", 4, "--guardrails.prompts", 0]
    words += ["--evaluation.prompts", 2, "--learner.batch-size", 1, "--sampler.candidates", 2, "--sampler.steps", 2]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen([sys.executable, "-m", "deploy.cli", *map(str, words)], cwd=ROOT, env=env, stderr=said)
        try:
            while not (tmp_path / "live" / "config.toml").exists():
                with pytest.raises(subprocess.TimeoutExpired):  # still running
                    run.wait(0.1)
            follow(visit(serve(tmp_path / "live")))
            assert run.wait(180) == 0
        finally:
            run.kill()
            run.wait(30)


def follow(page: Page) -> None:
    """Checks the page while the run proceeds, without any input."""
    page.wait_for_selector("#phase.live", timeout=LONG)
    page.wait_for_selector("#pipeline li.slowest .tag", timeout=LONG)
    expect(page.locator("#pipeline li.slowest")).to_have_attribute("data-stage", re.compile("sampler|learner|rewarder"))
    expect(page.locator("#workers li")).to_have_count(3)
    page.wait_for_function(  # any of them: new ones keep coming
        "() => [...document.querySelectorAll('#pairs video')].some(one => one.currentTime > 0.2)", timeout=LONG
    )
    step = "document.querySelector('#facts dd').firstChild.data"
    for number in (1, 2):
        page.wait_for_function(f"() => Number({step}) >= {number}", timeout=LONG)
    page.wait_for_selector("#curves svg .push", state="attached", timeout=LONG)
    expect(page.locator("#phase")).to_have_text("finished", timeout=LONG)
    expect(page.locator("#words")).to_contain_text(re.compile("Aligned:|Not verified"))
    expect(page.locator("#pipeline li.slowest")).to_have_count(0)


def test_kept_candidates_play_in_sync_and_loop(visit: Visit, serve: Serve, stopped: Path):
    page = visit(serve(stopped))
    expect(page.locator("#pairs video")).to_have_count(3)
    plays(page)
    page.wait_for_function("() => document.querySelector('#pairs video').currentTime < 0.6")  # it loops
    sizes = page.evaluate("(one => [one.videoWidth, one.videoHeight])(document.querySelector('#pairs video'))")
    assert sizes == [512, 192]  # both clips are one video
    card = page.locator(".pair").first
    expect(card).to_contain_text("chosen 80.0")
    expect(card).to_contain_text("rejected 30.0")
    expect(card.locator(".dimension")).to_have_count(6)
    before = page.evaluate("(window.card = document.querySelector('.pair')).dataset.ordinal")
    for _ in range(2):
        page.wait_for_event("response", lambda answer: "/api/run" in answer.url)
    # An update keeps the card, so that its video does not restart.
    assert page.evaluate("document.querySelector('.pair') === window.card")
    assert before == "2"


def test_a_stopped_run_shows_the_resume_command_and_marks_events(visit: Visit, serve: Serve, stopped: Path):
    page = visit(serve(stopped))
    expect(page.locator("#phase")).to_have_text("not running")
    expect(page.locator("#words")).to_contain_text(f"resume with: douga run {stopped / 'config.toml'}")
    expect(page.locator("#words")).to_contain_text("71 % of <b>motion</b>")  # text, no markup
    curve = page.locator("#curves svg").first
    for kind, count in (("push", 2), ("refresh", 1), ("alarm", 1), ("resume", 1)):
        expect(curve.locator(f".{kind}")).to_have_count(count)


def test_deleted_clips_are_reported(visit: Visit, serve: Serve, stopped: Path):
    for blob in (stopped / "blobs").iterdir():
        blob.unlink()
    page = visit(serve(stopped))
    expect(page.locator(".screen.none")).to_have_text(["the clip no longer exists"] * 3)
    expect(page.locator(".pair").first).to_contain_text("chosen 80.0")


@pytest.mark.parametrize("width", [390, 360])
def test_a_phone_needs_no_horizontal_scrolling(visit: Visit, serve: Serve, stopped: Path, width: int):
    page = visit(serve(stopped), viewport={"width": width, "height": 844}, has_touch=True, is_mobile=True)
    expect(page.locator("#pairs video")).to_have_count(3)
    expect(page.locator("#curves svg")).to_have_count(11)  # five of every run, six of the algorithm
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#pairs video").first.bounding_box()
    assert box is not None
    assert (box["x"] >= 0, box["x"] + box["width"] <= width, box["width"] > 0.85 * width) == (True, True, True)


def test_the_page_asks_for_the_token(visit: Visit, serve: Serve, stopped: Path):
    page = visit(serve(stopped, "correct horse battery").replace("127.0.0.1", "localhost"))
    page.get_by_label("Token").fill("correct horse battery")
    page.get_by_role("button", name="Enter").click()
    expect(page.locator("#run")).to_have_text("mine")
    plays(page)
