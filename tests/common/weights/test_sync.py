"""The puller's thread beside a sampler: what it stages and when, and which version the sampler loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import torch

from common.rpc.client import ServiceFailed, Unreachable
from common.rpc.server import Service, serving
from common.weights import sync
from common.weights.source import StoredWeights, WeightSource, weight_service
from common.weights.store import WeightStore
from common.weights.sync import WeightPuller
from tests.support.exchange.fakes import open_exchange, small
from tests.support.weights import WAIT, Damaging, Interrupted, debris, publish, small_chunks, wait_for


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "learner")


@pytest.fixture
def service(store: WeightStore) -> Iterator[Service]:
    with serving(weight_service(store)) as service:
        yield service


class Wanted:
    """The exchange's answer to a puller: a version that a test sets."""

    def __init__(self) -> None:
        self.version = 0

    def __call__(self) -> int:
        return self.version


@pytest.fixture
def wanted() -> Wanted:
    return Wanted()


def test_a_puller_pulls_a_damaged_version_again(
    store: WeightStore, wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "ASK_SECONDS", 0.1)
    wanted.version = 1
    publish(store, 1)
    target = Damaging(store)
    with (
        small_chunks(),
        serving(Service(WeightSource, target)) as service,
        WeightPuller(service.address, wanted, tmp_path / "mine", "sampler-0") as puller,
    ):
        assert puller.wait(1, WAIT)
        assert (puller.failed, target.damaged) == (1, 1)
        assert puller.store.load(1)[0] == store.manifest(1)
    assert debris(tmp_path / "mine") == []


def test_the_version_that_the_exchange_wants_is_staged(
    store: WeightStore, service: Service, wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`staged` is not called: the puller asks the exchange by itself, as it must while a long group is sampled."""
    monkeypatch.setattr(sync, "ASK_SECONDS", 0.01)
    publish(store, 0)
    with WeightPuller(service.address, wanted, tmp_path / "mine", "sampler-0") as puller:
        for version in (1, 2, 3, 4):
            publish(store, version)
            wanted.version = version
            wait_for(lambda version=version: version in puller.store.versions())
        assert puller.store.manifest(4) == store.manifest(4)
        assert torch.equal(puller.store.load(4)[1]["w"], store.load(4)[1]["w"])
        assert len(puller.store.versions()) <= sync.KEPT + 1
        assert not puller.wait(5, 0.01)


def test_an_older_version_is_pulled_at_once_when_the_sampler_asks(
    store: WeightStore, service: Service, wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "ASK_SECONDS", 3600.0)
    wanted.version = 3
    for version in (0, 1, 2, 3):
        publish(store, version)
    with WeightPuller(service.address, wanted, tmp_path / "mine", "sampler-0") as puller:
        assert puller.wait(3, WAIT)
        assert puller.wait(0, WAIT)
        assert puller.staged(0)  # not pruned while requested
        assert torch.equal(puller.store.load(0)[1]["w"], store.load(0)[1]["w"])


def test_nothing_is_said_before_the_first_version_is_published(
    store: WeightStore,
    wanted: Wanted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sync, "ASK_SECONDS", 0.01)
    asked = Event()
    source = StoredWeights(store)
    monkeypatch.setattr(source, "versions", lambda: (StoredWeights.versions(source), asked.set())[0])
    with (
        serving(Service(WeightSource, source)) as late,
        WeightPuller(late.address, wanted, tmp_path / "mine", "sampler-0") as puller,
    ):
        assert asked.wait(WAIT)
        publish(store, 0)
        assert puller.wait(0, WAIT)
        assert puller.failed == 0
        assert not caplog.records
        wanted.version = 7
        wait_for(lambda: puller.failed > 0)
    assert "weights not pulled" in caplog.text
    assert "no weight version 7; there are [0]" in caplog.text


def test_a_puller_retries_when_the_exchange_fails(
    store: WeightStore, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "ASK_SECONDS", 0.01)
    publish(store, 2)
    answers = iter([Unreachable("no answer"), ServiceFailed("fault")])

    def asked() -> int:
        for error in answers:
            raise error
        return 2

    with WeightPuller(service.address, asked, tmp_path / "mine", "sampler-0") as puller:
        wait_for(lambda: 2 in puller.store.versions())
        assert puller.failed == 2


@pytest.mark.parametrize("pruned", [False, True])
def test_a_version_that_is_superseded_amid_its_pull(
    store: WeightStore, wanted: Wanted, tmp_path: Path, pruned: bool
) -> None:
    """A newer one is published, announced, and the old one perhaps deleted, while the old one is on its way."""
    publish(store, 1)
    wanted.version = 1
    superseded = Event()

    def supersede() -> None:
        publish(store, 2)
        if pruned:
            store.prune(keep=1)
        wanted.version = 2
        superseded.set()

    target = Interrupted(store, 4 * 4096, supersede)
    with (
        small_chunks(),
        serving(Service(WeightSource, target)) as service,
        WeightPuller(service.address, wanted, tmp_path / "mine", "sampler-0") as puller,
    ):
        assert superseded.wait(WAIT)
        assert puller.wait(2, WAIT)
        assert puller.store.load(2)[0] == store.manifest(2)
        assert puller.store.versions() == ([2] if pruned else [1, 2])
        assert (target.called, puller.failed) == (1, int(pruned))
    assert debris(tmp_path / "mine") == []


def test_a_late_joiner_gets_the_newest_adapter_and_its_base(
    store: WeightStore, service: Service, wanted: Wanted, tmp_path: Path
) -> None:
    publish(store, 0)
    for version in (1, 2, 3):
        publish(store, version, "adapter", base=0)
    wanted.version = 3
    with WeightPuller(service.address, wanted, tmp_path / "mine", "sampler-0") as puller:
        assert puller.wait(3, WAIT)
        assert puller.store.versions() == [0, 3]
        for version in (0, 3):
            manifest, state = puller.load(version)
            assert manifest == store.manifest(version)
            assert torch.equal(state["w"], store.load(version)[1]["w"])
    assert service.counts["manifest"] == 2


def test_a_puller_follows_a_rollback(store: WeightStore, service: Service, tmp_path: Path) -> None:
    """Version 2 is rolled back. Its id is not used again, and the puller that has it changes to version 3."""
    exchange = open_exchange(tmp_path / "exchange", small())

    def push_version(step: int) -> int:
        version = publish(store, exchange.next_version(), step=step)
        exchange.announce(version)
        return version.version

    try:
        assert [push_version(step) for step in (0, 1, 2)] == [0, 1, 2]
        with WeightPuller(service.address, exchange.wanted_version, tmp_path / "mine", "sampler-0") as puller:
            assert puller.wait(exchange.wanted_version(), WAIT)
            assert puller.staged(2)
            exchange.rollback(0)
            assert exchange.wanted_version() == 0
            assert puller.wait(0, WAIT)
            assert push_version(0) == 3
            assert exchange.wanted_version() == 3
            assert puller.wait(3, WAIT)
            assert puller.load(3)[0] == store.manifest(3)
            assert puller.failed == 0
    finally:
        exchange.close()


class TestChoose:
    """Which version a sampler loads. The exchange's answers and the staged versions are given; no thread runs."""

    @pytest.fixture
    def puller(self, tmp_path: Path, wanted: Wanted) -> WeightPuller:
        return WeightPuller("tcp://127.0.0.1:1", wanted, tmp_path / "mine", "sampler-0")

    def choose(self, puller: WeightPuller, held: int, line: list[int], staged: list[int]) -> int:
        for version in line:
            puller._hear(version)
        for version in staged:
            publish(puller.store, version)
        return puller.choose(held, line[-1])

    @pytest.mark.parametrize(
        ("held", "line", "staged", "chosen"),
        [
            (4, [4], [4], 4),
            (4, [4, 5], [4, 5], 5),
            (4, [4, 5], [4], 4),
            (4, [4, 5, 6, 7], [5, 6], 6),  # the newest one that is staged
            (4, [4, 6, 7], [5, 6], 6),
            (4, [4, 7], [4, 5], 4),  # nobody wanted 5 since: it may have been rolled back
            (4, [4, 5, 6, 4, 7], [5, 6], 4),  # 5 and 6 were rolled back
            (6, [5, 6, 4], [4, 5], 4),
            (6, [5, 6, 4], [5], 6),  # a rollback is followed exactly
            (6, [6, 0], [5], 6),  # so is an evaluation
            (6, [6, 0, 8], [0, 5], 6),
        ],
    )
    def test_the_newest_staged_version_of_the_line_is_loaded(
        self, puller: WeightPuller, held: int, line: list[int], staged: list[int], chosen: int
    ) -> None:
        assert self.choose(puller, held, line, staged) == chosen

    def test_a_chosen_version_is_not_deleted_before_it_is_loaded(self, puller: WeightPuller) -> None:
        assert self.choose(puller, 4, [5, 6, 9], [5]) == 5
        for version in (6, 7, 8, 9):
            puller._staged(publish(puller.store, version))
        assert puller.store.versions() == [5, 8, 9]
        puller.load(5)


def test_a_version_is_loaded_although_a_newer_one_is_announced(
    store: WeightStore, wanted: Wanted, tmp_path: Path
) -> None:
    """The service has lost version 3: before, the sampler went on with version 1."""
    for version in (0, 1, 2):
        publish(store, version)
    wanted.version = 2
    with (
        serving(weight_service(store)) as service,
        WeightPuller(service.address, wanted, tmp_path / "mine", "sampler-0") as puller,
    ):
        assert puller.wait(2, WAIT)
        wanted.version = 3
        wait_for(lambda: puller.choose(1, 3) == 2)
        wait_for(lambda: puller.failed > 0)
        assert puller.choose(2, 3) == 2


def test_the_base_model_is_staged_from_the_samplers_own_before_anything_else(
    store: WeightStore, service: Service, wanted: Wanted, tmp_path: Path
) -> None:
    for version in (0, 1):
        publish(store, version)
    wanted.version = 1
    own: dict[str, torch.Tensor] | None = dict(store.load(0)[1])
    puller = WeightPuller(service.address, wanted, tmp_path / "mine", "sampler-0", held=lambda: own)
    with puller:
        assert puller.wait(1, WAIT)
        assert puller.store.file(0).read_bytes() == store.file(0).read_bytes()
    assert service.counts["chunk"] == 1  # of version 1
    assert puller.failed == 0


def test_two_pullers_of_a_node_download_once(
    store: WeightStore, service: Service, wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "NEAR_SECONDS", 0.01)
    wanted.version = 1
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir(0o700)
    pullers = [WeightPuller(service.address, wanted, folder, folder.name, nearby=lambda: folders) for folder in folders]
    with pullers[0], pullers[1]:
        publish(store, 1)
        for puller in pullers:
            assert puller.wait(1, WAIT)
    files = [puller.store.file(1) for puller in pullers]
    assert files[0].samefile(files[1])
    assert service.counts["chunk"] == 1
    assert files[0].read_bytes() == store.file(1).read_bytes()
