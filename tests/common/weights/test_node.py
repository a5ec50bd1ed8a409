"""Samplers of one node: whose files are linked, and who downloads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.weights import node as module
from common.weights.node import Node
from common.weights.store import WeightStore
from tests.support.weights import debris, publish, publish_bfloat16


@pytest.fixture
def stores(tmp_path: Path) -> tuple[WeightStore, WeightStore]:
    """The stores of two samplers."""
    return WeightStore(tmp_path / "a"), WeightStore(tmp_path / "b")


def test_a_staged_version_is_linked(stores: tuple[WeightStore, WeightStore]) -> None:
    theirs, mine = stores
    manifest = publish(theirs, 3)
    assert Node(lambda: [mine.folder, theirs.folder]).link(manifest, mine)
    assert mine.file(3).samefile(theirs.file(3))
    assert mine.load(3)[0] == manifest


@pytest.mark.parametrize("kind", ["own", "missing", "deleted", "other weights", "cut", "open to others", "a symlink"])
def test_what_is_not_linked(
    stores: tuple[WeightStore, WeightStore], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, mine = stores
    manifest, folder = publish(theirs, 3), theirs.folder
    if kind == "own":
        folder = mine.folder
    elif kind == "missing":
        folder = tmp_path / "never"
    elif kind == "deleted":
        theirs.file(3).unlink()
    elif kind == "other weights":
        publish_bfloat16(theirs, 3)
    elif kind == "cut":
        os.truncate(theirs.file(3), 100)
    elif kind == "open to others":
        folder.chmod(0o777)
    else:
        folder = tmp_path / "link"
        folder.symlink_to(theirs.folder)
    assert not Node(lambda: [folder]).link(manifest, mine)
    assert mine.versions() == debris(mine.folder) == []
    assert not (tmp_path / "never").exists()


def test_folders_of_other_users_are_not_looked_at(
    stores: tuple[WeightStore, WeightStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, mine = stores
    manifest = publish(theirs, 3)
    monkeypatch.setattr(os, "getuid", lambda: theirs.folder.stat().st_uid + 1)
    assert not Node(lambda: [theirs.folder]).link(manifest, mine)


def test_a_disk_without_links_costs_a_download(
    stores: tuple[WeightStore, WeightStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    theirs, mine = stores
    manifest = publish(theirs, 3)
    monkeypatch.setattr(os, "link", refuse)
    assert not Node(lambda: [theirs.folder]).link(manifest, mine)
    assert mine.versions() == debris(mine.folder) == []


def test_one_downloads_at_a_time(tmp_path: Path) -> None:
    first, second = Node(), Node()
    with first.downloading("d", tmp_path) as mine, second.downloading("d", tmp_path) as other:
        assert (mine, other) == (True, False)
        with second.downloading("e", tmp_path) as another:
            assert another
    assert not list(tmp_path.iterdir())
    with second.downloading("d", tmp_path) as mine:
        assert mine


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    times = iter([100.0, 100.0, 100.0 + module.PATIENCE, 100.5 + module.PATIENCE])
    second = Node(clock=lambda: next(times))
    with Node().downloading("d", tmp_path):
        for mine in (False, False, True):
            with second.downloading("d", tmp_path) as found:
                assert found is mine


def test_where_there_can_be_no_lock_everybody_downloads(tmp_path: Path) -> None:
    (tmp_path / "douga-weights-d.lock").mkdir()
    with Node().downloading("d", tmp_path) as mine, Node().downloading("d", tmp_path) as other:
        assert mine
        assert other
