"""Weights over the network: what arrives is what was published, and nothing damaged is ever staged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common import push
from common.config import ConfigError
from common.messages import WeightVersion
from common.push import Announcer, RemoteWeights, StoredWeights, WeightPuller, pull, weight_service
from common.rpc import Service, serving
from common.weights import WeightStore

WAIT = 20.0


def publish(store: WeightStore, version: int, kind: str = "full", base: int | None = None) -> WeightVersion:
    state = {"w": torch.randn(300, 7, generator=torch.Generator().manual_seed(version)), "b": torch.ones(3).bfloat16()}
    base = version if base is None else base
    return store.publish(state, version=version, step=version, pushes=version, kind=kind, base=base)


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "learner")


@pytest.fixture
def service(store: WeightStore) -> Iterator[Service]:
    with serving(weight_service(store)) as service:
        yield service


@pytest.fixture
def notes() -> Iterator[Announcer]:
    announcer = Announcer()
    yield announcer
    announcer.close()


def test_chunks_make_up_the_file(
    store: WeightStore, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "CHUNK", 1000)
    manifest = publish(store, 3)
    mine = WeightStore(tmp_path / "mine")
    with RemoteWeights(service.address, "sampler-0") as source:
        assert source.newest() == 3
        assert pull(source, 3, mine) == manifest
    assert service.counts["chunk"] == -(-store.file(3).stat().st_size // 1000) > 5
    assert mine.file(3).read_bytes() == store.file(3).read_bytes()
    assert torch.equal(mine.load(3)[1]["w"], store.load(3)[1]["w"])


def test_an_adapter_brings_its_base(store: WeightStore, tmp_path: Path) -> None:
    publish(store, 0)
    publish(store, 4, "adapter", base=0)
    mine = WeightStore(tmp_path / "mine")
    pull(StoredWeights(store), 4, mine)
    assert mine.versions() == [0, 4]


def test_damage_on_the_way_is_named_and_not_kept(store: WeightStore, tmp_path: Path) -> None:
    publish(store, 1)

    class Damaging(StoredWeights):
        def chunk(self, version: int, offset: int) -> bytes:
            data = bytearray(super().chunk(version, offset))
            data[-5] ^= 1
            return bytes(data)

    mine = WeightStore(tmp_path / "mine")
    with pytest.raises(ConfigError, match="differs from its digest in the manifest"):
        pull(Damaging(store), 1, mine)
    assert mine.versions() == []
    pull(StoredWeights(store), 1, mine)  # what was left behind is no hindrance
    assert mine.versions() == [1]


def test_a_version_that_is_gone_is_named(service: Service, tmp_path: Path) -> None:
    with (
        RemoteWeights(service.address, "sampler-0") as source,
        pytest.raises(ConfigError, match=r"no weight version 9; here are \[\]"),
    ):
        pull(source, 9, WeightStore(tmp_path / "mine"))


def test_a_note_brings_the_newest_version(
    store: WeightStore, service: Service, notes: Announcer, tmp_path: Path
) -> None:
    publish(store, 0)
    with WeightPuller(service.address, notes.address, tmp_path / "mine", "sampler-0") as puller:
        assert puller.wait(0, WAIT)  # a late joiner needs no note
        for version in (1, 2, 3, 4):
            publish(store, version)
            notes.announce(version)
        assert puller.wait(4, WAIT)
        assert puller.store.manifest(4) == store.manifest(4)
        assert torch.equal(puller.store.load(4)[1]["w"], store.load(4)[1]["w"])
        assert len(puller.store.versions()) <= push.KEPT + 1
        assert not puller.wait(5, 0.01)


def test_an_older_version_comes_when_it_is_asked_for(
    store: WeightStore, service: Service, notes: Announcer, tmp_path: Path
) -> None:
    for version in (0, 1, 2, 3):
        publish(store, version)
    with WeightPuller(service.address, notes.address, tmp_path / "mine", "sampler-0") as puller:
        assert puller.wait(3, WAIT)
        assert puller.wait(0, WAIT)
        assert puller.staged(0)  # and stays while it is wanted
        assert torch.equal(puller.store.load(0)[1]["w"], store.load(0)[1]["w"])


def test_a_lost_note_costs_only_time(
    store: WeightStore, service: Service, notes: Announcer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "ASK_SECONDS", 0.1)
    with WeightPuller(service.address, notes.address, tmp_path / "mine", "sampler-0") as puller:
        publish(store, 2)
        assert puller.wait(2, WAIT)


def test_a_puller_outlives_a_damaged_version(
    store: WeightStore, service: Service, notes: Announcer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "ASK_SECONDS", 0.1)
    publish(store, 1)
    whole = store.file(1).read_bytes()
    store.file(1).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with WeightPuller(service.address, notes.address, tmp_path / "mine", "sampler-0") as puller:
        while not puller.failed:  # the test's own time-out ends it
            assert not puller.wait(1, 0.02)
        store.file(1).write_bytes(whole)
        assert puller.wait(1, WAIT)
