"""One rank that publishes, as a program: ``python -m tests.support.learner.publishing RANK WORLD FOLDER CASE...``

A case is ``memory-3`` or ``failure-3`` (test, ZeRO stage). Every rank writes its results to FOLDER/CASE-RANK.json.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from common.errors import StorageError
from common.weights.store import WeightStore
from common.weights.tensor_file import TensorStream
from learner.engines import base
from learner.engines.base import RankFailedError
from learner.engines.zero import ZeroEngine, join_group
from learner.learner import Learner
from tests.support.learner.fakes import MemoryExchange, tiny_config, tiny_model

LAYERS, WIDTH = 40, 1024  # 4 MiB each, 160 MiB in all
BUCKET = 8 << 20


def big_module() -> torch.nn.Module:
    """A module with random weights of a fixed seed."""
    torch.manual_seed(3)
    return torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def publish(store: WeightStore, stream: TensorStream, version: int) -> str:
    """Publish the engine's weights. Returns the digest."""
    return store.publish(stream, version=version, step=0, pushes=0, kind="full", base=version).digest


def memory(folder: Path, stage: int) -> dict[str, Any]:
    """Peak memory of this process above its start, in bytes: published in buckets, and all at once."""
    base.BUCKET_BYTES = BUCKET
    engine = ZeroEngine(big_module(), tiny_config(zero_stage=stage).learner)
    tensors, store = dict(engine.module.named_parameters()), WeightStore(folder / f"weights-{stage}")

    def by_bucket() -> None:
        engine.collect(tensors, lambda stream: publish(store, stream, 1))

    def at_once() -> None:
        whole = engine.collect(tensors, lambda stream: dict(stream.tensors))
        if whole is not None:
            publish(store, TensorStream.of(whole), 2)

    by_bucket()  # warm up: one-time allocations
    peaks = {"by_bucket": peak(by_bucket), "at_once": peak(at_once)}
    engine.close()
    return peaks


def peak(what: Callable[[], None]) -> int:
    """The peak memory of `what` above this process's present memory, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before = _kilobytes("VmRSS")
    what()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(line: str) -> int:
    found = re.search(rf"{line}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def failure(folder: Path, stage: int) -> dict[str, Any]:
    """Each rank's error when rank 0 cannot write a version, or rank 1 its part of a checkpoint; then both succeed."""
    base.BUCKET_BYTES = 4096
    config = tiny_config(zero_stage=stage)
    mine: Any = MemoryExchange() if distributed.get_rank() == 0 else None
    trained = Learner(tiny_model(folder / "model"), config, folder / f"run-{stage}")
    trained.resume(mine)
    said = {}
    # An optimizer that has not stepped has little to save, in stage 0 a few hundred bytes.
    for name, who, most, what in (("publish", 0, 20000, trained.publish), ("save", 1, 64, trained.save)):
        said[name] = _failing(lambda what=what: what(mine), most if trained.engine.rank == who else None)
    left = sorted(path.name for path in (folder / f"run-{stage}").glob("*/*"))
    trained.publish(mine)
    trained.save(mine)
    trained.close()
    return said | {"left": left, "versions": trained.store.versions()}


def _failing(what: Callable[[], Any], most: int | None) -> str:
    """The error of `what` while files of this process are limited to `most` bytes; None: not limited."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        what()
    except (StorageError, RankFailedError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "nothing"


def main(rank: int, world: int, folder: Path, cases: list[str]) -> None:
    """Every case in turn."""
    join_group(rank, world, (folder / "meet").as_uri())
    for case in cases:
        name, stage = case.split("-")
        found = {"memory": memory, "failure": failure}[name](folder, int(stage))
        (folder / f"{case}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
