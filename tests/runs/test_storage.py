"""Full disks, read-only folders, damaged files, on real file systems: one line, the right exit code, nothing lost."""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.prompts.source import open_prompts
from common.config import RunConfig
from common.errors import StorageError
from common.exchange.api import State
from common.exchange.local import LocalExchange
from common.exchange.storage import snapshots
from common.weights.store import WeightStore
from deploy.cli import run as command
from deploy.cli.main import exit_code, main
from deploy.run_dir.jsonl import read_json_lines
from deploy.run_dir.layout import read_result
from deploy.runtime import driver, serial
from learner import checkpoint
from tests.support import toy
from tests.support.tiny import tiny_pipeline

LAST = ("weights_digest", "verdict", "learned", "by_prompt", "prompts", "step")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def unbroken(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of an undisturbed run of six steps, and the size of its folder in bytes."""
    config = six(tmp_path_factory.mktemp("unbroken"), model)
    result = serial.run(config, toy.rewards()).result
    assert result is not None
    return {name: result[name] for name in LAST} | {"bytes": used(config.folder)}


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def six(root: Path, model: Path, **flags: Any) -> RunConfig:
    """The toy run with six steps and a checkpoint every two steps."""
    return toy.config(root, **{"model.path": model, "steps": 6} | flags)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The line on stderr; there must be exactly one."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("douga: ")]
    return line.removeprefix("douga: ")


def run(config: RunConfig, monkeypatch: pytest.MonkeyPatch, stop: Callable[[], bool] | None = None) -> int:
    """``douga run`` with the toy's rewards: its exit code."""
    asked = stop or (lambda: False)

    class Mode:
        @staticmethod
        def run(config: RunConfig, stop: Callable[[], bool], progress: Any) -> Any:
            return serial.run(config, toy.rewards(), stop=lambda: stop() or asked(), progress=progress)

    monkeypatch.setattr(command, "_mode", lambda _: Mode)
    return exit_code(partial(command.start, config))


# Full and read-only.


@contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """Mounts a file system of the given size."""
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)


def is_whole(config: RunConfig) -> None:
    """Nothing is half-written: the ledger is consistent, checkpoints and records can be read."""
    exchange = LocalExchange(config.folder, config, toy_prompts(config))
    exchange.check()
    exchange.close()
    checkpoints = config.folder / "checkpoints"
    for step in checkpoint.steps(checkpoints):
        assert checkpoint.read_progress(checkpoint.place(checkpoints, step)).step == step
        checkpoint.read_tensors(checkpoint.place(checkpoints, step), "policy")
    for name in ("metrics", "timeline", "events"):
        read_json_lines(config.folder / f"{name}.jsonl")
    leftovers = [path for path in config.folder.rglob("*") if path.name.endswith((".draft", ".tmp", ".part"))]
    assert not leftovers


def toy_prompts(config: RunConfig) -> Any:
    return open_prompts(config.prompts, config.seed)


ROOM = r"[\d.]+ [KMG]B of [\d.]+ [KMG]B are free there"
FULL = r"/[a-z]+(\.sqlite|/.*)?: cannot be written: No space left on device; free some space, then rerun the"


@pytest.mark.parametrize("share", [0.3, pytest.param(0.55, marks=pytest.mark.slow), 0.8])
def test_a_full_disk_is_one_line_and_the_same_command_resumes(
    share: float,
    unbroken: dict[str, Any],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The disk is full after a share of the data that the run needs; then it is enlarged."""
    with mounted(tmp_path / "disk", str(int(share * unbroken["bytes"]))) as disk:
        config = six(disk, model)
        assert run(config, monkeypatch) == 3
        assert re.search(f"^{disk}.*{FULL} same command to resume; {ROOM}$", told(capsys))
        remount(disk, "size=32m")
        is_whole(config)
        assert run(config, monkeypatch) == 0
        finished(config, unbroken)


def finished(config: RunConfig, unbroken: dict[str, Any]) -> None:
    result = read_result(config.folder)
    assert result is not None
    assert {name: result[name] for name in LAST} == {name: unbroken[name] for name in LAST}
    exchange = LocalExchange(config.folder, config, toy_prompts(config))
    exchange.check()
    assert exchange.counts()[State.TRAINED] == 12
    exchange.close()


def test_a_disk_that_turns_read_only(
    unbroken: dict[str, Any],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """During a run: exit code 3; at the start: 2. A disk with open files cannot be remounted, but a folder can."""
    with mounted(tmp_path / "disk", "32m") as disk:
        config = six(disk, model)
        blobs = config.folder / "blobs"

        def turn() -> bool:
            if len(read_json_lines(config.folder / "metrics.jsonl")) == 3 and not blobs.is_mount():
                subprocess.run(["mount", "--bind", str(blobs), str(blobs)], check=True)
                remount(blobs, "bind,ro")
            return False

        assert run(config, monkeypatch, turn) == 3
        words = f"^{blobs}/.*: cannot be written: Read-only file system; make it writable, then rerun the same"
        assert re.search(words, told(capsys))
        subprocess.run(["umount", str(blobs)], check=True)
        remount(disk, "ro")
        assert run(config, monkeypatch) == 2
        assert "Read-only file system" in told(capsys)
        remount(disk, "rw")
        is_whole(config)
        assert checkpoint.steps(config.folder / "checkpoints") == [2]
        assert run(config, monkeypatch) == 0
        finished(config, unbroken)


def test_a_limit_on_file_sizes(
    unbroken: dict[str, Any],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Needs no privileges. First writing weights fails, then the ledger, which SQLite reports as a disk error."""
    config = six(tmp_path, model)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    bounds = {
        170_000: "weights/v000000: cannot be written: File too large; free some space",
        250_000: "ledger.sqlite: cannot be written: Input/output error; check the disk",
    }
    for size, message in bounds.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            assert run(config, monkeypatch) == 3
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert told(capsys).startswith(f"{config.folder}/{message}, then rerun the same command to resume")
        is_whole(config)
    assert run(config, monkeypatch) == 0
    finished(config, unbroken)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("part", ["checkpoints", pytest.param("blobs", marks=pytest.mark.slow)])
def test_a_full_disk_ends_a_cluster_run_at_once(
    part: str, unbroken: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error occurs in the learner's process, or a sampler gets it over the network. No worker is restarted."""
    threads = torch.get_num_threads()  # as in this process, where the run resumes: threads change the order of sums
    config = six(tmp_path, model, mode="cluster", **{"cluster.sampler.count": 1, "cluster.threads": threads})
    config.folder.mkdir(parents=True)
    said = toy.Said()
    with mounted(config.folder / part, "200k") as disk:
        message = (
            rf"^{disk}/.*: cannot be written: No space left on device; "
            rf"free some space, then rerun the same command to resume; {ROOM}$"
        )
        with pytest.raises(StorageError, match=message):
            driver.run(config, toy.rewards(), progress=said)
        assert not [line for line in said.lines if " died " in line]
        remount(disk, "size=16m")
        assert run(six(tmp_path, model), monkeypatch) == 0  # `mode` may change on resume
        finished(config, unbroken)


# Damage.


def stopped(root: Path, model: Path, after: int = 5) -> RunConfig:
    """A run that was killed during step `after` + 1."""
    config = six(root, model)

    def die() -> bool:
        if len(read_json_lines(config.folder / "metrics.jsonl")) >= after:
            raise Killed
        return False

    with pytest.raises(Killed):
        serial.run(config, toy.rewards(), stop=die)
    return config


class Killed(Exception):
    """The process ends here."""


def overwrite(ledger: Path) -> None:
    """Overwrites pages in the middle."""
    data = bytearray(ledger.read_bytes())
    data[8192:20480] = bytes(range(256)) * 48
    ledger.write_bytes(data)


def empty(ledger: Path) -> None:
    ledger.write_bytes(b"")


def lose_a_blob(ledger: Path) -> None:
    """Deletes a held-out clip of the base model, the largest file."""
    max((ledger.parent / "blobs").iterdir(), key=lambda path: path.stat().st_size).unlink()


OTHERS: list[Callable[[Path], None]] = [empty, Path.unlink, lose_a_blob]


@pytest.mark.parametrize("damage", [overwrite, *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)])
def test_a_damaged_ledger_is_recovered(
    damage: Callable[[Path], None],
    unbroken: dict[str, Any],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = stopped(tmp_path, model)
    ledger = config.folder / "ledger.sqlite"
    blobs = {path.name for path in (config.folder / "blobs").iterdir()}
    damage(ledger)
    assert run(config, monkeypatch) == 2
    assert told(capsys).endswith(f"restore its last snapshot with: douga recover {config.folder}")
    assert damage is lose_a_blob or blobs == {path.name for path in (config.folder / "blobs").iterdir()}
    assert main(["recover", str(config.folder)]) == 0
    said = capsys.readouterr().out
    assert "restored the ledger's snapshot of step 4; the run resumes from there" in said
    assert "steps 5 to 5 are repeated" in said
    assert f"douga run {config.folder / 'config.toml'}" in said
    assert (config.folder / "ledger.sqlite.damaged-1").exists()
    assert main(["recover", str(config.folder)]) == 2
    assert told(capsys) == f"{ledger}: healthy, nothing to recover"
    newest = max(WeightStore(config.folder / "weights").versions())
    assert run(config, monkeypatch) == 0
    finished(config, unbroken)
    assert max(WeightStore(config.folder / "weights").versions()) == newest + 3  # at the start, after steps 5 and 6
    assert "recovered" in [record["event"] for record in read_json_lines(config.folder / "events.jsonl")]


def test_without_a_snapshot_nothing_can_be_recovered(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = stopped(tmp_path, model, after=1)
    overwrite(config.folder / "ledger.sqlite")
    assert run(config, monkeypatch) == 2
    assert "choose another --name" in told(capsys)
    assert main(["recover", str(config.folder)]) == 2
    assert "cannot recover: no sound snapshot of the ledger matches a checkpoint" in told(capsys)


def test_a_checkpoint_without_a_sound_snapshot_is_kept_aside(
    unbroken: dict[str, Any],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The newest snapshot is damaged too: the run resumes from the one before, although some of its blobs are gone."""
    config = stopped(tmp_path, model)
    for path in (config.folder / "ledger.sqlite", snapshots.path_of(config.folder, 4)):
        overwrite(path)
    assert main(["recover", str(config.folder)]) == 0
    said = capsys.readouterr().out
    assert "no sound snapshot belongs to the checkpoint of step 4: it is kept as unused-step-000004" in said
    assert "restored the ledger's snapshot of step 2" in said
    assert run(config, monkeypatch) == 0
    finished(config, unbroken)
