"""The base model as a source of training clips for the heads: what it loses, and what it draws anew.

`reconstruct` is the VAE alone. `redraw` noises a clip's latents up to a random step of the sampling schedule and
denoises from there (Meng et al. 2022, "SDEdit", algorithm 1): a late start keeps the clip and loses its details, a
start at pure noise is a sample of the policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.models.cogvideox import (
    ModelFolder,
    decode_latents,
    encode_image,
    encode_text,
    encode_video,
    predict_v,
    to_pixels,
    to_unit,
)
from common.models.noise_schedule import NoiseSchedule

STEPS = (2, 4, 5, 10)  # of DDIM, from noise to clip: fewer smear less, and heads must tell
AFRESH = 0.5  # share that starts at pure noise, as a policy does
LATEST = 0.8  # share of the steps before which the others start


class SDEditAugmenter:
    """Reconstructs and redraws uint8 clips ``[K, F, H, W, 3]`` with one pipeline's parts, in float32."""

    def __init__(self, model: ModelFolder, device: str = "cpu") -> None:
        self._model = model
        self._vae = model.load_vae("float32", device)
        self._text = model.load_text_encoder("float32", device)
        self._transformer = model.load_transformer("float32", device)
        self._tokenizer = model.load_tokenizer()
        self._scheduler = model.make_scheduler("ddim")
        self._noise = NoiseSchedule.from_config(model.scheduler_config)

    @torch.inference_mode()
    def reconstruct(self, clips: np.ndarray) -> np.ndarray:
        """The clips through the VAE."""
        return to_pixels(decode_latents(self._vae, encode_video(self._vae, self._unit(clips)))).cpu().numpy()

    @torch.inference_mode()
    def redraw(self, clips: np.ndarray, captions: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """The clips redrawn in a random number of steps from one of them on, under their captions and first frames."""
        unit = self._unit(clips)
        image = encode_image(self._vae, unit[:, 0])
        embeds = encode_text(self._tokenizer, self._text, captions, self._model.max_text_length)
        x0 = encode_video(self._vae, unit)
        steps = int(rng.choice(STEPS))
        self._scheduler.set_timesteps(steps)
        start = 0 if rng.random() < AFRESH else int(rng.integers(int(LATEST * steps)))
        times = self._scheduler.timesteps[start:]
        eps = torch.from_numpy(rng.standard_normal(x0.shape, np.float32)).to(x0.device)
        latents = self._noise.add_noise(x0, eps, times[:1].expand(len(clips)))
        for t in times:
            v = predict_v(self._transformer, latents, image, t.expand(len(clips)), embeds)
            latents = self._scheduler.step(v, t, latents, return_dict=False)[0]  # type: ignore[arg-type]
        return to_pixels(decode_latents(self._vae, latents)).cpu().numpy()

    def _unit(self, clips: np.ndarray) -> torch.Tensor:
        return to_unit(torch.from_numpy(clips)).to(self._vae.device)
