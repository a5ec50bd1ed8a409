"""The base model as a source of training clips for the heads: its reconstruction losses and its own samples.

`reconstruct` is the VAE alone. `regenerate` adds noise to a clip's latents up to a random step of the sampling schedule
and denoises from there (Meng et al. 2022, "SDEdit", algorithm 1): a late start keeps the clip and loses details, a
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

STEPS = (2, 4, 5, 10)  # numbers of DDIM steps: they distort differently, which heads must learn to tell
FROM_NOISE = 0.5  # share that starts at pure noise, as a policy does
LATEST_START = 0.8  # the others start before this share of the steps


class SDEditAugmenter:
    """Reconstructs and regenerates uint8 clips ``[K, F, H, W, 3]`` with one pipeline, in float32."""

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
        """Returns the clips after a VAE round trip."""
        return to_pixels(decode_latents(self._vae, encode_video(self._vae, self._unit(clips)))).cpu().numpy()

    @torch.inference_mode()
    def regenerate(self, clips: np.ndarray, captions: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """Regenerates the clips from a random step of a random schedule, with their captions and first frames."""
        unit = self._unit(clips)
        image = encode_image(self._vae, unit[:, 0])
        embeds = encode_text(self._tokenizer, self._text, captions, self._model.max_text_length)
        x0 = encode_video(self._vae, unit)
        steps = int(rng.choice(STEPS))
        self._scheduler.set_timesteps(steps)
        start = 0 if rng.random() < FROM_NOISE else int(rng.integers(int(LATEST_START * steps)))
        times = self._scheduler.timesteps[start:]
        eps = torch.from_numpy(rng.standard_normal(x0.shape, np.float32)).to(x0.device)
        latents = self._noise.add_noise(x0, eps, times[:1].expand(len(clips)))
        for t in times:
            v = predict_v(self._transformer, latents, image, t.expand(len(clips)), embeds)
            latents = self._scheduler.step(v, t, latents, return_dict=False)[0]  # type: ignore[arg-type]
        return to_pixels(decode_latents(self._vae, latents)).cpu().numpy()

    def _unit(self, clips: np.ndarray) -> torch.Tensor:
        return to_unit(torch.from_numpy(clips)).to(self._vae.device)
