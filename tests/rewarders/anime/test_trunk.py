"""The trunk's first layer: combined filters give what the views, taken one by one, would give."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from rewarders.anime.trunk import Trunk, View


@pytest.mark.parametrize(
    "views",
    [("frame",), ("frame", "first"), ("frame", "previous", "first"), ("frame", "previous", "bend"), ("bend", "first")],
)
def test_filters_combined_over_time_are_the_views(views: tuple[View, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    video, first = torch.rand(2, 9, 3, 48, 64, generator=generator), torch.rand(2, 3, 48, 64, generator=generator)
    trunk = Trunk(views, caption=False)
    before = video[:, [0, 0, 1, 2, 3, 4, 5, 6, 7]]
    earlier = video[:, [0, 0, 0, 1, 2, 3, 4, 5, 6]]
    taken = {
        "frame": video - 0.5,
        "first": video - first[:, None],
        "previous": video - before,
        "bend": video - 2 * before + earlier,
    }
    stack = torch.cat([taken[name] for name in views], 2).flatten(0, 1)
    filters = torch.cat(trunk.look.weight.chunk(len(views)), 1)
    expected = functional.conv2d(stack, filters, stride=4, padding=1).unflatten(0, (2, 9))
    torch.testing.assert_close(trunk._look(video, first), expected, atol=1e-5, rtol=1e-4)
    assert expected.shape == (2, 9, 24, 12, 16)


def test_badness_is_by_frame_and_between_0_and_1() -> None:
    trunk = Trunk(("frame", "first"), caption=True).eval()
    bad = trunk(torch.full((3, 9, 3, 48, 64), 0.3), torch.zeros(3, 3, 48, 64), torch.zeros(3, 7))
    assert bad.shape == (3, 8)
    assert 0 < bad.min().item() <= bad.max().item() < 1
