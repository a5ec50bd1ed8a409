"""The sampler: generates the N candidates of a prompt under one policy version, with a CogVideoX model.

```
encode (T5, VAE: once per prompt) ──> denoise micro-batches ──> VAE decode ──> mp4
```

A candidate is a function of (weights, seed), bit for bit. To ensure that, micro-batches are fixed slices of the group
and always run complete: if another worker finishes a group after a crash, every candidate is in the same row of a batch
of the same size as before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from actors.acceleration import Module, apply_acceleration, on_device
from actors.denoise import Condition, denoise
from actors.loop import NonFiniteLatentsError, SamplingLoop
from common.config import RunConfig
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.images import first_frame
from common.messages import Candidate, Conditioning, Prompt, SerializedTensor, WeightVersion, candidate_id
from common.models.attention import set_attention
from common.models.cogvideox import (
    ModelFolder,
    decode_latents,
    encode_image,
    encode_text,
    encode_video,
    to_pixels,
    to_unit,
)
from common.models.fingerprint import check_same_model
from common.models.lora import adapter_state, inject_lora, load_adapter_state
from common.weights.store import check_fits
from common.weights.tensors import from_array, policy_digest, to_array

ADAPTER = "policy"  # name of the learner's adapter
CACHED_PROMPTS = 256  # LRU cache of encoded prompts: evaluation uses the same ones under several versions


class Sampler(SamplingLoop):
    """A sampler with a CogVideoX model."""

    def __init__(self, model: ModelFolder, config: RunConfig, worker: str = "sampler-0") -> None:
        super().__init__(worker)
        self._model, self._config = model, config
        size = config.model
        self._shape = model.latent_shape(size.frames, size.height, size.width)
        self._transformer = self._open_transformer()
        idle = "cpu" if config.sampler.offload else size.device
        self._vae = model.load_vae(size.dtype, idle, config.sampler.vae_tiling)
        self._text_encoder = model.load_text_encoder(size.dtype, idle)
        self._tokenizer = model.load_tokenizer()
        self._scheduler = model.make_scheduler(config.sampler.scheduler)
        self._full_version = 0  # version of the full weights, below the adapter
        self._adapted = False
        self._encoded: OrderedDict[str, Conditioning] = OrderedDict()
        self._empty: SerializedTensor | None = None

    # Weights.

    def _open_transformer(self) -> Any:
        size = self._config.model
        transformer = self._model.load_transformer(size.dtype, size.device)
        set_attention(transformer, size.attention, self._shape)
        return apply_acceleration(transformer, self._config.sampler)

    def load(self, version: WeightVersion, state: Mapping[str, torch.Tensor]) -> None:
        """Swap in a published version: all weights (kind `full`), or an adapter for the loaded base (`adapter`).

        Names, shapes and dtypes are checked before anything changes. Digests are not checked here: `WeightStore` has
        verified them.

        Raises:
            ConfigError: the version belongs to another architecture, base model or base version.
        """
        what = f"weight version {version.version}"
        check_same_model(what, version.model, self._model.parts, self._config.model.path)
        if version.kind == "adapter":
            self._load_adapter(version, state)
        else:
            self._load_full(version, state)
        self.version = version.version

    def _load_full(self, version: WeightVersion, state: Mapping[str, torch.Tensor]) -> None:
        if self._adapted:  # adapters rename the layers they wrap, so start from a model without one
            self._transformer = self._open_transformer()
            self._adapted = False
        own = self._transformer.state_dict()
        needed = {name for name, _ in self._transformer.named_parameters()}
        check_fits(version, state, own, needed)
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)
        self._full_version = version.version

    def _load_adapter(self, version: WeightVersion, state: Mapping[str, torch.Tensor]) -> None:
        if version.base != self._full_version:
            raise ConfigError(
                f"weight version {version.version}: an adapter over version {version.base}, "
                f"but {self.worker} holds version {self._full_version}; load version {version.base} first"
            )
        if not self._adapted:
            inject_lora(self._transformer, self._config.learner.lora, self._config.seed, name=ADAPTER)
            self._transformer.eval()
            self._adapted = True
        own = adapter_state(self._transformer, ADAPTER)
        check_fits(version, state, own, set(own))
        load_adapter_state(self._transformer, dict(state), ADAPTER)

    def base_weights(self) -> Mapping[str, torch.Tensor] | None:
        """See `SamplingLoop.base_weights`."""
        return None if self.version or self._adapted else self._transformer.state_dict()

    def policy_digest(self) -> str:
        """Hex digest of the current weights. Equals the digest of their `WeightVersion`, and the learner's."""
        return policy_digest(
            adapter_state(self._transformer, ADAPTER) if self._adapted else self._transformer.state_dict()
        )

    # Conditioning.

    def encode(self, prompt: Prompt) -> Conditioning:
        """Encode caption and first frame, with a cache. The image latent is the mode of the VAE's posterior.

        Raises:
            ConfigError: the image is missing or broken.
        """
        key = blake2b(prompt.text.encode() + b"\0" + (prompt.image or b""), digest_size=16).hexdigest()
        if key not in self._encoded:
            self._encoded[key] = self._encode(prompt)
            if len(self._encoded) > CACHED_PROMPTS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return self._encoded[key]

    @torch.inference_mode()
    def _encode(self, prompt: Prompt) -> Conditioning:
        image = None
        if self._model.image_conditioned:
            size = self._config.model
            pixels = torch.from_numpy(_first_frame(prompt, size.height, size.width))
            unit = to_unit(pixels)[None].to(size.device)
            with self._on_device(self._vae) as vae:
                image = to_array(encode_image(vae, unit)[0])
        return Conditioning(self._embed(prompt.text), image)

    def empty_prompt_embeds(self) -> SerializedTensor:
        """See `SamplingLoop.empty_prompt_embeds`."""
        if self._empty is None:
            self._empty = self._embed("")
        return self._empty

    @torch.inference_mode()
    def _embed(self, text: str) -> SerializedTensor:
        with self._on_device(self._text_encoder) as encoder:
            embeds = encode_text(self._tokenizer, encoder, [text], self._model.max_text_length)
            return to_array(embeds[0])

    def _on_device(self, module: Module) -> AbstractContextManager[Module]:
        return on_device(module, self._config.model.device, self._config.sampler.offload)

    # Candidates.

    def sample(
        self, prompt: Prompt, conditioning: Conditioning, seeds: Sequence[int], indices: Sequence[int]
    ) -> list[Candidate]:
        """Like `parts`, as one list."""
        return [candidate for part in self.parts(prompt, conditioning, seeds, indices) for candidate in part]

    def parts(
        self, prompt: Prompt, conditioning: Conditioning, seeds: Sequence[int], indices: Sequence[int]
    ) -> Iterator[list[Candidate]]:
        """See `SamplingLoop.parts`. Each part comes from one micro-batch."""
        wanted, size = set(indices), self._config.sampler.micro_batch
        if not wanted <= set(range(len(seeds))):
            raise ValueError(f"indices {sorted(wanted)} of a group of {len(seeds)}")
        for first in range(0, len(seeds), size):
            rows = range(first, min(first + size, len(seeds)))
            if wanted.isdisjoint(rows):
                continue
            latents = self.denoise(conditioning, [seeds[row] for row in rows])
            clips = self.decode(latents)
            yield [
                self._candidate(prompt, row, seeds[row], latents[row - first], clips[row - first])
                for row in rows
                if row in wanted
            ]

    def denoise(self, conditioning: Conditioning, seeds: Sequence[int]) -> torch.Tensor:
        """x0 latents [B, F, C, h, w] of one micro-batch. Raises `SamplingError` if they are not finite."""
        latents = denoise(
            self._transformer,
            self._scheduler,
            self._condition(conditioning),
            seeds,
            self._shape,
            self._config.sampler,
            self.fixed_noise(),
        )
        if not torch.isfinite(latents).all():
            raise NonFiniteLatentsError(f"non-finite latents under version {self.version}, seeds {list(seeds)}")
        return latents

    def fixed_noise(self) -> torch.Tensor | None:
        """Initial noise [F + padding, C, h, w] for all candidates; None: noise is drawn from each candidate's seed."""
        return None

    @torch.inference_mode()
    def latents_of(self, pixels: np.ndarray) -> torch.Tensor:
        """x0 latents [F, C, h, w] of a clip, uint8 [frames, H, W, 3]: the posterior's mode."""
        with self._on_device(self._vae) as vae:
            return encode_video(vae, to_unit(torch.from_numpy(pixels))[None].to(self._config.model.device))[0]

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, F, C, h, w] to uint8 pixels [B, frames, H, W, 3] on the CPU."""
        with self._on_device(self._vae) as vae:
            return to_pixels(decode_latents(vae, latents)).cpu()

    def _condition(self, conditioning: Conditioning) -> Condition:
        device, image = self._config.model.device, conditioning.image_latent
        return Condition(
            from_array(conditioning.prompt_embeds, device),
            None if image is None else from_array(image, device),
            from_array(self.empty_prompt_embeds(), device) if self._config.sampler.guidance > 1 else None,
        )

    def _candidate(self, prompt: Prompt, index: int, seed: int, latents: torch.Tensor, clip: torch.Tensor) -> Candidate:
        size = self._config.model
        return Candidate(
            id=candidate_id(prompt.ordinal, index, self.version),
            ordinal=prompt.ordinal,
            index=index,
            seed=seed,
            policy_version=self.version,
            latents=to_array(latents),
            clip=encode_mp4(clip.numpy(), size.fps),
            fps=size.fps,
            height=size.height,
            width=size.width,
        )


def _first_frame(prompt: Prompt, height: int, width: int) -> np.ndarray:
    """The prompt's first frame, uint8 [height, width, 3]. Raises `ConfigError` if it is missing or broken."""
    if prompt.image is None:
        raise ConfigError(f"prompt {prompt.id!r}: no first frame; an image-to-video model needs one")
    try:
        return first_frame(prompt.image, height, width)
    except ValueError as error:
        raise ConfigError(f"prompt {prompt.id!r}: {error}") from None
