"""The scrape targets are the processes that are running."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.observability.targets import MOST, Targets, swept
from deploy.run_dir import layout


def listed(folder: Path, file: str = "targets.json") -> list[dict[str, Any]]:
    return json.loads((folder / "prometheus" / file).read_text())


def workers(folder: Path) -> list[str]:
    return [one["labels"]["worker"] for one in listed(folder)]


def test_a_target_by_hand(tmp_path: Path) -> None:
    targets = Targets(tmp_path, "mine")
    assert listed(tmp_path) == []
    targets.put("sampler-3", "10.0.0.5:9107")
    assert listed(tmp_path) == [
        {
            "targets": ["10.0.0.5:9107"],
            "labels": {"run": "mine", "process": "sampler", "worker": "sampler-3", "node": "10.0.0.5"},
        }
    ]
    targets.put("hub", "[fe80::1]:9100")
    assert listed(tmp_path)[0]["labels"] == {"run": "mine", "process": "hub", "worker": "hub", "node": "fe80::1"}
    assert not list((tmp_path / "prometheus").glob(".*"))


def test_workers_that_left_or_are_silent_are_not_listed(tmp_path: Path) -> None:
    targets = Targets(tmp_path, "mine")
    for number in range(3):
        targets.put(f"sampler-{number}", f"127.0.0.1:{9000 + number}")
    targets.put("rewarder-0", "127.0.0.1:9010")
    assert targets.workers("sampler") == ["sampler-0", "sampler-1", "sampler-2"]
    targets.remove(["sampler-1", "never-there"])
    targets.hide(["sampler-2"])
    assert workers(tmp_path) == ["rewarder-0", "sampler-0"]
    assert targets.workers("sampler") == ["sampler-0"]
    targets.hide([])  # its heartbeat is back
    assert workers(tmp_path) == ["rewarder-0", "sampler-0", "sampler-2"]
    targets.put("sampler-0", "127.0.0.1:9999")  # it crashed and was restarted
    assert listed(tmp_path)[1]["targets"] == ["127.0.0.1:9999"]
    targets.clear()
    assert listed(tmp_path) == []


def test_loopback_addresses_are_left_out_beside_others(tmp_path: Path) -> None:
    targets = Targets(tmp_path, "mine")
    targets.put("sampler-7", "127.0.0.1:9000")
    assert workers(tmp_path) == ["sampler-7"]
    targets.put("hub", "10.0.0.1:9000")
    assert workers(tmp_path) == ["hub"]
    assert targets.workers("sampler") == ["sampler-7"]  # it still counts as running


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "example.org:80", "127.0.0.1:80/metrics", "u@127.0.0.1:80",
     "http://127.0.0.1:80", "127.0.0.1:80?x"],
)  # fmt: skip
def test_invalid_addresses_are_refused(tmp_path: Path, address: str) -> None:
    targets = Targets(tmp_path, "mine")
    with pytest.raises(ValueError, match=r"."):
        targets.put("sampler-0", address)
    assert listed(tmp_path) == []


def test_the_number_of_targets_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.observability.targets.MOST", 2)
    targets = Targets(tmp_path, "mine")
    for number in range(2):
        targets.put(f"sampler-{number}", "127.0.0.1:9000")
    with pytest.raises(ValueError, match="2 targets are listed already"):
        targets.put("sampler-2", "127.0.0.1:9000")
    targets.put("sampler-1", "127.0.0.1:9001")
    assert MOST == 4096


def test_the_next_start_clears_the_targets_of_a_killed_one(tmp_path: Path) -> None:
    killed = Targets(tmp_path, "mine")
    killed.put("hub", "127.0.0.1:9000")
    killed.ray(["127.0.0.1:8080"])
    assert listed(tmp_path, "ray.json")[0]["targets"] == ["127.0.0.1:8080"]
    Targets(tmp_path, "mine")
    assert listed(tmp_path) == listed(tmp_path, "ray.json") == []


def test_a_driver_clears_the_targets_of_its_hub_only(tmp_path: Path) -> None:
    with swept(tmp_path):
        Targets(tmp_path, "mine").put("hub", "127.0.0.1:9000")
    assert listed(tmp_path) == []
    with layout.lock(tmp_path), swept(tmp_path):
        Targets(tmp_path, "mine").put("hub", "127.0.0.1:9000")
    assert workers(tmp_path) == ["hub"]


def test_a_run_without_a_folder_has_no_targets_to_clear(tmp_path: Path) -> None:
    with swept(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
