"""Deltas on the hub's disk: made once, offered while they grow, given up where they are of no use."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event

import pytest

from common.errors import NotFoundError
from common.weights import delta_store
from common.weights.delta import decode
from common.weights.delta_store import FOLDER, DeltaOffer, DeltaStore, mapped
from common.weights.store import WeightStore
from tests.support.disk import file_size_limit
from tests.support.weights import publish_bfloat16

WAIT = 20.0


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    """Versions 1, 2 and 3 move by a unit; 4 has nothing in common with them, 5 another layout."""
    store = WeightStore(tmp_path)
    for version, seed in ((1, 0), (2, 0), (3, 0), (4, 9)):
        publish_bfloat16(store, version, seed=seed)
    publish_bfloat16(store, 5, size=500)
    return store


def held(store: WeightStore, *versions: int) -> dict[int, str]:
    return {version: store.manifest(version).digest for version in versions}


def made(deltas: DeltaStore, store: WeightStore, version: int, *bases: int) -> DeltaOffer | None:
    """The offer, once nothing is being made any more."""
    ends = time.monotonic() + WAIT

    def offer() -> DeltaOffer | None:
        return deltas.offer(version, store.manifest(version).digest, held(store, *bases))

    while (found := offer()) is not None and not found.whole:
        assert time.monotonic() < ends
        Event().wait(0.005)
    return found


def test_a_delta_from_the_nearest_version_gives_the_file(store: WeightStore) -> None:
    deltas = DeltaStore(store)
    found = made(deltas, store, 3, 1, 2)
    assert found is not None
    assert (found.base, found.whole) == (2, True)
    digests = store.manifest(3).digest, store.manifest(2).digest
    coded = [deltas.read(*digests, offset, 100) for offset in range(0, found.size, 100)]
    assert sum(map(len, coded)) == found.size < store.file(3).stat().st_size / 5
    assert b"".join(decode(coded, mapped(store.file(2)))) == store.file(3).read_bytes()
    again = made(deltas, store, 3, 2)
    assert again == found
    assert len(list((store.folder / FOLDER).iterdir())) == 1
    older = made(deltas, store, 1, 2)
    assert older is not None  # after a rollback
    assert older.base == 2


@pytest.mark.parametrize(
    ("version", "bases"), [(4, (3,)), (5, (3,)), (3, ())], ids=["too different", "another layout", "nothing held"]
)
def test_versions_with_little_in_common_have_no_delta(store: WeightStore, version: int, bases: tuple[int, ...]) -> None:
    assert made(DeltaStore(store), store, version, *bases) is None
    assert not list((store.folder / FOLDER).glob("*"))


def test_other_weights_of_the_same_number_are_no_base(store: WeightStore) -> None:
    deltas, digest = DeltaStore(store), store.manifest(3).digest
    assert deltas.offer(3, digest, {2: "0" * 32, 77: digest}) is None
    assert deltas.offer(3, "0" * 32, held(store, 2)) is None


def test_a_deleted_version_takes_its_deltas_along(store: WeightStore) -> None:
    deltas = DeltaStore(store)
    made(deltas, store, 2, 1)
    digests = store.manifest(2).digest, store.manifest(1).digest
    store.prune(keep=3, needed=())
    assert made(deltas, store, 4, 3) is None  # when another one is made
    with pytest.raises(NotFoundError, match="no delta of weights"):
        deltas.read(*digests, 0, 100)
    assert not list((store.folder / FOLDER).iterdir())
    with pytest.raises(NotFoundError, match="no weight version 2"):
        deltas.offer(2, "0" * 32, held(store, 3))


def test_only_bytes_that_exist_can_be_read(store: WeightStore) -> None:
    deltas = DeltaStore(store)
    found = made(deltas, store, 2, 1)
    assert found is not None
    for offset in (-1, found.size):
        with pytest.raises(NotFoundError, match=f"at byte {offset}"):
            deltas.read(store.manifest(2).digest, store.manifest(1).digest, offset, 100)


@pytest.mark.parametrize("fault", ["full disk", "broken code"])
def test_a_delta_that_cannot_be_made_is_not_waited_for(
    store: WeightStore, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(new: memoryview, old: memoryview) -> None:
        raise RuntimeError("a fault")

    deltas = DeltaStore(store)
    if fault == "broken code":
        monkeypatch.setattr(delta_store, "encode", broken)
        assert made(deltas, store, 2, 1) is None
    else:
        with file_size_limit(100):
            assert made(deltas, store, 2, 1) is None
    assert "version 2 is sent whole, as no delta could be made: " in caplog.text
    assert not list((store.folder / FOLDER).glob("*"))


def test_a_start_finds_no_deltas_of_the_one_before(store: WeightStore) -> None:
    assert made(DeltaStore(store), store, 2, 1) is not None
    assert made(DeltaStore(store), store, 3, 2) is not None
    (left,) = (store.folder / FOLDER).iterdir()
    assert left.name.startswith(store.manifest(3).digest)
    assert store.versions() == [1, 2, 3, 4, 5]
