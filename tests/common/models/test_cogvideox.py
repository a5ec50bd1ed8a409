"""Pipeline folders, shapes, and the model call against diffusers' pipeline code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline

from common.errors import ConfigError
from common.models import cogvideox, fingerprint
from common.models.cogvideox import (
    build_tokenizer,
    decode_latents,
    encode_image,
    encode_video,
    open_model,
    pad_front,
    predict_v,
    rotary_table,
    to_pixels,
    to_unit,
)
from common.models.shapes import front_padding, spatial_ratio, tiles
from tests.support.tiny import (
    CHANNELS,
    FAMILIES,
    FRAMES,
    HEIGHT,
    LEARNED,
    TEXT_LENGTH,
    TEXT_TO_VIDEO,
    TEXT_WIDTH,
    V1_5,
    WIDTH,
    tiny_pipeline,
)
from tests.support.torn import without

SHAPE = (3, CHANNELS, 12, 16)


PUBLISHED = {"tile_sample_min_height": 240, "tile_overlap_factor_height": 1 / 6}  # what diffusers takes for 480 x 720
PUBLISHED |= {"tile_sample_min_width": 360, "tile_overlap_factor_width": 1 / 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


def batch(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """latents, image latents, timesteps, embeddings."""
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, *SHAPE, generator=draw),
        torch.randn(count, 1, *SHAPE[1:], generator=draw),
        torch.randint(0, 1000, (count,), generator=draw),
        torch.randn(count, TEXT_LENGTH, TEXT_WIDTH, generator=draw),
    )


def test_shapes_come_from_the_configs(folder: Path) -> None:
    model = open_model(folder)
    assert model.latent_shape(FRAMES, HEIGHT, WIDTH) == SHAPE
    assert model.latent_shape(1, 8, 16) == (1, CHANNELS, 2, 4)
    assert (model.image_conditioned, model.max_text_length) == (True, TEXT_LENGTH)
    assert model.scheduler_config["snr_shift_scale"] == 1.0


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((10, 48, 64), r"model.frames = 10: .* needs 8k\+1 frames: 9 or 17$"),
        ((13, 48, 64), r"model.frames = 13: .* needs 8k\+1 frames: 9 or 17$"),
        ((12, 48, 64), r"model.frames = 12: .* needs 8k\+1 frames: 9 or 17$"),
        ((9, 44, 64), "model.height = 44: .* multiple of 8 pixels: 40 or 48$"),
        ((9, 48, 60), "model.width = 60: .* multiple of 8 pixels: 56 or 64$"),
        ((9, 48, 5), "model.width = 5: .* multiple of 8 pixels: 8$"),
    ],
)
def test_a_size_that_does_not_fit_is_one_line(folder: Path, size: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_model(folder).latent_shape(*size)


@pytest.mark.parametrize("frames", [1, 9, 17, 25])
def test_a_clip_of_an_allowed_length_is_decoded_to_that_length(folder: Path, frames: int) -> None:
    model = open_model(folder)
    latents = torch.zeros(1, *model.latent_shape(frames, 8, 8))
    with torch.no_grad():
        assert decode_latents(model.load_vae("float32", "cpu"), latents).shape == (1, frames, 3, 8, 8)
        if frames > 1:  # the length between two allowed ones: its number of latent frames is even
            assert decode_latents(model.load_vae("float32", "cpu"), latents[:, 1:]).shape[1] == frames - 1


@pytest.mark.parametrize("size", [(9, 64, 64), (17, 48, 64)])
def test_learned_positions_allow_one_size(tmp_path: Path, size: tuple[int, int, int]) -> None:
    model = open_model(tiny_pipeline(tmp_path, **LEARNED))
    assert model.latent_shape(FRAMES, HEIGHT, WIDTH) == SHAPE
    with pytest.raises(ConfigError, match="= {}x{}x{}: .* only 9x48x64 works$".format(*size)):
        model.latent_shape(*size)


def test_sliced_rotary_positions_reach_to_the_sample_size(tmp_path: Path) -> None:
    model = open_model(tiny_pipeline(tmp_path, **FAMILIES["1.5-5B-I2V"]))
    assert model.latent_shape(81, 96, 96) == (21, CHANNELS, 24, 24)
    with pytest.raises(ConfigError, match=r"= 48x104: the rotary positions of .* go up to 96x96$"):
        model.latent_shape(9, 48, 104)


def test_old_configs_get_the_class_defaults(tmp_path: Path) -> None:
    file = tiny_pipeline(tmp_path) / "transformer" / "config.json"
    config = json.loads(file.read_text())
    del config["patch_size_t"], config["ofs_embed_dim"]
    file.write_text(json.dumps(config))
    assert open_model(tmp_path).transformer_config["patch_size_t"] is None


def test_bad_folders_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"model_index\.json: missing"):
        open_model(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        open_model(tmp_path)
    index.write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(ConfigError, match="is a WanPipeline, must be one of CogVideoXImageToVideoPipeline"):
        open_model(tmp_path)
    index.write_text((folder / "model_index.json").read_text())
    with pytest.raises(ConfigError, match="the pipeline has no transformer folder"):
        open_model(tmp_path)


def test_bad_weights_are_one_line(tmp_path: Path) -> None:
    model = open_model(tiny_pipeline(tmp_path))
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="transformer: cannot be loaded") as error:
        model.load_transformer("float32", "cpu")
    assert "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(ConfigError, match="transformer: cannot be loaded"):
        model.load_transformer("float32", "cpu")
    (tmp_path / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="text_encoder: cannot be loaded"):
        model.load_text_encoder("float32", "cpu")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="tokenizer: cannot be loaded"):
        model.load_tokenizer()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    tiny_pipeline(tmp_path / "one")
    tiny_pipeline(tmp_path / "two", num_layers=1, time_embed_dim=8)
    (tmp_path / "two" / "transformer" / "config.json").write_text(
        (tmp_path / "one" / "transformer" / "config.json").read_text()
    )
    with pytest.raises(ConfigError, match="transformer: not a complete CogVideoXTransformer3DModel: weights missing: "):
        open_model(tmp_path / "two")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("transformer", "norm_out.linear.weight"),
        ("vae", "decoder.conv_out.conv.weight"),
        ("text_encoder", "encoder.final_layer_norm.weight"),
    ],
)
def test_missing_weights_are_refused(tmp_path: Path, part: str, name: str) -> None:
    """Not drawn at random, which the libraries only warn of: each process would have another model."""
    model = open_model(tiny_pipeline(tmp_path))
    without(tmp_path / part, name)
    load = {
        "transformer": lambda: model.load_transformer("float32", "cpu"),
        "vae": lambda: model.load_vae("float32", "cpu"),
        "text_encoder": lambda: model.load_text_encoder("float32", "cpu"),
    }[part]
    where = re.escape(str(tmp_path / part))
    with pytest.raises(ConfigError, match=rf"^{where}: not a complete \w+: weights missing: {re.escape(name)}$"):
        load()


def test_another_prediction_type_is_refused(tmp_path: Path) -> None:
    tiny_pipeline(tmp_path, scheduler={"prediction_type": "epsilon"})
    with pytest.raises(ConfigError, match="prediction_type = 'epsilon': not implemented; allowed: 'v_prediction'"):
        open_model(tmp_path)


def test_toon_names_the_embedded_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "TOON_PIPELINE", folder)
    assert open_model("toon").path == folder
    monkeypatch.setattr(fingerprint, "TOON_PIPELINE", tmp_path / "unbuilt")
    with pytest.raises(ConfigError, match="build it with: douga toon build"):
        open_model("toon")


@pytest.mark.parametrize("overrides", [{}, V1_5], ids=["1.0", "1.5"])
def test_rotary_tables_are_the_pipelines(tmp_path: Path, overrides: dict[str, Any]) -> None:
    model = open_model(tiny_pipeline(tmp_path, **overrides))
    pipe: Any = CogVideoXImageToVideoPipeline.from_pretrained(model.path)
    for frames, height, width in ((4, 48, 64), (4, 24, 64), (2, 48, 32)):
        theirs = pipe._prepare_rotary_positional_embeddings(height, width, frames, torch.device("cpu"))
        shape = (frames, CHANNELS, height // 4, width // 4)
        ours = rotary_table(pipe.transformer.config, shape, torch.device("cpu"))
        assert ours is not None
        for mine, expected in zip(ours, theirs, strict=True):
            assert torch.equal(mine, expected)


def test_a_rotary_table_made_while_sampling_serves_training(folder: Path) -> None:
    transformer = open_model(folder).load_transformer("float32", "cpu")
    latents, image, timesteps, embeds = batch(2)
    cogvideox._rotary.cache_clear()
    with torch.inference_mode():
        predict_v(transformer, latents, image, timesteps, embeds)
    predict_v(transformer, latents, image, timesteps, embeds).pow(2).mean().backward()
    gradients = [parameter.grad for parameter in transformer.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert cogvideox._rotary.cache_info().hits >= 1


@pytest.mark.parametrize("overrides", [{}, V1_5, LEARNED], ids=["1.0", "1.5", "learned"])
def test_a_batch_of_timesteps_is_the_single_calls(tmp_path: Path, overrides: dict[str, Any]) -> None:
    transformer = open_model(tiny_pipeline(tmp_path, **overrides)).load_transformer("float32", "cpu")
    latents, image, timesteps, embeds = batch(3)
    latents = pad_front(latents, front_padding(transformer.config, latents.shape[1]))  # type: ignore[arg-type]
    with torch.no_grad():
        together = predict_v(transformer, latents, image, timesteps, embeds)
        alone = [
            predict_v(transformer, latents[i : i + 1], image[i : i + 1], timesteps[i : i + 1], embeds[i : i + 1])
            for i in range(3)
        ]
    assert together.shape == latents.shape
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_the_condition_is_the_first_frame_and_zeros_after(folder: Path) -> None:
    transformer = open_model(folder).load_transformer("float32", "cpu")
    latents, image, timesteps, embeds = batch(1)
    seen: dict[str, torch.Tensor] = {}
    transformer.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    predict_v(transformer, latents, image, timesteps, embeds)
    inputs = seen["hidden_states"]
    assert torch.equal(inputs[:, :, :CHANNELS], latents)
    assert torch.equal(inputs[:, :1, CHANNELS:], image)
    assert not inputs[:, 1:, CHANNELS:].any()


def test_a_wrapped_transformer_is_called_through_its_wrapper(folder: Path) -> None:
    class Engine(torch.nn.Module):
        """Like a DeepSpeed engine: its own `config`, the model in `.module`."""

        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module, self.config, self.calls = module, {}, 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.module(*args, **kwargs)

    transformer = open_model(folder).load_transformer("float32", "cpu")
    engine, inputs = Engine(transformer), batch(2)
    assert torch.equal(predict_v(engine, *inputs), predict_v(transformer, *inputs))
    assert engine.calls == 1


def test_1_5_takes_padded_clips_alone(tmp_path: Path) -> None:
    """The image is beside the first frame that the model gets, which is the padding, as in diffusers."""
    transformer = open_model(tiny_pipeline(tmp_path, **V1_5)).load_transformer("float32", "cpu")
    latents, image, timesteps, embeds = batch(1)
    seen: dict[str, torch.Tensor] = {}
    transformer.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with pytest.raises(ValueError, match="3 latent frames: the model takes a multiple of 2"):
        predict_v(transformer, latents, image, timesteps, embeds)
    padded = pad_front(latents, front_padding(transformer.config, 3))  # type: ignore[arg-type]
    assert predict_v(transformer, padded, image, timesteps, embeds).shape == padded.shape
    inputs = seen["hidden_states"]
    assert torch.equal(inputs[:, :, :CHANNELS], torch.cat([latents[:, :1], latents], 1))
    assert torch.equal(inputs[:, :1, CHANNELS:], image)
    assert not inputs[:, 1:, CHANNELS:].any()
    assert seen["ofs"].tolist() == [2.0]


def test_padding_is_copies_of_the_first_frame() -> None:
    clips = torch.arange(6.0).reshape(1, 3, 2, 1, 1)
    assert pad_front(clips, 0) is clips
    assert pad_front(clips, 2).flatten().tolist() == [0, 1, 0, 1, 0, 1, 2, 3, 4, 5]


def test_text_to_video_takes_no_image(tmp_path: Path) -> None:
    model = open_model(tiny_pipeline(tmp_path, **TEXT_TO_VIDEO))
    transformer = model.load_transformer("float32", "cpu")
    latents, _, timesteps, embeds = batch(2)
    assert not model.image_conditioned
    assert predict_v(transformer, latents, None, timesteps, embeds).shape == latents.shape


@pytest.mark.parametrize("levels", [(2, 2), (2, 1), (3, 4)])
def test_other_autoencoders_fit(tmp_path: Path, levels: tuple[int, int]) -> None:
    count, ratio = levels
    vae = {
        "block_out_channels": (4, 8, 8)[:count],
        "down_block_types": ("CogVideoXDownBlock3D",) * count,
        "up_block_types": ("CogVideoXUpBlock3D",) * count,
        "temporal_compression_ratio": ratio,
    }
    model = open_model(tiny_pipeline(tmp_path, vae=vae, temporal_compression_ratio=ratio))
    autoencoder = model.load_vae("float32", "cpu")
    clips = torch.rand(2, FRAMES, 3, HEIGHT, WIDTH) * 2 - 1
    latents = encode_video(autoencoder, clips)
    assert tuple(latents.shape[1:]) == model.latent_shape(FRAMES, HEIGHT, WIDTH)
    assert decode_latents(autoencoder, latents).shape == clips.shape


@pytest.mark.parametrize("inverted", [False, True])
def test_the_image_latent_is_scaled_as_the_checkpoint_was_trained(tmp_path: Path, inverted: bool) -> None:
    vae = open_model(tiny_pipeline(tmp_path, vae={"invert_scale_latents": inverted})).load_vae("float32", "cpu")
    image = torch.rand(1, 3, HEIGHT, WIDTH) * 2 - 1
    raw = vae.encode(image[:, :, None]).latent_dist.mode()  # type: ignore[union-attr]
    factor = 1 / 0.7 if inverted else 0.7
    torch.testing.assert_close(encode_image(vae, image), raw.transpose(1, 2) * factor)
    torch.testing.assert_close(encode_video(vae, image[:, None]), raw.transpose(1, 2) * 0.7)


def test_pixels_survive_the_unit_range() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    unit = to_unit(pixels)
    assert (unit.shape, unit.min(), unit.max()) == ((1, 3, 16, 16), -1, 1)
    assert torch.equal(to_pixels(unit), pixels)
    assert to_pixels(torch.tensor([-3.0, 0.0, 3.0]).reshape(3, 1, 1)).flatten().tolist() == [0, 128, 255]


def test_the_tokenizer_knows_words_pads_and_cuts(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["a", "robot", "walks"], 6)
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, type(tokenizer).from_pretrained(tmp_path)):
        encoded = one(
            ["a robot walks", "a blob", "a a a a a a a a", ""], padding="max_length", max_length=6, truncation=True
        )
        assert encoded["input_ids"] == [
            [3, 4, 5, 1, 0, 0],
            [3, 2, 1, 0, 0, 0],
            [3, 3, 3, 3, 3, 1],
            [1, 0, 0, 0, 0, 0],
        ]


def test_both_schedulers_follow_the_checkpoints_schedule(folder: Path) -> None:
    model = open_model(folder)
    dpm, ddim = model.make_scheduler("dpm"), model.make_scheduler("ddim")
    assert torch.equal(dpm.alphas_cumprod, ddim.alphas_cumprod)
    assert dpm.alphas_cumprod[-1] == 0  # zero terminal SNR
    dpm.set_timesteps(10)
    assert dpm.timesteps.tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]


@pytest.mark.parametrize("sample", [(48, 64), (40, 72), (8, 8), (100, 84)])
def test_tiles_of_any_size_give_the_clips_size(tmp_path: Path, sample: tuple[int, int]) -> None:
    """diffusers' own overlaps fail for the first, where a step of 25 pixels is 6 latents of 4 pixels and a bit."""
    model = open_model(tiny_pipeline(tmp_path, vae={"sample_height": sample[0], "sample_width": sample[1]}))
    assert spatial_ratio(model.vae_config) == 4
    vae = model.load_vae("float32", "cpu", tiling=True)
    clip = torch.rand(1, 1, 3, 60, 100) * 2 - 1
    latents = encode_video(vae, clip)
    assert latents.shape == (1, 1, CHANNELS, 15, 25)
    assert decode_latents(vae, latents).shape == clip.shape


def test_the_tiles_of_published_models_are_diffusers_own() -> None:
    vae = {"block_out_channels": (128, 256, 256, 512), "sample_height": 480, "sample_width": 720}
    assert tiles(vae) == PUBLISHED
