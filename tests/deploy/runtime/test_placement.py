"""Whether a cluster can hold a run: GPUs, fractions of them, pinned nodes, ranks that share a node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config import load_config
from deploy import launch
from deploy.runtime.placement import asks, place, shortfall

CONFIGS = Path(launch.__file__).parent / "configs"
EIGHT = [{"GPU": 8.0, "CPU": 64.0, "A800": 1.0}] * 8


def config(**flags: Any) -> Any:
    base = {"mode": "cluster", "cluster.learner.gpus": 1, "cluster.sampler.gpus": 1, "cluster.rewarder.gpus": 1}
    return load_config(None, base | {name.replace("__", "."): value for name, value in flags.items()})


def test_sixty_four_gpus_hold_eight_ranks_fifty_five_samplers_and_a_rewarder() -> None:
    made = config(cluster__learner__count=8, cluster__sampler__count=55, cluster__rewarder__count=1)
    assert place(asks(made), EIGHT) == {"learner": 8, "rewarder": 1, "sampler": 55}
    assert shortfall(made, EIGHT) == ""


def test_a_rewarder_comes_before_the_samplers() -> None:
    """Four GPUs; one learner, three samplers and a rewarder of 0.1 GPU: a sampler is left over, not the rewarder."""
    made = config(cluster__sampler__count=3, cluster__rewarder__gpus=0.1)
    nodes = [{"GPU": 4.0}]
    assert place(asks(made), nodes) == {"learner": 1, "rewarder": 1, "sampler": 2}
    assert shortfall(made, nodes) == (
        "the run asks for 4.1 GPUs (1 learner x 1 GPU, 1 rewarder x 0.1 GPU, 3 samplers x 1 GPU), Ray has 4 on 1 "
        "nodes: of 3 samplers 2 fit; use --cluster.sampler.count 2, fewer GPUs per process, or cluster.grows if the "
        "cluster does"
    )


def test_fractions_share_a_gpu_and_whole_numbers_do_not() -> None:
    halves = config(cluster__sampler__count=4, cluster__sampler__gpus=0.5, cluster__rewarder__gpus=0)
    assert shortfall(halves, [{"GPU": 3.0}]) == ""
    wide = config(cluster__sampler__gpus=2, cluster__sampler__count=2, cluster__rewarder__gpus=0.5)
    assert place(asks(wide), [{"GPU": 3.0}, {"GPU": 3.0}])["sampler"] == 2
    assert place(asks(wide), [{"GPU": 5.0}])["sampler"] == 1  # the fifth GPU is half taken


def test_ranks_share_a_node() -> None:
    made = config(cluster__learner__count=6, cluster__sampler__count=1, cluster__rewarder__gpus=0)
    assert shortfall(made, [{"GPU": 4.0}, {"GPU": 8.0}]) == ""
    assert "of 6 learners 4 fit on one node; use --cluster.learner.count 4" in shortfall(made, [{"GPU": 4.0}] * 4)


def test_pinned_processes_need_their_nodes() -> None:
    made = config(cluster__sampler__node="H100", cluster__sampler__count=2)
    assert "of 2 samplers 0 fit; fewer GPUs per process" in shortfall(made, [{"GPU": 8.0, "A800": 1.0}])
    assert shortfall(made, [{"GPU": 2.0}, {"GPU": 2.0, "H100": 1.0}]) == ""


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_configurations_fit_on_eight_nodes(file: Path) -> None:
    made = load_config(file, {"model.path": "toon"})
    if made.mode == "cluster":
        nodes = [{"GPU": 8.0, made.cluster.sampler.node: 1.0, made.cluster.learner.node: 1.0}] * 8
        assert shortfall(made, nodes) == ""
