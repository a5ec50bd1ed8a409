"""The guidance scale at each step, by hand."""

from __future__ import annotations

import pytest

from common.config import SamplerConfig
from common.models.guidance import dynamic_scale, scale_at


def test_the_dynamic_scale_by_hand() -> None:
    """1 + 6 (1 - cos(pi x^5)) / 2 with x = (50 - t) / 50."""
    assert dynamic_scale(6.0, 50, 50) == 1.0  # x = 0
    assert dynamic_scale(6.0, 0, 50) == 7.0  # x = 1
    assert dynamic_scale(6.0, 25, 50) == pytest.approx(1.0144458)  # x = 1/2: cos(pi / 32) = 0.9951847
    assert dynamic_scale(6.0, 99, 50) == pytest.approx(6.8643718)  # x = -0.98: cos(0.9039208 pi) = -0.9547906


def test_guidance_applies_inside_of_its_interval() -> None:
    """t / T = 0.2 and 0.8 are inside, 0.199 and 0.801 are not."""
    config = SamplerConfig(guidance=6.0, guidance_interval=(0.2, 0.8))
    assert [scale_at(config, t, 1000) for t in (199, 200, 800, 801)] == [1.0, 6.0, 6.0, 1.0]


def test_without_guidance_the_scale_is_one_at_every_step() -> None:
    assert {scale_at(SamplerConfig(guidance=1.0), t, 1000) for t in range(0, 1000, 100)} == {1.0}


def test_the_scale_varies_with_dynamic_guidance() -> None:
    config = SamplerConfig(guidance=6.0, dynamic_guidance=True, steps=50)
    assert scale_at(config, 25, 1000) == pytest.approx(1.0144458)
