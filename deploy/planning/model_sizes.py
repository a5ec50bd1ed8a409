"""How large a CogVideoX model is and what a call of it costs, from its config files alone. No torch.

```
transformer/ vae/ text_encoder/ config.json ──> ModelSizes ──> parameters, tokens, saved activations, FLOPs
```

| symbol | meaning |
|---|---|
| S | tokens of a clip: text + F h w / (patch² patch_t) |
| d | width of the transformer (heads x head width); its MLP has 4d |
| b | bytes per number |

What autograd keeps of one block, in units of S d b (`SAVED`): the inputs of two layer norms and of their modulation
(2 + 2), what the q, k, v projections read (1), q and k before their norms (2), q, k, v and the output as attention
keeps them (4; fused attention keeps no S x S), what the output projection reads and gives (2), what the MLP reads (1),
its hidden layer before and after GELU (4 + 4), what it gives (1): 23. Frozen weights need no input of their own:
adapters on the attention alone leave 14. Statistics of norms and attention are float32, five numbers a head and token.

The floating-point operations of a forward pass are 2 per weight and token for the matrices that every token passes
(12 d² a block), and 4 S² d a block for attention; a backward pass costs twice that, less the weight gradients of what
is frozen. Embeddings and modulation are left out: they see one vector a clip, or once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.config import LoraConfig
from common.errors import ConfigError
from common.models.shapes import Config, front_padding, latent_shape

SAVED = {"full": 23, "lora": 14}  # S d b per block, see above
SAVED_BY_TARGET = {"ff.net.0.proj": 1, "ff.net.2": 4}  # what an adapter there has to keep, S d b
SAVED_OUTSIDE = {"full": 4, "lora": 2}  # S d b: the embedding, the last norms, the last projection
STATISTICS = 5  # float32 per head and token
DEFAULT = "2b"  # the family whose configs are the defaults of diffusers' and transformers' classes
PARTS = ("transformer", "vae", "text_encoder")
EMBEDDED = Path(__file__).parents[2] / "common" / "toon" / "weights"  # what 'toon' stands for


@dataclass(frozen=True)
class Linear:
    """A matrix (or a convolution that acts as one) of the transformer."""

    name: str
    inputs: int
    outputs: int
    bias: bool = True

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.inputs * self.outputs + self.bias * self.outputs


@dataclass(frozen=True)
class Convolution:
    """A convolution of the VAE; it runs at `2 ** space` times the latents' sides and `2 ** time` times their frames."""

    weights: int
    outputs: int
    space: int = 0
    time: int = 0


@dataclass(frozen=True)
class ModelSizes:
    """The three parts' configs, with defaults filled in."""

    name: str
    transformer: Config
    vae: Config
    text_encoder: Config

    # Parameters.

    @property
    def width(self) -> int:
        """d."""
        return self.transformer["num_attention_heads"] * self.transformer["attention_head_dim"]

    @property
    def layers(self) -> int:
        """Transformer blocks."""
        return int(self.transformer["num_layers"])

    def linears(self) -> Iterator[Linear]:
        """Every matrix of the transformer, by its name in diffusers."""
        c, d, t = self.transformer, self.width, self.transformer["time_embed_dim"]
        patch_t = c["patch_size_t"] or 1
        patch = c["patch_size"] ** 2 * patch_t
        yield Linear("patch_embed.proj", c["in_channels"] * patch, d, bool(c["patch_size_t"] or c["patch_bias"]))
        yield Linear("patch_embed.text_proj", c["text_embed_dim"], d)
        yield from (Linear("time_embedding.linear_1", d, t), Linear("time_embedding.linear_2", t, t))
        if offset := c["ofs_embed_dim"]:
            yield from (Linear(f"ofs_embedding.linear_{i}", offset, offset) for i in (1, 2))
        for index in range(self.layers):
            yield from self._block(f"transformer_blocks.{index}")
        yield from (Linear("norm_out.linear", t, 2 * d), Linear("proj_out", d, patch * c["out_channels"]))

    def _block(self, name: str) -> Iterator[Linear]:
        d, t = self.width, self.transformer["time_embed_dim"]
        yield from (Linear(f"{name}.{norm}.linear", t, 6 * d) for norm in ("norm1", "norm2"))
        yield from (Linear(f"{name}.attn1.to_{x}", d, d, self.transformer["attention_bias"]) for x in "qkv")
        yield from (Linear(f"{name}.attn1.to_out.0", d, d), Linear(f"{name}.ff.net.0.proj", d, 4 * d))
        yield Linear(f"{name}.ff.net.2", 4 * d, d)

    @property
    def transformer_parameters(self) -> int:
        """P: weights of the denoiser, norms included."""
        heads = 4 * self.transformer["attention_head_dim"]  # norms of q and k: weight and bias each
        norms = 2 * self.width if self.transformer["norm_elementwise_affine"] else 0
        return sum(one.parameters for one in self.linears()) + self.layers * (heads + 2 * norms) + 2 * norms

    @property
    def position_values(self) -> int:
        """Numbers in the table of positions, which is no parameter: 0 where positions are rotary alone."""
        c = self.transformer
        if c["use_rotary_positional_embeddings"] and not c["use_learned_positional_embeddings"]:
            return 0
        frames = (c["sample_frames"] - 1) // c["temporal_compression_ratio"] + 1
        patches = frames * (c["sample_height"] // c["patch_size"]) * (c["sample_width"] // c["patch_size"])
        return (c["max_text_seq_length"] + patches) * self.width

    def adapter_parameters(self, lora: LoraConfig) -> int:
        """A: weights of one adapter. `ConfigError` when no layer matches `lora.targets`."""
        hit = [one for one in self.linears() if any(f".{one.name}".endswith(f".{t}") for t in lora.targets)]
        if not hit:
            raise ConfigError(f"learner.lora.targets = {list(lora.targets)}: no layer of {self.name} has such a name")
        return sum(lora.rank * (one.inputs + one.outputs) for one in hit)

    @property
    def text_parameters(self) -> int:
        """Weights of the T5 encoder."""
        c = self.text_encoder
        attention = 4 * c["d_model"] * c["num_heads"] * c["d_kv"]
        gated = str(c["feed_forward_proj"]).startswith("gated")
        block = attention + (3 if gated else 2) * c["d_model"] * c["d_ff"] + 2 * c["d_model"]
        positions = c["relative_attention_num_buckets"] * c["num_heads"]
        return c["num_layers"] * block + c["vocab_size"] * c["d_model"] + positions + c["d_model"]

    @property
    def vae_parameters(self) -> int:
        """Weights of the video autoencoder."""
        return sum(one.weights + one.outputs for half in (_encoder, _decoder) for one in half(self.vae))

    # A clip.

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(F, C, h, w), as stored. `ConfigError` when the size does not fit the model."""
        return latent_shape(self.name, self.transformer, self.vae, frames, height, width)

    def tokens(self, shape: tuple[int, int, int, int]) -> int:
        """S of latents (F, C, h, w), the caption's tokens included."""
        c, (frames, _, height, width) = self.transformer, shape
        padded = frames + front_padding(c, frames)
        video = padded * height * width // (c["patch_size"] ** 2 * (c["patch_size_t"] or 1))
        return c["max_text_seq_length"] + video

    # Activations and operations of `batch` clips of S tokens.

    def saved_bytes(self, batch: int, tokens: int, number: int, lora: LoraConfig | None, recompute: str) -> int:
        """What autograd keeps from forward to backward, without what a block recomputes."""
        unit = batch * tokens * self.width * number
        outside = SAVED_OUTSIDE["lora" if lora else "full"] * unit
        if recompute == "full":
            return outside + self.layers * unit
        if recompute == "selective":
            statistics = batch * tokens * 4 * self.transformer["num_attention_heads"]
            return outside + self.layers * (2 * unit + statistics)
        return outside + self.layers * self.block_bytes(batch, tokens, number, lora)

    def block_bytes(self, batch: int, tokens: int, number: int, lora: LoraConfig | None) -> int:
        """What autograd keeps of one whole block."""
        units = SAVED["lora" if lora else "full"]
        inner = 0
        if lora:
            units += sum(extra for target, extra in SAVED_BY_TARGET.items() if target in lora.targets)
            inner = lora.rank * len(lora.targets)
        statistics = 4 * STATISTICS * self.transformer["num_attention_heads"]
        return batch * tokens * (number * (units * self.width + inner) + statistics)

    def forward_flops(self, tokens: int) -> tuple[float, float]:
        """Operations of one forward pass over one clip: (of the matrices, of attention)."""
        return self.layers * 24.0 * tokens * self.width**2, self.layers * 4.0 * tokens**2 * self.width

    def decode_flops(self, shape: tuple[int, int, int, int]) -> float:
        """Operations of decoding one clip of latents (F, C, h, w)."""
        frames, _, height, width = shape
        places = {
            (one.space, one.time): (2**one.time * (frames - 1) + 1) * height * width * 4**one.space
            for one in _decoder(self.vae)
        }
        return sum(2.0 * one.weights * places[one.space, one.time] for one in _decoder(self.vae))


# The VAE, layer by layer. A norm counts as one weight and one bias per channel, without operations worth counting.


def _encoder(c: Config) -> Iterator[Convolution]:
    channels = list(c["block_out_channels"])
    yield Convolution(27 * c["in_channels"] * channels[0], channels[0])
    before = channels[0]
    for index, after in enumerate(channels):
        yield from _residuals(before, after, c["layers_per_block"], 0)
        if index < len(channels) - 1:
            yield Convolution(9 * after * after, after)
        before = after
    yield from _residuals(before, before, 2, 0)
    yield Convolution(before, before)
    yield Convolution(27 * before * 2 * c["latent_channels"], 2 * c["latent_channels"])


def _decoder(c: Config) -> Iterator[Convolution]:
    channels, latent = list(reversed(c["block_out_channels"])), c["latent_channels"]
    levels = c["temporal_compression_ratio"].bit_length() - 1
    before = channels[0]
    yield Convolution(27 * latent * before, before)
    yield from _residuals(before, before, 2, latent)
    for index, after in enumerate(channels):
        at = (index, min(index, levels))
        yield from _residuals(before, after, c["layers_per_block"] + 1, latent, *at)
        if index < len(channels) - 1:
            yield Convolution(9 * after * after, after, index + 1, min(index + 1, levels))
        before = after
    at = (len(channels) - 1, levels)
    yield from _norm(before, latent, *at)
    yield Convolution(27 * before * c["out_channels"], c["out_channels"], *at)


def _residuals(
    before: int, after: int, count: int, latent: int, space: int = 0, time: int = 0
) -> Iterator[Convolution]:
    """`count` residual blocks; with `latent` channels their norms are modulated by the latents."""
    for _ in range(count):
        yield from (*_norm(before, latent, space, time), Convolution(27 * before * after, after, space, time))
        yield from (*_norm(after, latent, space, time), Convolution(27 * after * after, after, space, time))
        if before != after:
            yield Convolution(before * after, after, space, time)
        before = after


def _norm(channels: int, latent: int, space: int, time: int) -> Iterator[Convolution]:
    yield Convolution(channels, channels)
    for _ in range(2 if latent else 0):
        yield Convolution(latent * channels, channels, space, time)


# Where the configs come from.


@cache
def _published() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "families.json").read_text())


def families() -> tuple[str, ...]:
    """The names that `family_sizes` takes."""
    return tuple(_published())


def family_sizes(family: str) -> ModelSizes:
    """A published family by its name. `ConfigError` for another name."""
    if family not in _published():
        raise ConfigError(f"--family {family}: allowed are {', '.join(families())}")
    return ModelSizes(_published()[family]["name"], *(family_config(family, part) for part in PARTS))


def family_config(family: str, part: str) -> Config:
    """A published family's config of a part, of its "scheduler", or the "clip" that it was trained for."""
    return _filled(part, _published()[family].get(part, {}))


def folder_sizes(folder: Path) -> ModelSizes:
    """A pipeline folder, by its config files. `ConfigError` names the file that is missing or broken."""
    return ModelSizes(folder.name, *(_filled(part, _read(folder / part / "config.json")) for part in PARTS))


def _filled(part: str, own: Mapping[str, Any]) -> Config:
    """Old checkpoints leave newer keys out."""
    return _published()[DEFAULT][part] | dict(own)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; plan a published model with --family NAME") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return data
