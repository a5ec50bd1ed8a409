"""Memory of a rewarder: the heads' files, and the encoders they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import load_config
from common.errors import ConfigError
from common.toon import WEIGHTS
from deploy.planning.memory import _heads_bytes
from rewarders.anime_reward import KeyFrameAppeal
from rewarders.head_files import save_heads, save_tuned
from tests.support.tiny_encoders import tiny_siglip


def size(path: Path) -> int:
    return path.stat().st_size


def reward_bytes(path: str) -> int:
    return _heads_bytes(load_config(None, {"reward.path": path}).reward)


def test_encoders_count_frozen_or_fine_tuned(tmp_path: Path) -> None:
    siglip = Path(tiny_siglip(tmp_path / "siglip"))
    reward = KeyFrameAppeal.create({"vision": str(siglip)})
    save_heads([reward], tmp_path / "heads")
    head = size(tmp_path / "heads/appeal.safetensors")
    assert reward_bytes(str(tmp_path / "heads")) == head + size(siglip / "model.safetensors")
    save_tuned(reward, tmp_path / "tuned")
    (siglip / "model.safetensors").unlink()
    assert reward_bytes(str(tmp_path / "heads")) == head
    assert reward_bytes(str(tmp_path / "tuned")) == head + size(tmp_path / "tuned/appeal-vision/model.safetensors")
    (tmp_path / "tuned/appeal.json").write_text("[")
    with pytest.raises(ConfigError, match=r"appeal\.json: not the description of a reward head"):
        reward_bytes(str(tmp_path / "tuned"))


def test_toon_heads_have_no_encoders() -> None:
    heads = WEIGHTS / "heads"
    assert reward_bytes(str(heads)) == reward_bytes("/no/where") == sum(map(size, heads.glob("*.safetensors")))
