"""One version from the service, another sampler or the sampler's own model: always the published bytes, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
import zmq

from common.errors import CorruptDataError, NotFoundError, StorageError
from common.messages import WeightVersion
from common.meters import NullMeters
from common.rpc.client import Unreachable
from common.rpc.codec import pack
from common.rpc.server import Service, serving
from common.weights import delta_store
from common.weights.delta_store import DeltaOffer
from common.weights.node import Node
from common.weights.pull import BYTES, Pull
from common.weights.source import RemoteWeights, StoredWeights, WeightSource, weight_service
from common.weights.store import WeightStore
from tests.support.disk import file_size_limit
from tests.support.weights import (
    WAIT,
    Damaging,
    Interrupted,
    bfloat16_state,
    debris,
    publish,
    publish_bfloat16,
    small_chunks,
    small_deltas,
)


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "learner")


@pytest.fixture
def service(store: WeightStore) -> Iterator[Service]:
    with serving(weight_service(store)) as service:
        yield service


def test_a_pulled_file_equals_the_published_one(store: WeightStore, service: Service, tmp_path: Path) -> None:
    manifest = publish(store, 3)
    mine = WeightStore(tmp_path / "mine")
    with small_chunks(), RemoteWeights(service.address, "sampler-0") as source:
        assert Pull(source, mine)(3) == manifest
    assert service.counts["chunk"] == -(-store.file(3).stat().st_size // 4096) == 9
    assert mine.file(3).read_bytes() == store.file(3).read_bytes()
    assert torch.equal(mine.load(3)[1]["w"], store.load(3)[1]["w"])


def test_a_damaged_download_is_rejected_and_deleted(store: WeightStore, tmp_path: Path) -> None:
    publish(store, 1)
    mine = WeightStore(tmp_path / "mine")
    with (
        small_chunks(),
        serving(Service(WeightSource, Damaging(store))) as service,
        RemoteWeights(service.address, "sampler-0") as source,
    ):
        with pytest.raises(CorruptDataError, match="weight version 1: w differs from its digest in the manifest"):
            Pull(source, mine)(1)
        assert mine.versions() == debris(mine.folder) == []
        Pull(source, mine)(1)
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
        Pull(source, mine)(1)
    assert mine.versions() == debris(mine.folder) == []


def test_a_base_must_not_have_a_base(store: WeightStore, service: Service, tmp_path: Path) -> None:
    for version, base in ((1, 1), (2, 1), (3, 2)):
        publish(store, version, kind="adapter", base=base)
    mine = WeightStore(tmp_path / "mine")
    with RemoteWeights(service.address, "sampler-0") as source:
        with pytest.raises(CorruptDataError, match="weight version 3: its base 2 is itself based on 1"):
            Pull(source, mine)(3)
        assert mine.versions() == []
        Pull(source, mine)(2)
    assert mine.versions() == [1, 2]


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
        Pull(source, WeightStore(tmp_path / "mine"))(9)


def test_a_chunk_of_a_deleted_version_raises(store: WeightStore, service: Service) -> None:
    with (
        RemoteWeights(service.address, "sampler-0") as source,
        closing(source.chunks(9, 1)) as chunks,
        pytest.raises(NotFoundError, match="weight version 9 does not exist any more"),
    ):
        next(chunks)


def test_a_pull_survives_a_restart_of_the_publisher(store: WeightStore, tmp_path: Path) -> None:
    """The service stops with open requests, and another one takes its address. Only missing chunks are requested."""
    manifest, stop = publish(store, 1), Event()
    mine = WeightStore(tmp_path / "mine")
    dying = Service(WeightSource, Interrupted(store, 5 * 4096, stop.set))
    with small_chunks(), ThreadPoolExecutor() as threads:
        first = threads.submit(dying.serve, stop)
        with RemoteWeights(dying.address, "sampler-0", timeout=0.5) as source:
            pulled = threads.submit(Pull(source, mine), 1)
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
            Pull(source, mine)(1)
    assert mine.versions() == debris(mine.folder) == []


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


class Traffic(NullMeters):
    """Adds up bytes by phase."""

    def __init__(self) -> None:
        self.bytes: dict[str, float] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """See `Meters`."""
        if name == BYTES:
            self.bytes[labels["phase"]] = self.bytes.get(labels["phase"], 0) + amount


class TestDelta:
    """A version of which the sampler has staged an earlier one."""

    @pytest.fixture
    def mine(self, store: WeightStore, tmp_path: Path) -> WeightStore:
        """Version 1, of the two that are published."""
        for version in (1, 2):
            publish_bfloat16(store, version)
        mine = WeightStore(tmp_path / "mine")
        mine.receive(store.manifest(1), [store.file(1).read_bytes()])
        return mine

    def check_pull(self, target: StoredWeights, store: WeightStore, mine: WeightStore) -> tuple[Service, Traffic]:
        """Pull version 2 and compare it with the published one."""
        traffic = Traffic()
        with (
            small_deltas(),
            serving(Service(WeightSource, target)) as service,
            RemoteWeights(service.address, "sampler-0") as source,
        ):
            assert Pull(source, mine, traffic)(2) == store.manifest(2)
        assert mine.file(2).read_bytes() == store.file(2).read_bytes()
        assert debris(mine.folder) == []
        return service, traffic

    def test_only_the_difference_is_sent(self, store: WeightStore, mine: WeightStore) -> None:
        service, traffic = self.check_pull(StoredWeights(store), store, mine)
        assert service.counts["chunk"] == 0
        assert list(traffic.bytes) == ["delta"]
        assert 0 < traffic.bytes["delta"] < store.file(2).stat().st_size / 5

    def test_it_is_sent_while_it_is_being_made(
        self, store: WeightStore, mine: WeightStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last block is made only after the bytes before it were read."""
        target, read = StoredWeights(store), Event()

        def slow(new: memoryview, old: memoryview):
            blocks = list(encode(new, old))
            yield from blocks[:-1]
            assert read.wait(WAIT)
            yield blocks[-1]

        encode = delta_store.encode
        monkeypatch.setattr("common.weights.delta.BLOCK", 1024)
        monkeypatch.setattr(delta_store, "TRIAL", 1024)
        monkeypatch.setattr(delta_store, "encode", slow)
        chunk = target.delta_chunk
        monkeypatch.setattr(target, "delta_chunk", lambda *given: (chunk(*given), read.set())[0])
        service, _ = self.check_pull(target, store, mine)
        assert read.is_set()
        assert service.counts["chunk"] == 0

    @pytest.mark.parametrize("fault", ["damaged", "given up", "deleted"])
    def test_the_whole_version_is_sent_if_the_difference_fails(
        self, store: WeightStore, mine: WeightStore, fault: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        service, traffic = self.check_pull(BadDeltas(store, fault), store, mine)
        assert service.counts["chunk"] > 0
        assert set(traffic.bytes) <= {"delta", "transfer"}
        said = [record for record in caplog.records if record.getMessage().startswith("version 2 whole: ")]
        assert [record.levelname for record in said] == (["WARNING"] if fault == "damaged" else ["INFO"])

    def test_a_version_with_little_in_common_is_sent_whole(self, store: WeightStore, mine: WeightStore) -> None:
        publish_bfloat16(store, 2, seed=7)
        _, traffic = self.check_pull(StoredWeights(store), store, mine)
        assert list(traffic.bytes) == ["transfer"]

    def test_a_small_version_is_sent_whole(self, store: WeightStore, service: Service, mine: WeightStore) -> None:
        with RemoteWeights(service.address, "sampler-0") as source:
            assert Pull(source, mine)(2) == store.manifest(2)
        assert (service.counts["delta"], service.counts["chunk"]) == (0, 1)


class BadDeltas(StoredWeights):
    """Offers a delta and does not keep its word."""

    def __init__(self, store: WeightStore, fault: str) -> None:
        super().__init__(store)
        self.fault, self.offers = fault, 0

    def delta(self, version: int, digest: str, held: dict[int, str]) -> DeltaOffer | None:
        """See `WeightSource`."""
        self.offers += 1
        return None if self.fault == "given up" and self.offers > 1 else DeltaOffer(1, 1000, whole=True)

    def delta_chunk(self, digest: str, base_digest: str, offset: int) -> bytes:
        """See `WeightSource`."""
        if self.fault == "deleted":
            raise NotFoundError("no delta")
        return bytes(128)


class TestBaseModel:
    """Version 0, of a sampler that still holds the model it started with."""

    def pull(self, service: Service, mine: WeightStore, state: dict[str, torch.Tensor]) -> WeightVersion | None:
        with RemoteWeights(service.address, "sampler-0") as source:
            return Pull(source, mine, held=lambda: state)(0)

    def test_it_is_not_downloaded(self, store: WeightStore, service: Service, tmp_path: Path) -> None:
        manifest, mine = publish_bfloat16(store, 0), WeightStore(tmp_path / "mine")
        state = bfloat16_state(0) | {"a buffer that is not published": torch.ones(1)}
        assert self.pull(service, mine, state) == manifest
        assert mine.file(0).read_bytes() == store.file(0).read_bytes()
        assert service.counts["chunk"] == 0

    @pytest.mark.parametrize("other", [bfloat16_state(1), {"w": torch.ones(1)}], ids=["other values", "other names"])
    def test_another_model_is_not_taken_for_it(
        self, store: WeightStore, service: Service, tmp_path: Path, other: dict[str, torch.Tensor]
    ) -> None:
        manifest, mine = publish_bfloat16(store, 0), WeightStore(tmp_path / "mine")
        assert self.pull(service, mine, other) == manifest
        assert mine.file(0).read_bytes() == store.file(0).read_bytes()
        assert service.counts["chunk"] == 1


class TestNode:
    """A version that another sampler of the node has staged, or is downloading."""

    def test_it_is_linked(self, store: WeightStore, service: Service, tmp_path: Path) -> None:
        manifest = publish(store, 3)
        stores = [WeightStore(tmp_path / name) for name in ("a", "b")]
        node, traffic = Node(lambda: [one.folder for one in stores]), Traffic()
        with RemoteWeights(service.address, "sampler-0") as source:
            for one in stores:
                assert Pull(source, one, traffic, node)(3) == manifest
        assert service.counts["chunk"] == 1
        assert stores[0].file(3).samefile(stores[1].file(3))
        assert traffic.bytes["shared"] == traffic.bytes["transfer"] == store.file(3).stat().st_size
        stores[0].prune(keep=1, needed=())
        stores[0].file(3).unlink()
        assert stores[1].load(3)[0] == manifest

    def test_it_is_waited_for(self, store: WeightStore, service: Service, tmp_path: Path) -> None:
        manifest, mine = publish(store, 3), WeightStore(tmp_path / "mine")
        with RemoteWeights(service.address, "sampler-0") as source:
            with Node().downloading(manifest.digest, tmp_path) as first:
                assert first
                assert Pull(source, mine)(3) is None
            assert service.counts["chunk"] == 0
            assert Pull(source, mine)(3) == manifest
        assert sorted(path.name for path in tmp_path.iterdir()) == ["learner", "mine"]

    def test_a_full_disk_leaves_no_lock(self, store: WeightStore, service: Service, tmp_path: Path) -> None:
        publish(store, 3)
        mine = WeightStore(tmp_path / "mine")
        with RemoteWeights(service.address, "sampler-0") as source:
            with file_size_limit(1000), pytest.raises(StorageError, match="v000003: cannot be written"):
                Pull(source, mine)(3)
            assert mine.versions() == debris(mine.folder) == []
            assert Pull(source, mine)(3) == store.manifest(3)
