"""The page in a real browser: play, rate, undo, resume, two annotators at once, compare with keys. Needs Chromium."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from rewarders.annotation.app import make_app
from rewarders.annotation.playback import PlaybackCheck
from rewarders.annotation.survey import Survey
from tests.support.chromium import MARKS, PATIENCE, Browser, Page, expect
from tests.support.rewarders.survey import survey

pytestmark = MARKS
Open = Callable[..., Page]


@pytest.fixture
def asked(tmp_path: Path) -> Survey:
    return survey(tmp_path, annotators=2)


class Served:
    """A survey at a free port, in a thread."""

    def __init__(self, asked: Survey, token: str | None = None) -> None:
        self.screening, self.door = PlaybackCheck(), socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.door.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(make_app(asked, self.screening, token), log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.door]})
        self.thread.start()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.door.close()
        self.screening.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(*how) -> Served:
        running.append(Served(*how))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def visit(browser: Browser, serve: Callable[..., Served], asked: Survey) -> Iterator[Open]:
    """Opens the page for an annotator, in a window of their own. A console error of the page fails the test."""
    url, contexts, complaints = serve(asked).url, [], []

    def start(name: str, view: str = "rate", **how) -> Page:
        contexts.append(browser.new_context(viewport={"width": 1100, "height": 800}, **how))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(f"{url}/#{view}")
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Begin").click()
        expect(page.locator("#stage video").first).to_be_visible()
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def count(page: Page, text: str) -> None:
    expect(page.locator("#count")).to_have_text(text)


def clip(page: Page) -> str:
    return page.locator("#stage video").first.get_attribute("src") or ""


def test_clips_play_and_begin_again(visit: Open):
    page = visit("ann")
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.2")
    page.wait_for_function(
        "() => (window.top_ = Math.max(window.top_ || 0, document.querySelector('video').currentTime)) > 1.5"
    )
    page.wait_for_function("() => document.querySelector('video').currentTime < 1")  # 2 s long: it has begun again
    assert page.evaluate("document.querySelector('video').videoWidth") == 256
    page.keyboard.press(" ")
    page.wait_for_function("() => document.querySelector('video').paused")
    page.keyboard.press(" ")
    page.wait_for_function("() => !document.querySelector('video').paused")
    page.get_by_role("button", name="Half speed").click()
    assert page.evaluate("document.querySelector('video').playbackRate") == 0.5


def test_rate_by_keys_and_by_hand_undo_and_resume(visit: Open, asked: Survey):
    page = visit("ann")
    count(page, "0 of 6")
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    first = clip(page)
    for key in ("5", "4", "3", "Enter"):
        page.keyboard.press(key)
    count(page, "1 of 6")
    for name in ("text", "smoothness", "appeal"):
        page.get_by_role("button", name=f"{name} 2").click()
    page.get_by_role("button", name="Submit").click()
    count(page, "2 of 6")
    page.keyboard.press("u")
    page.keyboard.press("u")
    count(page, "1 of 6")
    page.keyboard.press("u")
    count(page, "0 of 6")
    assert clip(page) == first
    expect(page.get_by_role("button", name="appeal 4")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    count(page, "1 of 6")
    before = clip(page)
    page.reload()
    count(page, "1 of 6")
    assert clip(page) == before
    assert [answer.value for answer in asked.given("rate")] == [{"text": 5, "appeal": 1, "smoothness": 3}]


def test_the_anchors_are_numbered(visit: Open):
    page = visit("ann")
    anchors = page.locator(".anchors li")
    expect(anchors).to_have_count(9)
    assert [one.get_attribute("value") for one in anchors.all()[:3]] == ["1", "3", "5"]
    expect(anchors.nth(4)).to_have_text(
        "The video quality is acceptable; the main content is recognizable, though some details are rough."
    )


def test_all_is_done_and_can_be_taken_back(visit: Open):
    page = visit("ann")
    for done in range(6):
        count(page, f"{done} of 6")
        for key in ("3", "3", "3", "Enter"):
            page.keyboard.press(key)
    expect(page.get_by_role("heading", name="All done")).to_be_visible()
    page.get_by_role("button", name="Undo the last answer").click()
    count(page, "5 of 6")


def test_compare_blind_with_keys_in_step(visit: Open, asked: Survey):
    page = visit("ann", "compare")
    expect(page.locator("#stage video")).to_have_count(2)
    assert "base" not in page.content()
    assert "aligned" not in page.content()
    page.wait_for_function("() => [...document.querySelectorAll('video')].every(v => v.currentTime > 0.3)")
    apart = page.evaluate(
        """() => new Promise(done => {
            const [a, b] = document.querySelectorAll('video'), found = [];
            const look = () => {
                const moving = [a, b].every(one => !one.ended && !one.seeking);
                if (moving) found.push(Math.abs(a.currentTime - b.currentTime));
                found.length < 60 ? requestAnimationFrame(look) : done(found.sort((x, y) => x - y)[54]);
            };
            look();
        })"""
    )
    assert apart < 0.125  # one frame of 8 a second, at nine looks of ten
    for done, key in enumerate(("ArrowLeft", "ArrowRight", "ArrowDown")):
        count(page, f"{done} of 3")
        page.keyboard.press(key)
    expect(page.get_by_role("heading", name="All done")).to_be_visible()
    said = []
    for answer in asked.given("compare"):
        task = asked.pair(answer.item)
        said.append(asked._side("ann", task, answer.value["choice"]))
    assert said == ["left", "right", "tie"]
    page.keyboard.press("u")
    expect(page.get_by_role("button", name="Tie")).to_have_attribute("aria-pressed", "true")


def test_videos_that_drift_are_brought_together(visit: Open):
    page = visit("ann", "compare")
    page.wait_for_function("() => [...document.querySelectorAll('video')].every(v => v.currentTime > 0.1)")
    page.evaluate("document.querySelectorAll('video')[1].playbackRate = 0.2")
    page.wait_for_function("() => document.querySelectorAll('video')[0].currentTime > 1.4")
    assert page.evaluate("document.querySelectorAll('video')[1].currentTime") > 1


def test_two_annotators_at_once(visit: Open, asked: Survey):
    ann, ben = visit("ann"), visit("ben")
    for done in range(6):
        for page, value in ((ann, "5"), (ben, "4")):
            count(page, f"{done} of 6")
            for key in (value, value, value, "Enter"):
                page.keyboard.press(key)
    expect(ben.get_by_role("heading", name="All done")).to_be_visible()
    ben.get_by_role("button", name="Results").click()
    expect(ben.locator("#results")).to_contain_text("6 of 6 clips rated")
    given = {(answer.annotator, answer.item): answer.value["text"] for answer in asked.given("rate")}
    assert given == {(who, one.key): value for who, value in (("ann", 5), ("ben", 4)) for one in asked.clips}


def test_a_phone_shows_all_without_scrolling_sideways(visit: Open):
    page = visit("ann", has_touch=True, is_mobile=True)
    for view in ("Rate", "Compare", "Results"):
        page.get_by_role("button", name=view, exact=True).click()
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        if view != "Results":
            expect(page.locator("#stage video").first).to_be_in_viewport()


def test_names_and_prompts_are_text_and_never_markup(visit: Open):
    page = visit("<img src=x onerror=alert(1)>")
    expect(page.locator("#who")).to_have_text("<img src=x onerror=alert(1)>")
    assert page.locator("img[src=x]").count() == 0


def test_a_token_is_asked_for(browser: Browser, serve: Callable[..., Served], asked: Survey):
    context = browser.new_context()
    page = context.new_page()
    page.goto(serve(asked, "correct horse battery").url)
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("alert")).to_have_text("wrong token")
    page.get_by_label("Token").fill("correct horse battery")
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_label("Your name")).to_be_visible()
    context.close()


def test_a_server_that_is_gone_is_told_and_nothing_is_skipped(browser: Browser, asked: Survey):
    served = Served(asked)
    context = browser.new_context()
    page = context.new_page()
    try:
        page.goto(served.url)
        page.get_by_label("Your name").fill("ann")
        page.get_by_role("button", name="Begin").click()
        count(page, "0 of 6")
        before = clip(page)
    finally:
        served.stop()
    for key in ("3", "3", "3", "Enter"):
        page.keyboard.press(key)
    expect(page.get_by_role("alert")).to_have_text(re.compile("cannot be reached"))
    assert clip(page) == before
    context.close()
