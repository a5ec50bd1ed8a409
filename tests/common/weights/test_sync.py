"""Weights over the network: a pulled version equals the published one, and damaged data is never staged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
import zmq

from common.errors import CorruptDataError, NotFoundError
from common.messages import WeightVersion
from common.rpc.client import ServiceFailed, Unreachable
from common.rpc.codec import pack
from common.rpc.server import Service, serving
from common.weights import sync
from common.weights.store import WeightStore
from common.weights.sync import (
    RemoteWeights,
    StoredWeights,
    WeightPuller,
    WeightSource,
    pull,
    weight_service,
)
from common.weights.tensor_file import TensorStream
from tests.support.exchange.fakes import open_exchange, small

WAIT = 20.0


def publish(
    store: WeightStore, version: int, kind: str = "full", base: int | None = None, step: int | None = None
) -> WeightVersion:
    state = {"w": torch.randn(300, 28, generator=torch.Generator().manual_seed(version)), "b": torch.ones(3).bfloat16()}
    base, step = version if base is None else base, version if step is None else step
    return store.publish(TensorStream.of(state), version=version, step=step, pushes=step, kind=kind, base=base)


@contextmanager
def small_chunks() -> Iterator[None]:
    """A version of `publish` is nine chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync, "CHUNK", 4096)
        yield


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


def test_a_pulled_file_equals_the_published_one(store: WeightStore, service: Service, tmp_path: Path) -> None:
    manifest = publish(store, 3)
    mine = WeightStore(tmp_path / "mine")
    with small_chunks(), RemoteWeights(service.address, "sampler-0") as source:
        assert pull(source, 3, mine) == manifest
    assert service.counts["chunk"] == -(-store.file(3).stat().st_size // 4096) == 9
    assert mine.file(3).read_bytes() == store.file(3).read_bytes()
    assert torch.equal(mine.load(3)[1]["w"], store.load(3)[1]["w"])


class Damaging(StoredWeights):
    """Alters a byte of a chunk, once."""

    damaged = 0

    def chunk(self, version: int, offset: int) -> bytes:
        data = bytearray(super().chunk(version, offset))
        if not self.damaged and offset:
            self.damaged += 1
            data[-5] ^= 1
        return bytes(data)


def debris(folder: Path) -> list[str]:
    """The files in `folder` that are not staged versions."""
    return [path.name for path in folder.iterdir() if not path.name.startswith("v")]


def test_a_damaged_download_is_rejected_and_deleted(store: WeightStore, tmp_path: Path) -> None:
    publish(store, 1)
    mine = WeightStore(tmp_path / "mine")
    with (
        small_chunks(),
        serving(Service(WeightSource, Damaging(store))) as service,
        RemoteWeights(service.address, "sampler-0") as source,
    ):
        with pytest.raises(CorruptDataError, match="weight version 1: w differs from its digest in the manifest"):
            pull(source, 1, mine)
        assert mine.versions() == debris(mine.folder) == []
        pull(source, 1, mine)
    assert mine.load(1)[0] == store.manifest(1)


class Confused(StoredWeights):
    """Returns the manifest of version 2 for version 1."""

    def manifest(self, version: int) -> WeightVersion:
        return super().manifest(2 if version == 1 else version)


def test_the_manifest_of_another_version_is_rejected(store: WeightStore, tmp_path: Path) -> None:
    for version in (1, 2):
        publish(store, version)
    mine = WeightStore(tmp_path / "mine")
    with (
        serving(Service(WeightSource, Confused(store))) as service,
        RemoteWeights(service.address, "sampler-0") as source,
        pytest.raises(CorruptDataError, match="weight version 1: received the manifest of version 2 instead"),
    ):
        pull(source, 1, mine)
    assert mine.versions() == debris(mine.folder) == []


def test_a_base_must_not_have_a_base(store: WeightStore, service: Service, tmp_path: Path) -> None:
    for version, base in ((1, 1), (2, 1), (3, 2)):
        publish(store, version, kind="adapter", base=base)
    mine = WeightStore(tmp_path / "mine")
    with RemoteWeights(service.address, "sampler-0") as source:
        with pytest.raises(CorruptDataError, match="weight version 3: its base 2 is itself based on 1"):
            pull(source, 3, mine)
        assert mine.versions() == []
        pull(source, 2, mine)
    assert mine.versions() == [1, 2]


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


@pytest.mark.parametrize(("cut", "message"), [(-1, "ends within b; 1 bytes of it are missing"), (None, "1 bytes more")])
def test_a_file_of_another_length_is_rejected(
    store: WeightStore, tmp_path: Path, cut: int | None, message: str
) -> None:
    manifest = publish(store, 1)
    whole = store.file(1).read_bytes()
    mine = WeightStore(tmp_path / "mine")
    with pytest.raises(CorruptDataError, match=message):
        mine.receive(manifest, [whole[:cut] if cut else whole + b"x"])
    assert mine.versions() == debris(mine.folder) == []


def test_a_manifest_that_fails_its_own_digest_is_rejected(store: WeightStore, tmp_path: Path) -> None:
    manifest = publish(store, 1)
    chunks = [store.file(1).read_bytes()]
    with pytest.raises(CorruptDataError, match="the manifest's entries differ from its own digest"):
        WeightStore(tmp_path / "mine").receive(replace(manifest, tensors=manifest.tensors[:1]), chunks)


def test_pulling_a_deleted_version_raises(service: Service, tmp_path: Path) -> None:
    with (
        RemoteWeights(service.address, "sampler-0") as source,
        pytest.raises(NotFoundError, match=r"no weight version 9; there are \[\]"),
    ):
        pull(source, 9, WeightStore(tmp_path / "mine"))


def test_a_chunk_of_a_deleted_version_raises(store: WeightStore, service: Service) -> None:
    with (
        RemoteWeights(service.address, "sampler-0") as source,
        closing(source.chunks(9, 1)) as chunks,
        pytest.raises(NotFoundError, match="weight version 9 does not exist any more"),
    ):
        next(chunks)


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


def wait_for(is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT
    while not is_so():
        assert time.monotonic() < ends
        Event().wait(0.01)


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


class Interrupted(StoredWeights):
    """Calls `between` before it answers for the chunk at `offset` for the first time."""

    def __init__(self, store: WeightStore, offset: int, between: Callable[[], None]) -> None:
        super().__init__(store)
        self.offset, self.between, self.called = offset, between, 0

    def chunk(self, version: int, offset: int) -> bytes:
        if offset == self.offset and not self.called:
            self.called += 1
            self.between()
        return super().chunk(version, offset)


def test_a_pull_survives_a_restart_of_the_publisher(store: WeightStore, tmp_path: Path) -> None:
    """The service stops with open requests, and another one takes its address. Only missing chunks are requested."""
    manifest, stop = publish(store, 1), Event()
    mine = WeightStore(tmp_path / "mine")
    dying = Service(WeightSource, Interrupted(store, 5 * 4096, stop.set))
    with small_chunks(), ThreadPoolExecutor() as threads:
        first = threads.submit(dying.serve, stop)
        with RemoteWeights(dying.address, "sampler-0", timeout=0.5) as source:
            pulled = threads.submit(pull, source, 1, mine)
            first.result(WAIT)
            dying.close()
            with serving(weight_service(store, dying.address)) as service:
                assert pulled.result(WAIT) == manifest
    assert dying.counts["chunk"] == 6  # the last of these answers went down with it, if not more
    assert 0 < service.counts["chunk"] < 9
    assert mine.load(1)[0] == manifest
    assert debris(mine.folder) == []


def test_an_unreachable_publisher_is_named(store: WeightStore, tmp_path: Path) -> None:
    publish(store, 1)
    mine, stop = WeightStore(tmp_path / "mine"), Event()
    dying = Service(WeightSource, Interrupted(store, 5 * 4096, stop.set))
    with small_chunks(), ThreadPoolExecutor() as threads:
        served = threads.submit(dying.serve, stop)
        served.add_done_callback(lambda _: dying.close())
        with (
            RemoteWeights(dying.address, "sampler-0", timeout=0.05) as source,
            pytest.raises(Unreachable, match=r"sampler-0: chunk: no answer from tcp://.* in 0\.6 s"),
        ):
            pull(source, 1, mine)
    assert mine.versions() == debris(mine.folder) == []


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


def test_replies_with_chunks_are_not_cached(store: WeightStore) -> None:
    """They are large, and a client that died during a pull would keep one in memory."""
    publish(store, 1)
    with (
        serving(weight_service(store)) as service,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as socket,
    ):
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, round(1000 * WAIT))
        socket.connect(service.address)
        for name, arguments in (("chunk", [1, 0]), ("manifest", [1])):
            answers = []
            for _ in range(2):
                socket.send_multipart(pack({"client": "sampler-0", "id": 7, "call": name}, arguments))
                answers.append(socket.recv_multipart())
            assert answers[0] == answers[1]
    assert service.counts == {"chunk": 2, "manifest": 1, "repeated": 1}
