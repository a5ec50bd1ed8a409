"""Long polls: the server holds the answer back until it changes, without a thread and without blocking others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Protocol

import pytest

from common.rpc import server as serving_side
from common.rpc.client import Client, calling
from common.rpc.interface import long_poll
from common.rpc.server import Service, serving

SECONDS = 20  # timeout of every wait


class Calls(Protocol):
    """The interface of these tests."""

    @long_poll
    def news(self, seen: int) -> int:
        """A number, once it is not `seen`."""
        ...

    def publish(self) -> int:
        """Raises the number. Returns it."""
        ...


class Board:
    """The target: one number."""

    def __init__(self) -> None:
        self.number = 1

    def news(self, seen: int) -> int:
        return self.number

    def publish(self) -> int:
        self.number += 1
        return self.number


@calling(Calls)
class Reader(Client, Calls):
    pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(serving_side, "HOLD_SECONDS", SECONDS)
    with serving(Service(Calls, Board(), threads=1)) as running:
        yield running


def parked(service: Service) -> int:
    return sum(map(len, service._parked.values()))


def test_an_answer_that_differs_comes_at_once(service: Service) -> None:
    with Reader.at(service.address, "one") as one:
        assert one.news(0) == 1


def test_held_answers_come_with_the_change_and_hold_nobody_up(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_side, "MAX_PENDING", 2)
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        readers = [stack.enter_context(Reader.at(service.address, f"reader-{n}")) for n in range(3)]
        answers = [pool.submit(reader.news, 1) for reader in readers]
        other = stack.enter_context(Reader.at(service.address, "other"))
        while parked(service) < len(readers):  # more than may be pending, on a service of one thread
            assert other.news(0) == 1
        assert not any(answer.done() for answer in answers)
        assert other.publish() == 2
        assert [answer.result(SECONDS) for answer in answers] == [2, 2, 2]
        assert (parked(service), service._pending_count) == (0, 0)


def test_an_answer_is_not_held_for_longer_than_allowed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_side, "HOLD_SECONDS", 0.05)
    with Reader.at(service.address, "one") as one:
        assert one.news(1) == 1


def test_a_service_that_stops_answers_the_held_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clients would ask again for minutes, also workers that were told to stop."""
    monkeypatch.setattr(serving_side, "HOLD_SECONDS", SECONDS)
    with ThreadPoolExecutor(1) as pool:
        with serving(Service(Calls, Board())) as running:
            reader = Reader.at(running.address, "one", attempts=1)
            answer = pool.submit(reader.news, 1)
            while not parked(running):
                assert not answer.done()
        with reader:
            assert answer.result(SECONDS) == 1


def test_a_client_that_asks_again_gets_the_held_answer(service: Service) -> None:
    with Reader.at(service.address, "one", timeout=0.2, attempts=100) as one, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(one.news, 1)
        with Reader.at(service.address, "other") as other:
            while service.counts["repeated"] < 2:
                other.news(0)
            other.publish()
        assert answer.result(SECONDS) == 2
