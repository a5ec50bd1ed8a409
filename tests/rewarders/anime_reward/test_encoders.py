"""The frozen encoders are what their files say: nothing of an embedding is drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from common.errors import ConfigError
from common.messages import Prompt
from rewarders.anime_reward import VideoSmoothness
from rewarders.anime_reward.encoders import Text, Vision
from rewarders.head_files import load_heads, save_heads
from tests.support.tiny_encoders import tiny_bert, tiny_blip, tiny_clip, tiny_siglip, tiny_vit
from tests.support.torn import without

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
PROMPT = Prompt(0, "p", "a robot walks", None)
POOLER = ("pooler.dense.weight", "pooler.dense.bias")


def test_without_a_pooler_the_tokens_mean_counts(tmp_path: Path) -> None:
    """Published ViT classifiers have no pooler: `transformers` draws one, another in every process."""
    folder = Path(tiny_vit(tmp_path / "vit"))
    vision = Vision(folder, "cpu")
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(folder)(vision.pixels(FRAMES)).last_hidden_state
    assert torch.equal(vision(FRAMES), tokens.mean(1))


def test_with_a_pooler_its_output_counts(tmp_path: Path) -> None:
    folder = Path(tiny_vit(tmp_path / "vit", pooler=True))
    vision = Vision(folder, "cpu")
    with torch.no_grad():
        pooled = AutoModel.from_pretrained(folder)(vision.pixels(FRAMES)).pooler_output
    assert torch.equal(vision(FRAMES), pooled)


def test_a_loaded_head_sees_what_the_created_one_saw(tmp_path: Path) -> None:
    torch.manual_seed(1)
    reward = VideoSmoothness.create({"vision": tiny_vit(tmp_path / "vit")})
    save_heads([reward], tmp_path / "heads")
    torch.manual_seed(2)
    (back,) = load_heads(str(tmp_path / "heads"))
    assert back.score([FRAMES], [PROMPT]) == reward.score([FRAMES], [PROMPT])
    assert torch.equal(back.features([FRAMES], [PROMPT]), reward.features([FRAMES], [PROMPT]))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (lambda folder: tiny_vit(folder, pooler=True), POOLER[:1]),  # half a pooler is a damaged file
        (lambda folder: tiny_vit(folder, pooler=True), ("layernorm.weight",)),
        (tiny_siglip, ("head.probe",)),  # SigLIP's pooler
        (tiny_clip, ("vision_model.post_layernorm.bias",)),  # what CLIP's pooled output is made of
        (tiny_blip, ("vision_model.post_layernorm.bias",)),
    ],
)
def test_a_vision_tower_with_missing_weights_is_refused(
    make: Callable[[Path], str], missing: tuple[str, ...], tmp_path: Path
) -> None:
    folder = make(tmp_path / "model")
    without(folder, *missing)
    with pytest.raises(ConfigError, match=rf"^vision model {folder}: .*weights missing: {missing[0]}$"):
        VideoSmoothness.create({"vision": folder})


def test_missing_weights_are_refused_on_loading_too(tmp_path: Path) -> None:
    reward = VideoSmoothness.create({"vision": tiny_vit(tmp_path / "vit", pooler=True)})
    save_heads([reward], tmp_path / "heads")
    without(tmp_path / "vit", POOLER[1])
    with pytest.raises(ConfigError, match=rf"smoothness\.json: vision model .*weights missing: {POOLER[1]}$"):
        load_heads(str(tmp_path / "heads"))


def test_weights_that_no_embedding_uses_may_be_missing(tmp_path: Path) -> None:
    """CLIP's text tower as `vision`; BERT's pooler as `text`, whose embedding is the first token's."""
    clip, bert = Path(tiny_clip(tmp_path / "clip")), Path(tiny_bert(tmp_path / "bert"))
    images, words = Vision(clip, "cpu")(FRAMES), Text(bert, "cpu")("a robot")
    without(clip, "text_model.final_layer_norm.weight", "logit_scale")
    without(bert, *POOLER)
    assert torch.equal(Vision(clip, "cpu")(FRAMES), images)
    assert torch.equal(Text(bert, "cpu")("a robot"), words)
    without(bert, "encoder.layer.0.output.dense.bias")
    with pytest.raises(ConfigError, match=r"^text model .*weights missing: encoder\.layer\.0\.output\.dense\.bias$"):
        Text(bert, "cpu")


def test_a_text_tower_alone_gives_what_it_gives_in_its_model(tmp_path: Path) -> None:
    clip = Path(tiny_clip(tmp_path / "clip"))
    text = Text(clip, "cpu")
    text.save(tmp_path / "tower")
    alone = Text(tmp_path / "tower", "cpu")
    assert type(alone.tower).__name__ == "CLIPTextModel"
    assert torch.equal(alone("a robot walks"), text("a robot walks"))
