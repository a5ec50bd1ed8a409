"""Reads a CogVideoX pipeline folder's configs and checks that the folder is whole, before any weights are loaded.

Every part is built on the meta device, which takes a fraction of a second and no memory, and compared with the headers
of its weight files (`checkpoints.py`). So a folder whose parts contradict themselves or each other is refused when a
command starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from common.errors import ConfigError
from common.errors.messages import one_line
from common.models.checkpoints import check_checkpoint
from common.models.fingerprint import lora_hint
from common.models.json_files import check_pointer, read_json
from common.models.noise_schedule import NoiseSchedule
from common.models.pretrained import from_pretrained

IMAGE_TO_VIDEO, TEXT_TO_VIDEO = PIPELINES = ("CogVideoXImageToVideoPipeline", "CogVideoXPipeline")
SCHEDULERS = {"dpm": CogVideoXDPMScheduler, "ddim": CogVideoXDDIMScheduler}
SCHEDULER_CLASSES = tuple(kind.__name__ for kind in SCHEDULERS.values())
TOKENIZER_CLASSES = ("T5Tokenizer", "T5TokenizerFast")
VOCABULARIES = ("tokenizer.json", "spiece.model")
PART_CLASSES: dict[str, tuple[str, ...]] = {
    "transformer": (CogVideoXTransformer3DModel.__name__,),
    "vae": (AutoencoderKLCogVideoX.__name__,),
    "text_encoder": (T5EncoderModel.__name__,),
    "tokenizer": TOKENIZER_CLASSES,
    "scheduler": SCHEDULER_CLASSES,
}
LIBRARIES = {part: "transformers" if part in ("text_encoder", "tokenizer") else "diffusers" for part in PART_CLASSES}
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"  # names of weight files
TIMESTEPS = 1000  # `sampler.steps` must divide it
LARGEST = 1e15  # of a config's numbers
MOST_LAYERS = 1000  # more take minutes to build even without memory; CogVideoX has 42


class Configs(NamedTuple):
    """The configs of a folder, with the defaults of their classes filled in."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]


def read_folder(folder: Path) -> Configs:
    """Read the configs of a pipeline folder, and check them and the headers of its weights.

    Raises:
        ConfigError: a file is missing or damaged, or the parts contradict their weights or each other.
    """
    pipeline, scheduler = _check_index(folder / "model_index.json")
    transformer, text_encoder = folder / "transformer", folder / "text_encoder"
    configs = Configs(
        _filled(CogVideoXTransformer3DModel, transformer / "config.json"),
        _filled(AutoencoderKLCogVideoX, folder / "vae" / "config.json"),
        _read_scheduler(folder / "scheduler" / "scheduler_config.json") | {"_class_name": scheduler},
    )
    text = _read_text_config(text_encoder)
    _check_agreement(folder, pipeline, configs, text)
    for kind, part, own in (
        (CogVideoXTransformer3DModel, "transformer", configs.transformer),
        (AutoencoderKLCogVideoX, "vae", configs.vae),
    ):
        check_checkpoint(folder / part, DIFFUSERS_STEM, _built(kind.from_config, folder / part, own))
    check_checkpoint(text_encoder, TRANSFORMERS_STEM, _built(T5EncoderModel, text_encoder, text))
    tokenizer = load_tokenizer(folder / "tokenizer", text.vocab_size, configs.transformer["max_text_seq_length"])
    _check_special_tokens(folder, tokenizer, text)
    return configs


def load_tokenizer(folder: Path, vocabulary: int, length: int) -> T5Tokenizer:
    """The caption tokenizer of a model with `vocabulary` embeddings and captions of `length` tokens.

    Raises:
        ConfigError: it is missing, damaged, of another class, or has tokens without an embedding.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):  # transformers would make an empty vocabulary
        raise ConfigError(f"{folder}: no vocabulary in it; allowed are {' and '.join(VOCABULARIES)}")
    for name in VOCABULARIES:
        check_pointer(folder / name)
    file = folder / "tokenizer_config.json"
    if (
        file.exists()
        and (found := read_json(file).get("tokenizer_class", TOKENIZER_CLASSES[0])) not in TOKENIZER_CLASSES
    ):
        raise ConfigError(f"{file}: is a {found}, must be one of {', '.join(TOKENIZER_CLASSES)}")
    tokenizer = from_pretrained(T5Tokenizer, str(folder), str(folder), local_files_only=True)
    if len(tokenizer) > vocabulary:
        raise ConfigError(f"{folder}: has {len(tokenizer)} tokens, but the text encoder embeds only {vocabulary}")
    try:
        tokenizer(["a"], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    except Exception as error:
        raise ConfigError(f"{folder}: cannot tokenize a caption: {one_line(error)}") from None
    return tokenizer


def _check_special_tokens(folder: Path, tokenizer: T5Tokenizer, text: T5Config) -> None:
    """Tokenizers of other models have other special tokens: LLaMA's, of as many tokens as T5's, ends texts with 2."""
    for name in ("pad_token_id", "eos_token_id"):
        given, needed = getattr(tokenizer, name), getattr(text, name)
        if given != needed:
            raise ConfigError(
                f"{folder / 'tokenizer'}: {name} = {given}, but the text encoder has {needed}: the tokenizer is of "
                "another model"
            )


def _check_index(file: Path) -> tuple[str, str]:
    """The classes of pipeline and scheduler. diffusers loads those that the index names, whatever the configs say."""
    if not file.exists() and (hint := lora_hint(file.parent)):
        raise ConfigError(f"{file}: is missing{hint}")
    index = read_json(file)
    if index.get("_class_name") not in PIPELINES:
        raise ConfigError(f"{file}: is a {index.get('_class_name')}, must be one of {', '.join(PIPELINES)}")
    name = ""
    for part, classes in PART_CLASSES.items():
        found = index.get(part)
        name = found[1] if isinstance(found, list) and len(found) == 2 else found
        if name not in classes:
            raise ConfigError(f"{file}: {part} is {name!r}, must be one of {', '.join(classes)}")
        if isinstance(found, list) and found[0] != LIBRARIES[part]:
            raise ConfigError(
                f"{file}: {part} is code of {found[0]!r}, which douga does not run; must be {LIBRARIES[part]!r}"
            )
        if not (file.parent / part).is_dir():
            raise ConfigError(f"{file.parent}: the pipeline has no {part} folder")
    return index["_class_name"], str(name)  # the scheduler is the last part


def _filled(kind: type, file: Path) -> dict[str, Any]:
    """Read a part's config and fill in defaults: old checkpoints lack newer keys."""
    own = read_json(file)
    if own.get("_class_name") != kind.__name__:
        raise ConfigError(f"{file}: is a {own.get('_class_name')}, must be a {kind.__name__}")
    _check_plain(file, own)
    _check_values(kind, file, own)
    return with_defaults(kind, own)


def _check_plain(file: Path, own: Mapping[str, Any]) -> None:
    """The libraries would quantise the part while they load it, whatever its weights are."""
    if method := own.get("quantization_config"):
        method = method.get("quant_method", method) if isinstance(method, dict) else method
        raise ConfigError(f"{file}: quantization_config ({method}): take the model that is not quantised")


def defaults(kind: type) -> dict[str, Any]:
    """The default values of a class's config."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def with_defaults(kind: type, own: Mapping[str, Any]) -> dict[str, Any]:
    """The config `own`, with missing keys filled in from the defaults of its class."""
    return defaults(kind) | dict(own)


def _check_values(kind: type, file: Path, own: Mapping[str, Any]) -> None:
    """Check that each value has the type of the class's default, and is positive and finite where that is."""
    for name, default in defaults(kind).items():
        value = own.get(name, default)
        if isinstance(default, bool) or default is None or isinstance(default, str):
            fits = default is None or type(value) is type(default)
        elif isinstance(default, (int, float)):
            number = type(value) is int or (isinstance(default, float) and type(value) is float)
            fits = number and abs(value) < LARGEST and (value > 0 or default <= 0)  # NaN is not less
        else:
            fits = isinstance(value, (list, tuple)) and len(value) > 0
        if not fits:
            raise ConfigError(f"{file}: {name} = {value!r:.60}: does not fit; the default is {default!r}")


def _read_text_config(folder: Path) -> T5Config:
    own = read_json(folder / "config.json")
    if own.get("model_type") != "t5":
        raise ConfigError(f"{folder / 'config.json'}: model_type is {own.get('model_type')!r}, must be 't5'")
    _check_plain(folder / "config.json", own)
    return from_pretrained(T5Config, str(folder), str(folder), local_files_only=True)


def _built(build: Any, folder: Path, config: Any) -> torch.nn.Module:
    """A part on the meta device: names and shapes without weights."""
    for name, value in (config.to_dict() if isinstance(config, T5Config) else config).items():
        if "layers" in name and isinstance(value, int) and value > MOST_LAYERS:
            raise ConfigError(f"{folder / 'config.json'}: {name} = {value}: at most {MOST_LAYERS} can be built")
    try:
        with torch.device("meta"):
            return build(config)
    except Exception as error:  # the libraries assert and divide before they check
        why = f"{type(error).__name__} {one_line(error)}".rstrip()
        raise ConfigError(f"{folder / 'config.json'}: no model can be built of it: {why}") from None


def _check_agreement(folder: Path, pipeline: str, configs: Configs, text: T5Config) -> None:
    """Check values of the configs that must fit each other."""
    transformer, vae = configs.transformer, configs.vae
    channels, in_channels = vae["latent_channels"], transformer["in_channels"]
    if in_channels not in (channels, 2 * channels):
        raise ConfigError(
            f"{folder}: the transformer has {in_channels} input channels, the VAE {channels} latent channels; "
            f"the transformer needs {channels} (text-to-video) or {2 * channels} (image-to-video)"
        )
    needed = IMAGE_TO_VIDEO if in_channels == 2 * channels else TEXT_TO_VIDEO
    for what, found, fits in (
        ("model_index.json: _class_name", pipeline, needed),
        ("transformer: out_channels", transformer["out_channels"], channels),
        ("transformer: text_embed_dim", transformer["text_embed_dim"], text.d_model),
        (
            "transformer: temporal_compression_ratio",
            transformer["temporal_compression_ratio"],
            vae["temporal_compression_ratio"],
        ),
    ):
        if found != fits:
            raise ConfigError(f"{folder}: {what} = {found!r}, but the other parts need {fits!r}")
    head = transformer["attention_head_dim"]
    if transformer["use_rotary_positional_embeddings"] and head % 16:
        raise ConfigError(
            f"{folder / 'transformer' / 'config.json'}: attention_head_dim = {head}: rotary positions need a multiple "
            "of 16"
        )


def _read_scheduler(file: Path) -> dict[str, Any]:
    """A scheduler's config. Settings that CogVideoX's schedulers do not have are refused, unless they are off.

    `clip_sample`, `clip_sample_range` and `sample_max_value` are allowed: diffusers' CogVideoX schedulers read none.
    """
    own = read_json(file)
    if own.get("_class_name") not in SCHEDULER_CLASSES:
        raise ConfigError(f"{file}: is a {own.get('_class_name')}, must be one of {', '.join(SCHEDULER_CLASSES)}")
    _check_values(CogVideoXDPMScheduler, file, own)
    config, known = with_defaults(CogVideoXDPMScheduler, own), defaults(CogVideoXDPMScheduler)
    for name, value in own.items():
        if not name.startswith("_") and name not in known and value not in (None, False):
            raise ConfigError(
                f"{file}: {name} = {value!r}: not implemented; CogVideoX's schedulers have no such setting"
            )
    for name, allowed in (
        ("prediction_type", ("v_prediction",)),
        ("timestep_spacing", ("trailing", "leading", "linspace")),
        ("num_train_timesteps", (TIMESTEPS,)),
        ("steps_offset", (0,)),
    ):
        if config[name] not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise ConfigError(f"{file}: {name} = {config[name]!r}: not implemented; allowed: {listed}")
    _check_noise(file, config)
    return config


def _check_noise(file: Path, config: Mapping[str, Any]) -> None:
    """Check that the learner's noise schedule is the sampler's, and falls from near 1 towards 0."""
    try:
        ours = NoiseSchedule.from_config(config).alphas_cumprod
        theirs = CogVideoXDPMScheduler(**{name: config[name] for name in defaults(CogVideoXDPMScheduler)})
        levels = theirs.alphas_cumprod.double()
        sound = len(ours) == len(levels) == TIMESTEPS and torch.allclose(ours, levels, atol=1e-5)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{file}: no noise schedule can be made of it: {one_line(error)}") from None
    if not (sound and float(ours.min()) >= 0 and float(ours.max()) < 1 and bool((ours.diff() < 0).all())):
        raise ConfigError(
            f"{file}: the betas make no noise schedule of {TIMESTEPS} steps whose signal falls; see beta_start, "
            "beta_end, trained_betas and snr_shift_scale"
        )
