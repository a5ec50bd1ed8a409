"""Sparse-causal attention against plain attention with a mask, in isolation and in whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0

from actors.sampler import Sampler
from common.config import load_config
from common.images import encode_png
from common.messages import Prompt
from common.models.attention import set_attention, sparse_causal
from common.models.cogvideox import ModelFolder, open_model, pad_front, predict_v
from common.models.shapes import front_padding
from common.weights.tensors import from_array
from learner.batch import collate
from learner.learner import Learner
from tests.support.learner.fakes import LATENT, MemoryExchange, make_group, policy_state, tiny_config, tiny_model
from tests.support.tiny import FAMILIES, HEIGHT, TEXT_LENGTH, TEXT_WIDTH, WIDTH, tiny_pipeline

FLAGS = {"model.attention": "sparse_causal"}

pytestmark = pytest.mark.usefixtures("one_thread")


def mask(text: int, frames: int, frame: int) -> torch.Tensor:
    """[S, S]: whether query row sees key column, token by token from the definition."""
    size = text + frames * frame
    seen = torch.zeros(size, size, dtype=torch.bool)
    for query in range(size):
        for key in range(size):
            i, j = (query - text) // frame, (key - text) // frame
            seen[query, key] = query < text or key < text or j in (0, i - 1)
    return seen


def test_what_each_token_sees() -> None:
    """A caption of one token and four frames of one token."""
    assert mask(1, 4, 1).int().tolist() == [
        [1, 1, 1, 1, 1],  # caption
        [1, 1, 0, 0, 0],  # frame 0: itself
        [1, 1, 0, 0, 0],  # frame 1: frame 0
        [1, 1, 1, 0, 0],  # frame 2: 0 and 1
        [1, 1, 0, 1, 0],  # frame 3: 0 and 2
    ]


def test_by_hand() -> None:
    """Equal keys: every query gets the mean of the values that it sees, of caption 10 and frames 1, 2, 4, 8."""
    value = torch.tensor([10.0, 1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 5, 1)
    mixed = sparse_causal(torch.ones_like(value), torch.zeros_like(value), value, text=1, frame=1)
    assert mixed.flatten().tolist() == pytest.approx([5.0, 5.5, 5.5, 13 / 3, 5.0])


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_as_masked_attention(frames: int) -> None:
    text, frame = 3, 4
    draw = torch.Generator().manual_seed(frames)
    query, key, value = torch.randn(3, 2, 3, text + frames * frame, 8, generator=draw).unbind(0)
    scores = query @ key.transpose(2, 3) / 8**0.5
    expected = scores.masked_fill(~mask(text, frames, frame), -torch.inf).softmax(3) @ value
    torch.testing.assert_close(sparse_causal(query, key, value, text, frame), expected)


def test_a_part_of_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="5 video tokens: no multiple of the 4 tokens of a frame"):
        sparse_causal(*torch.zeros(3, 1, 1, 7, 8).unbind(0), text=2, frame=4)


class Masked(CogVideoXAttnProcessor2_0):
    """diffusers' own processor with a mask."""

    def __init__(self, seen: torch.Tensor) -> None:
        super().__init__()
        self.seen = seen

    def __call__(
        self,
        attn: Any,
        hidden_states: Any,
        encoder_hidden_states: Any,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        count = len(hidden_states) * attn.heads
        bias = torch.zeros(self.seen.shape).masked_fill(~self.seen, -torch.inf).expand(count, -1, -1)
        return super().__call__(attn, hidden_states, encoder_hidden_states, bias, image_rotary_emb)


def predicted(model: ModelFolder, how: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """v of five latent frames with gradients, in the way `how`."""
    shape = (5, *LATENT[1:])
    transformer: Any = model.load_transformer("float32", "cpu")
    padding = front_padding(transformer.config, 5)
    if how == "masked":
        steps = (5 + padding) // (transformer.config["patch_size_t"] or 1)
        transformer.set_attn_processor(Masked(mask(TEXT_LENGTH, steps, LATENT[2] * LATENT[3] // 4)))
    else:
        set_attention(transformer, how, shape)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(4)
    latents = pad_front(torch.randn(2, *shape, generator=draw), padding)
    image = torch.randn(2, 1, *shape[1:], generator=draw) if model.image_conditioned else None
    text = torch.randn(2, TEXT_LENGTH, TEXT_WIDTH, generator=draw)
    v = predict_v(transformer, latents, image, torch.tensor([100, 900]), text)
    v.square().mean().backward()
    return v.detach(), [parameter.grad for parameter in transformer.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_predicts_as_with_a_mask(tmp_path: Path, family: str) -> None:
    """Of every family, with rotary and with sincos positions, forwards and backwards."""
    own = {name: value for name, value in FAMILIES[family].items() if name != "use_learned_positional_embeddings"}
    model = open_model(tiny_pipeline(tmp_path, perturb=0.2, sample_frames=17, **own))
    (ours, gradients), (theirs, expected), (full, _) = (
        predicted(model, how) for how in ("sparse_causal", "masked", "full")
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert len(gradients) == len(expected) > 20
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    assert (ours - full).abs().max() > 1e-2


def first_step(folder: Path, attention: str, settings: dict[str, Any]) -> float:
    """The gradient's norm in the first step of a learner; policy and reference start equal."""
    config = tiny_config(**settings)
    config = config.model_copy(update={"model": config.model.model_copy(update={"attention": attention})})
    learner, exchange = Learner(tiny_model(folder / "model"), config, folder / "run"), MemoryExchange()
    stats = learner.work(exchange)  # type: ignore[arg-type]
    learner.close()
    assert stats is not None
    assert stats.metrics["dpo_logits"] == 0.0
    return stats.grad_norm


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_a_learner_trains_with_it(tmp_path: Path, train: str, recompute: str) -> None:
    """In full and with adapters; checkpointing does not change the step."""
    plain = first_step(tmp_path, "sparse_causal", {"train": train})
    saving = first_step(tmp_path, "sparse_causal", {"train": train, "gradient_checkpointing": recompute})
    assert saving == pytest.approx(plain, rel=1e-6)
    assert first_step(tmp_path, "full", {"train": train}) != pytest.approx(plain, rel=1e-3)


def test_sampler_and_learner_use_the_same_attention(tmp_path: Path) -> None:
    """The v of the learner's model and that of the sampler's, also after a full version replaced an adapter."""
    model = tiny_model(tmp_path / "model", perturb=0.2)
    sampler = Sampler(model, load_config(flags=FLAGS))
    learner = Learner(model, load_config(flags=FLAGS), tmp_path / "run")
    pairs = collate([make_group(0)])
    call = (pairs.latents[:, 0], pairs.image_latent, torch.tensor([500]), pairs.prompt_embeds)
    with torch.no_grad():
        expected = predict_v(learner.engine.module, *call)
        assert torch.equal(predict_v(sampler._transformer, *call), expected)
        plain = predict_v(model.load_transformer("float32", "cpu"), *call)
        assert (plain - expected).abs().max() > 1e-2
        assert torch.equal(predict_v(sampler._open_transformer(), *call), expected)
    state = policy_state(learner)
    assert state.keys() == model.load_transformer("float32", "cpu").state_dict().keys()
    learner.close()


def test_clips_differ_from_those_of_full_attention(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", perturb=0.2, num_layers=2)
    pixels = torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    prompt = Prompt(0, "p", "a robot walks", encode_png(pixels.numpy()))
    made = []
    for flags in ({}, FLAGS, FLAGS | {"sampler.cache_threshold": "1e-9"}):
        sampler = Sampler(model, load_config(flags={"sampler.steps": "4", **flags}))
        (candidate,) = sampler.sample(prompt, sampler.encode(prompt), [3], [0])
        made.append(from_array(candidate.latents))
    assert (made[0] - made[1]).abs().max() > 1e-2
    assert torch.equal(made[1], made[2])
