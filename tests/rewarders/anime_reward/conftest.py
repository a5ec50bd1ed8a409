"""The tiny models that the full-size classes run over here, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_encoders import (
    tiny_bert,
    tiny_blip,
    tiny_clip,
    tiny_detector,
    tiny_siglip,
    tiny_tracker,
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Class -> role -> folder."""
    root: Path = tmp_path_factory.mktemp("models")
    siglip, blip = tiny_siglip(root / "siglip"), tiny_blip(root / "blip")
    bert, clip = tiny_bert(root / "bert"), tiny_clip(root / "clip")
    detector = tiny_detector(root / "detector")
    tracker = tiny_tracker(root / "tracker", sees_all=True)
    return {
        "VideoSmoothness": {"vision": siglip},
        "PromptedMotion": {"clip": clip},
        "KeyFrameAppeal": {"vision": siglip},
        "VideoTextConsistency": {"vision": blip, "text": bert},
        "VideoImageConsistency": {"vision": blip},
        "TrackedCharacter": {"detector": detector, "tracker": tracker, "vision": blip},
    }
