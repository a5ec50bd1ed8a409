"""CogVideoX 1.5's front padding in training, against a loss written out with diffusers alone.

The clip has 3 latent frames, an odd number; the model takes two of them in one token, so one is put in front.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXImageToVideoPipeline

from learner.batch import Batch, collate
from learner.learner import Learner
from tests.support.learner.fakes import LATENT, make_group, tiny_config, tiny_model
from tests.support.tiny import CHANNELS, FAMILIES, HEIGHT, WIDTH

FAMILY = FAMILIES["1.5-5B-I2V"]

pytestmark = pytest.mark.usefixtures("one_thread")


class Calls:
    """What the learner gives to its transformer."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.given: list[dict[str, Any]] = []
        transformer.register_forward_pre_hook(
            lambda module, args, kwargs: self.given.append(dict(kwargs)), with_kwargs=True
        )


def batch_of(count: int) -> Batch:
    return collate([make_group(ordinal) for ordinal in range(count)])


@pytest.fixture
def learner(tmp_path: Path) -> Any:
    one = Learner(tiny_model(tmp_path / "model", perturb=0.2, **FAMILY), tiny_config(), tmp_path / "run")
    yield one
    one.close()


def noise_in(call: dict[str, Any], x0: torch.Tensor) -> torch.Tensor:
    """The noise of all frames of a call with the clean clips `x0` [B, F, C, h, w], padding first."""
    alphas = CogVideoXDPMScheduler(**SCHEDULE).alphas_cumprod.float()[call["timestep"]].view(-1, 1, 1, 1, 1)
    padded = torch.cat([x0[:, :1], x0], 1)
    return (call["hidden_states"][:, :, :CHANNELS] - alphas.sqrt() * padded) / (1 - alphas).sqrt()


SCHEDULE: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "snr_shift_scale": 1.0,
}


def test_the_padding_is_the_clean_first_frame_with_noise_of_its_own(learner: Learner) -> None:
    batch, calls = batch_of(2), Calls(learner.engine.module)
    learner.errors(batch, batch.ordinals, step=1)
    (call,) = calls.given
    assert call["hidden_states"].shape == (4, 1 + LATENT[0], 2 * CHANNELS, *LATENT[2:])
    noise = noise_in(call, torch.cat(list(batch.latents.unbind(1))))
    chosen, rejected = noise.chunk(2)
    torch.testing.assert_close(chosen, rejected, atol=1e-3, rtol=0)  # one draw for both clips of a pair
    frames = chosen.transpose(0, 1).flatten(1)  # [padding and frames, values]
    correlations = torch.corrcoef(frames)
    assert frames.std(1).tolist() == pytest.approx([1.0] * 4, abs=0.1)
    assert correlations.fill_diagonal_(0).abs().max() < 0.1  # 1536 values: a standard deviation of 0.026


def test_the_errors_are_those_of_a_loss_in_diffusers_terms(learner: Learner, tmp_path: Path) -> None:
    """The padding is part of what the model is given, not of the error."""
    batch, calls = batch_of(2), Calls(learner.engine.module)
    policy, reference = learner.errors(batch, batch.ordinals, step=1)
    pipe: Any = CogVideoXImageToVideoPipeline.from_pretrained(tmp_path / "model")
    rotary = pipe._prepare_rotary_positional_embeddings(HEIGHT, WIDTH, 4, torch.device("cpu"))
    assert batch.image_latent is not None
    assert reference is not None
    noise = noise_in(calls.given[0], torch.cat(list(batch.latents.unbind(1))))
    for place in range(2):
        for row in range(2):
            x0, eps = batch.latents[row : row + 1, place], noise[row : row + 1]
            t = calls.given[0]["timestep"][row : row + 1]
            padded = torch.cat([x0[:, :1], x0], 1)
            image = torch.cat([batch.image_latent[row : row + 1], torch.zeros_like(x0)], 1)
            with torch.no_grad():
                v = pipe.transformer(
                    hidden_states=torch.cat([pipe.scheduler.add_noise(padded, eps, t), image], 2),
                    encoder_hidden_states=batch.prompt_embeds[row : row + 1],
                    timestep=t,
                    ofs=torch.tensor([2.0]),
                    image_rotary_emb=rotary,
                ).sample
            squares = (v - pipe.scheduler.get_velocity(padded, eps, t)).square()[0]
            expected = squares[1:].mean().item()
            assert abs(squares.mean().item() / expected - 1) > 1e-3  # the padding's own error would show
            for made in (policy, reference):
                assert made[row, place].item() == pytest.approx(expected, rel=1e-4)
