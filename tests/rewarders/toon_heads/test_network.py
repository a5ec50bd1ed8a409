"""The toon heads' network: combined filters equal the views one by one, and the patch search finds moved patches."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from rewarders.toon_heads.network import HeadNetwork, View


@pytest.mark.parametrize(
    "views",
    [("frame",), ("frame", "first"), ("frame", "previous", "first"), ("frame", "previous", "bend"), ("bend", "first")],
)
def test_filters_combined_over_time_are_the_views(views: tuple[View, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    video, first = torch.rand(2, 9, 3, 48, 64, generator=generator), torch.rand(2, 3, 48, 64, generator=generator)
    network = HeadNetwork(views, caption=False)
    before = video[:, [0, 0, 1, 2, 3, 4, 5, 6, 7]]
    earlier = video[:, [0, 0, 0, 1, 2, 3, 4, 5, 6]]
    taken = {
        "frame": video - 0.5,
        "first": video - first[:, None],
        "previous": video - before,
        "bend": video - 2 * before + earlier,
    }
    stack = torch.cat([taken[name] for name in views], 2).flatten(0, 1)
    filters = torch.cat(network.look.weight.chunk(len(views)), 1)
    expected = functional.conv2d(stack, filters, stride=4, padding=1).unflatten(0, (2, 9))
    torch.testing.assert_close(network._convolve_views(video, first), expected, atol=1e-5, rtol=1e-4)
    assert expected.shape == (2, 9, 24, 12, 16)


def test_badness_is_by_frame_and_between_0_and_1() -> None:
    network = HeadNetwork(("frame", "first"), caption=True).eval()
    bad = network(torch.full((3, 9, 3, 48, 64), 0.3), torch.zeros(3, 3, 48, 64), torch.zeros(3, 7))
    assert bad.shape == (3, 8)
    assert 0 < bad.min().item() <= bad.max().item() < 1


def test_what_is_in_the_first_frame_is_found_wherever_it_went() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = HeadNetwork(("frame",), caption=False, search=True).eval()
    first = torch.rand(1, 3, 48, 64, generator=generator)
    video = torch.stack([first.roll(4 * t, 3) for t in range(9)], 1)  # 4 pixels are one patch
    video[:, 8, :, 20:28, 32:40] = torch.rand(3, 8, 8, generator=generator)  # and something new in the last frame
    missing = network._patch_distance(video, first)
    assert missing.shape == (1, 9, 1, 12, 16)
    inner = missing[0, :, 0, 2:-2, 10:-2]  # right of what rolled in, away from the frame's edge
    assert inner[:8].abs().max().item() < 1e-4
    new = missing[0, 8, 0, 5:7, 8:10]
    assert new.min().item() > 1e-3
    assert missing.max().item() <= 2


def test_the_search_learns() -> None:
    """Gradients reach the patches' features, though the nearest patch is picked without one."""
    network = HeadNetwork(("frame",), caption=False, search=True)
    network(torch.rand(2, 9, 3, 48, 64), torch.rand(2, 3, 48, 64), torch.zeros(2, 7)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.patches[0].parameters())
