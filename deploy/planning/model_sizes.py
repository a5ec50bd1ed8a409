"""Size of a CogVideoX model and cost of its forward pass, from its config files alone. No torch.

```
transformer/ vae/ text_encoder/ config.json ──> ModelSizes ──> parameters, tokens, saved activations, FLOPs
```

| symbol | meaning |
|---|---|
| S | tokens of a clip: text + F h w / (patch² patch_t) |
| d | width of the transformer (heads x head width); its MLP has 4d |
| b | bytes per number |

Activations that autograd saves per block, in units of S d b (`SAVED`): the inputs of two layer norms and of their
modulation (2 + 2), the input of the q, k, v projections (1), q and k before their norms (2), q, k, v and the output of
attention (4; fused attention saves no S x S matrix), input and output of the output projection (2), the input of the
MLP (1), its hidden layer before and after GELU (4 + 4), its output (1): 23. Layers with frozen weights need not save
their input: with adapters on attention only, 14 remain. Statistics of norms and attention are float32, five values per
head and token.

A forward pass takes 2 FLOPs per weight and token for the matrices that every token passes through (12 d² weights per
block), and 4 S² d per block for attention. A backward pass takes twice that, minus the weight gradients of frozen
layers. Embeddings and modulation are neglected: they are computed once or for one vector per clip.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.config import LearnerConfig, LoraConfig
from common.errors import ConfigError
from common.models.shapes import Config, front_padding, latent_shape
from common.models.trainable import trained_names

SAVED = {"full": 23, "lora": 14}  # S d b per block, see above
SAVED_BY_TARGET = {"ff.net.0.proj": 1, "ff.net.2": 4}  # S d b that an adapter on this layer saves in addition
SAVED_OUTSIDE = {"full": 4, "lora": 2}  # S d b outside the blocks: embedding, last norms, last projection
STATISTICS = 5  # float32 per head and token
DEFAULT = "2b"  # the family whose configs are the defaults of diffusers' and transformers' classes
PARTS = ("transformer", "vae", "text_encoder")


@dataclass(frozen=True)
class Linear:
    """A linear layer (or an equivalent convolution) of the transformer."""

    name: str
    inputs: int
    outputs: int
    bias: bool = True


@dataclass(frozen=True)
class Convolution:
    """A VAE convolution. It runs at `2 ** space` times the latents' height and width, `2 ** time` their frames."""

    weights: int
    outputs: int
    space: int = 0
    time: int = 0


@dataclass(frozen=True)
class ModelSizes:
    """Configs of transformer, VAE and text encoder, with defaults filled in."""

    name: str
    transformer: Config
    vae: Config
    text_encoder: Config

    # Parameters.

    @property
    def width(self) -> int:
        """d: width of the transformer."""
        return self.transformer["num_attention_heads"] * self.transformer["attention_head_dim"]

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.transformer["num_layers"])

    def linears(self) -> Iterator[Linear]:
        """Yields every linear layer of the transformer, with its name in diffusers."""
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

    def parameters(self) -> Iterator[tuple[str, int]]:
        """Yields the name and the size of every parameter of the denoiser."""
        for one in self.linears():
            yield f"{one.name}.weight", one.inputs * one.outputs
            if one.bias:
                yield f"{one.name}.bias", one.outputs
        heads, blocks = self.transformer["attention_head_dim"], [f"transformer_blocks.{i}" for i in range(self.layers)]
        norms = [(f"{block}.attn1.norm_{x}", heads) for block in blocks for x in "qk"]
        if self.transformer["norm_elementwise_affine"]:
            inside = [f"{block}.{norm}.norm" for block in blocks for norm in ("norm1", "norm2")]
            norms += [(name, self.width) for name in (*inside, "norm_final", "norm_out.norm")]
        yield from ((f"{name}.{part}", size) for name, size in norms for part in ("weight", "bias"))

    @property
    def transformer_parameters(self) -> int:
        """P: parameters of the denoiser, norms included."""
        return sum(size for _, size in self.parameters())

    def trained_parameters(self, rules: LearnerConfig) -> int:
        """T: parameters that the learner trains. Raises `ConfigError` if a pattern or target matches none."""
        if rules.train == "lora":
            return self.adapter_parameters(rules.lora)
        sizes = dict(self.parameters())
        return sum(sizes[name] for name in trained_names(sizes, rules.trainable))

    @property
    def position_values(self) -> int:
        """Size of the position table, which is a buffer and not a parameter; 0 with rotary embeddings only."""
        c = self.transformer
        if c["use_rotary_positional_embeddings"] and not c["use_learned_positional_embeddings"]:
            return 0
        frames = (c["sample_frames"] - 1) // c["temporal_compression_ratio"] + 1
        patches = frames * (c["sample_height"] // c["patch_size"]) * (c["sample_width"] // c["patch_size"])
        return (c["max_text_seq_length"] + patches) * self.width

    def adapter_parameters(self, lora: LoraConfig) -> int:
        """A: parameters of one LoRA adapter. Raises `ConfigError` if no layer matches `lora.targets`."""
        matching = [one for one in self.linears() if any(f".{one.name}".endswith(f".{t}") for t in lora.targets)]
        if not matching:
            raise ConfigError(f"learner.lora.targets = {list(lora.targets)}: no layer of {self.name} has such a name")
        return sum(lora.rank * (one.inputs + one.outputs) for one in matching)

    @property
    def text_parameters(self) -> int:
        """Parameters of the T5 encoder."""
        c = self.text_encoder
        attention = 4 * c["d_model"] * c["num_heads"] * c["d_kv"]
        gated = str(c["feed_forward_proj"]).startswith("gated")
        block = attention + (3 if gated else 2) * c["d_model"] * c["d_ff"] + 2 * c["d_model"]
        positions = c["relative_attention_num_buckets"] * c["num_heads"]
        return c["num_layers"] * block + c["vocab_size"] * c["d_model"] + positions + c["d_model"]

    @property
    def vae_parameters(self) -> int:
        """Parameters of the VAE."""
        return sum(one.weights + one.outputs for half in (_encoder, _decoder) for one in half(self.vae))

    # Shapes of one clip.

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the latents' shape (F, C, h, w). Raises `ConfigError` if the size does not fit the model."""
        return latent_shape(self.name, self.transformer, self.vae, frames, height, width)

    def tokens(self, shape: tuple[int, int, int, int]) -> int:
        """S: tokens of latents (F, C, h, w), caption tokens included."""
        c, (frames, _, height, width) = self.transformer, shape
        padded = frames + front_padding(c, frames)
        video = padded * height * width // (c["patch_size"] ** 2 * (c["patch_size_t"] or 1))
        return c["max_text_seq_length"] + video

    def frame_tokens(self, shape: tuple[int, int, int, int]) -> tuple[int, int]:
        """Steps in time of latents (F, C, h, w), and tokens of each."""
        c, (frames, _, height, width) = self.transformer, shape
        return -(-frames // (c["patch_size_t"] or 1)), height * width // c["patch_size"] ** 2

    def attended(self, shape: tuple[int, int, int, int], attention: str) -> int:
        """Products of queries and keys in one block, per head and clip; `attention` is `model.attention`."""
        text, tokens = self.transformer["max_text_seq_length"], self.tokens(shape)
        if attention == "full":
            return tokens**2
        frames, frame = self.frame_tokens(shape)
        early = min(frames, 2) * frame * (text + frame)
        return text * tokens + early + frame * self.gathered(shape, attention)

    def gathered(self, shape: tuple[int, int, int, int], attention: str) -> int:
        """Keys that a block copies per clip, as many as values: with sparse-causal attention those of late frames."""
        frames, frame = self.frame_tokens(shape)
        each = self.transformer["max_text_seq_length"] + 2 * frame
        return 0 if attention == "full" else max(frames - 2, 0) * each

    # Activations in bytes and FLOPs; `tokens` is S, `number` is b, `copies` is what `gathered` returns.

    def saved_bytes(
        self, batch: int, tokens: int, number: int, lora: LoraConfig | None, recompute: str, copies: int = 0
    ) -> int:
        """Bytes that autograd saves for `batch` clips between forward and backward.

        `recompute` is `learner.gradient_checkpointing`; the activations of a block being recomputed are not included.
        """
        unit = batch * tokens * self.width * number
        outside = SAVED_OUTSIDE["lora" if lora else "full"] * unit
        if recompute == "full":
            return outside + self.layers * unit
        if recompute == "selective":
            statistics = batch * tokens * 4 * self.transformer["num_attention_heads"]
            return outside + self.layers * (2 * unit + statistics)
        return outside + self.layers * self.block_bytes(batch, tokens, number, lora, copies)

    def block_bytes(self, batch: int, tokens: int, number: int, lora: LoraConfig | None, copies: int = 0) -> int:
        """Bytes that autograd saves for `batch` clips in one block without checkpointing."""
        units = SAVED["lora" if lora else "full"]
        inner = 0
        if lora:
            units += sum(extra for target, extra in SAVED_BY_TARGET.items() if target in lora.targets)
            inner = lora.rank * len(lora.targets)
        statistics = 4 * STATISTICS * self.transformer["num_attention_heads"]
        gathered = 2 * copies * self.width * number  # keys and values
        return batch * (tokens * (number * (units * self.width + inner) + statistics) + gathered)

    def forward_flops(self, tokens: int, attended: int | None = None) -> tuple[float, float]:
        """FLOPs of one forward pass over one clip: (matrices, attention). `attended` is S^2 by default."""
        products = tokens**2 if attended is None else attended
        return self.layers * 24.0 * tokens * self.width**2, self.layers * 4.0 * products * self.width

    def decode_flops(self, shape: tuple[int, int, int, int]) -> float:
        """FLOPs of decoding the latents (F, C, h, w) of one clip."""
        frames, _, height, width = shape
        places = {
            (one.space, one.time): (2**one.time * (frames - 1) + 1) * height * width * 4**one.space
            for one in _decoder(self.vae)
        }
        return sum(2.0 * one.weights * places[one.space, one.time] for one in _decoder(self.vae))


# The VAE, layer by layer. A norm counts as one weight and one bias per channel; its FLOPs are negligible.


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
    """Yields `count` residual blocks. If `latent` > 0, norms are modulated by latents with that many channels."""
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


# Sources of the configs.


@cache
def _published() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "families.json").read_text("utf-8"))


def families() -> tuple[str, ...]:
    """Names that `family_sizes` accepts."""
    return tuple(_published())


def family_sizes(family: str) -> ModelSizes:
    """Returns the sizes of a published model family. Raises `ConfigError` for an unknown name."""
    if family not in _published():
        raise ConfigError(f"--family {family}: allowed are {', '.join(families())}")
    return ModelSizes(_published()[family]["name"], *(family_config(family, part) for part in PARTS))


def family_config(family: str, part: str) -> Config:
    """Returns a published family's config of a part or of its "scheduler", or the "clip" size it was trained on."""
    return _filled(part, _published()[family].get(part, {}))


def folder_sizes(folder: Path) -> ModelSizes:
    """Reads the sizes of a pipeline folder. Raises `ConfigError` naming a missing or invalid config file."""
    return ModelSizes(folder.name, *(_filled(part, _read(folder / part / "config.json")) for part in PARTS))


def _filled(part: str, own: Mapping[str, Any]) -> Config:
    """Fills in defaults: the configs of old checkpoints lack newer keys."""
    return _published()[DEFAULT][part] | dict(own)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; plan a published model with --family NAME") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return data
