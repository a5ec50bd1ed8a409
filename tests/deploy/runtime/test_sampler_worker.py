"""A sampler whose scratch disk is full samples with its old version while that may be used; then it alone ends."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from common.errors import ScratchError
from common.errors.disk import writing
from common.messages import WeightVersion
from common.weights.store import WeightStore
from deploy.runtime.driver import is_fatal
from deploy.runtime.hub import Hub
from deploy.runtime.messages import RENDEZVOUS_PREFIX, HubReady
from deploy.runtime.workers.learner import LearnerWorker
from deploy.runtime.workers.rewarder import RewarderWorker
from deploy.runtime.workers.sampler import SamplerWorker
from tests.runs.test_simulate import config

WAIT = 60.0


@pytest.fixture
def _full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of sampler-1 takes no version; nobody links to it either."""
    receive, link = WeightStore.receive, WeightStore.link

    def refuse(store: WeightStore) -> None:
        if "sampler-1" in store.folder.name:
            with writing(store.folder):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def receiving(store: WeightStore, manifest: WeightVersion, chunks: Iterable[bytes | memoryview]) -> None:
        refuse(store)
        receive(store, manifest, chunks)

    def linking(store: WeightStore, manifest: WeightVersion, file: Path, size: int) -> None:
        refuse(store)
        link(store, manifest, file, size)

    monkeypatch.setattr(WeightStore, "receive", receiving)
    monkeypatch.setattr(WeightStore, "link", linking)


@pytest.mark.usefixtures("_full")
def test_a_full_scratch_disk_costs_the_sampler_and_not_the_run(tmp_path: Path) -> None:
    made, ended = config(tmp_path), []
    workers = [
        LearnerWorker(made, "learner-0", 0, RENDEZVOUS_PREFIX),
        RewarderWorker(made, "rewarder-0"),
        SamplerWorker(made, "sampler-0"),
    ]
    full, middle = SamplerWorker(made, "sampler-1"), Hub(made)
    opened = middle.open()
    assert isinstance(opened, HubReady)

    def run_full() -> None:
        try:
            full.run(opened.addresses)
        except ScratchError as error:
            ended.append(error)

    threads = [threading.Thread(target=worker.run, args=(opened.addresses,)) for worker in workers]
    threads.append(threading.Thread(target=run_full))
    try:
        for thread in threads:
            thread.start()
        assert middle.run().step == made.steps
        threads[-1].join(WAIT)
    finally:
        for worker in (*workers, full):
            worker.stop()
        for thread in threads:
            thread.join(WAIT)
            assert not thread.is_alive()
        middle.close()
    (error,) = ended
    assert str(error).startswith("sampler-1: weights not staged: ")
    assert "No space left on device; free some space" in str(error)
    assert "rerun" not in str(error)
    assert not is_fatal(error)
