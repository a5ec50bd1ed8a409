"""RAFT gives the flows of the public code for the same weights, and its parts are those of the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rewarders.judges.dynamic_degree import ITERATIONS, load_raft
from rewarders.optical_flow.raft import Raft, correlations, look_up, positions, upsampled
from tests.support.rafts import arbitrary, raft_of_flow

pytestmark = pytest.mark.usefixtures("one_thread")


def test_flows_are_those_of_the_public_code() -> None:
    """princeton-vl/RAFT, as VBench ships it, with the same weights, frames and four iterations: x, y at five pixels."""
    model = Raft().eval()
    model.load_state_dict(arbitrary(model.state_dict()))
    rng = np.random.default_rng(7)
    frames = [torch.tensor(rng.integers(0, 256, (1, 3, 128, 136)).astype(np.float32)) / 127.5 - 1 for _ in range(2)]
    with torch.inference_mode():
        flow = model(*frames, 4)
    found = [flow[0, :, y, x].tolist() for y, x in ((0, 0), (40, 70), (64, 68), (100, 20), (127, 135))]
    wanted = [(-2.5723, 1.5833), (-9.4053, 20.118), (-10.0575, 22.1194), (-5.6105, 18.3714), (1.0998, -1.8763)]
    assert np.allclose(found, wanted, atol=2e-3)
    assert flow.abs().mean() == pytest.approx(7.2261, abs=1e-3)


def test_a_flow_that_the_weights_fix(tmp_path: Path) -> None:
    model = load_raft(raft_of_flow(tmp_path, 6.0, -2.5))
    with torch.inference_mode():
        flow = model(*torch.rand(2, 1, 3, 128, 144), ITERATIONS)
    inside = flow[0, :, 8:-8, 8:-8]
    assert torch.allclose(inside, torch.tensor([6.0, -2.5])[:, None, None], atol=1e-4)


def test_correlations_by_hand() -> None:
    first, second = torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 16)
    first[0, :, 3, 5] = 1.0
    second[0, :, 6, 9] = torch.arange(4.0)
    pyramid = correlations(first, second)
    assert [tuple(one.shape[-2:]) for one in pyramid] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    place = 3 * 16 + 5
    assert pyramid[0][place, 0, 6, 9] == (0 + 1 + 2 + 3) / 2  # / sqrt(4)
    assert pyramid[1][place, 0, 3, 4] == 3 / 4
    assert pyramid[0].count_nonzero() == 1


def test_looking_up_around_a_target() -> None:
    first, second = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    first[0, 0, 3, 5], second[0, 0, 6, 9] = 1.0, 1.0
    targets = positions(first).clone()
    targets[0, :, 3, 5] = torch.tensor([8.0, 6.0])  # x, y: one to the left of what it matches
    found = look_up(correlations(first, second), targets)[0, :81, 3, 5].view(9, 9)
    assert found.count_nonzero() == 1
    assert found[4 + 1, 4] == pytest.approx(1)  # x one further, y as it is


def test_upsampling_mixes_neighbours() -> None:
    flow = torch.zeros(1, 2, 3, 4)
    flow[0, 0] = torch.arange(12.0).view(3, 4)
    weights = torch.full((1, 9, 64, 3, 4), -50.0)
    weights[:, 5] = 0.0  # of the 3 x 3 positions the one to the right
    found = upsampled(flow, weights.view(1, 576, 3, 4))
    assert found.shape == (1, 2, 24, 32)
    assert torch.allclose(found[0, 0, 8:16, 8:16], torch.tensor(8 * 6.0))  # of position (1, 1): that of (1, 2)
    assert torch.allclose(found[0, 0, :, 24:], torch.tensor(0.0))  # nothing to the right
