"""The kinds of published checkpoints, and how each becomes a folder that douga loads.

AnimeReward's files are those of github.com/bilibili/Index-anisora (``reward/``). Their encoders are converted; their
heads (linear in concatenated embeddings, ActionCLIP's adapter, a projection for names) have no counterpart here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPImageProcessorPil,
    CLIPModel,
)

from common.errors import ConfigError
from common.files import new_folder
from common.models.pretrained import from_pretrained, load_model
from rewarders.conversion.checkpoints import Tensors, fill, groups, listed, part, read_tensors, required
from rewarders.conversion.names import bert_sizes, blip_vision_sizes, blip_vision_weights, clip_weights
from rewarders.judges.dynamic_degree import RAFT_FILE
from rewarders.judges.image_rewards import AESTHETIC_FILE, IMAGE_REWARD_FILE
from rewarders.optical_flow.raft import Raft

BERT, CLIP_B, CLIP_L, CLIP_H = (
    "bert-base-uncased",
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-large-patch14",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
)


@dataclass(frozen=True)
class Source:
    """A published file, or folder, and the model whose tokenizer, processor or sizes it lacks."""

    file: Path
    base: str

    @cached_property
    def tensors(self) -> Tensors:
        """The file's tensors; see `read_tensors`."""
        return read_tensors(self.file)

    def processing(self, kind: Any, folder: Path) -> None:
        """Copies the base's tokenizer or processor to `folder`. Raises `ConfigError` if it has none."""
        from_pretrained(kind, self.base, f"--base {self.base}").save_pretrained(folder)

    def outside(self, *prefixes: str) -> list[str]:
        """Returns the names of the tensors that begin with none of `prefixes`."""
        return [name for name in self.tensors if not name.startswith(prefixes)]


@dataclass(frozen=True)
class Kind:
    """How a kind of checkpoint is converted."""

    convert: Callable[[Source, Path], list[str]]  # fills a folder; returns the names of the tensors that it left out
    use: str  # what the folder is for
    base: str = ""  # default of --base; empty if none is needed


def convert(kind: str, file: Path, out: Path, base: str, log: Callable[[str], None]) -> None:
    """Converts `file` to the new folder `out`. `base` is a folder or hub id; empty for the kind's default.

    Raises `ConfigError` if there is no such kind, if the file holds more than tensors or other weights than the kind
    needs, or if `out` exists.
    """
    if kind not in KINDS:
        raise ConfigError(f"{kind}: allowed are {', '.join(KINDS)}")
    if out.exists():
        raise ConfigError(f"--out {out}: exists; a new folder is needed")
    with new_folder(out) as draft:
        left = KINDS[kind].convert(Source(file, base or KINDS[kind].base), draft)
    log(f"{out}: {KINDS[kind].use}")
    if left:
        log(f"left out: {groups(left)}")


def _aesthetic(source: Source, folder: Path) -> list[str]:
    """LAION's linear layers, or VBench's single one, beside the CLIP model that they were trained on."""
    single = set(source.tensors) == {"weight", "bias"}
    layers = {f"layers.0.{name}" if single else name: one for name, one in source.tensors.items()}
    unknown = [name for name in layers if not name.startswith("layers.")]
    if unknown or not layers:
        raise ConfigError(f"{source.file}: not linear layers: unknown: {listed(unknown)}")
    model, _ = load_model(CLIPModel, source.base, f"--base {source.base}")
    model.save_pretrained(folder)
    source.processing(AutoProcessor, folder)
    save_file({name: one.contiguous() for name, one in layers.items()}, folder / AESTHETIC_FILE)
    return []


def _image_reward(source: Source, folder: Path) -> list[str]:
    where = str(source.file)
    vision, text = part(source.tensors, "blip.visual_encoder."), part(source.tensors, "blip.text_encoder.")
    joint = {name: one for name, one in part(source.tensors, "blip.").items() if "_encoder." not in name}
    sizes = blip_vision_sizes(vision, where)
    config = BlipConfig(
        vision_config=sizes,
        text_config=bert_sizes(text, where) | {"encoder_hidden_size": sizes["hidden_size"]},
        image_text_hidden_size=len(required(joint, "vision_proj.bias", where)),
    )
    model = BlipForImageTextRetrieval(config)
    weights = {f"vision_model.{name}": one for name, one in blip_vision_weights(vision).items()}
    weights |= {f"text_encoder.{name}": one for name, one in text.items()} | joint
    fill(model, weights, where, optional=("itm_head.",))  # ImageReward has none, and it is not used
    model.save_pretrained(folder)
    layers = {name: one.contiguous() for name, one in source.tensors.items() if name.startswith("mlp.")}
    required(layers, "mlp.layers.0.weight", where)
    save_file(layers, folder / IMAGE_REWARD_FILE)
    size = sizes["image_size"]
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(
        folder
    )
    source.processing(AutoTokenizer, folder)
    return source.outside("blip.", "mlp.")


def _raft(source: Source, folder: Path) -> list[str]:
    """RAFT, in the names of its public code."""
    model = Raft()
    fill(model, source.tensors, str(source.file))
    save_file({name: one.clone() for name, one in model.state_dict().items()}, folder / RAFT_FILE)
    return []


def _clip(source: Source, folder: Path, prefix: str = "") -> list[str]:
    """CLIP in OpenAI's or OpenCLIP's names, with the sizes of the base."""
    weights = part(source.tensors, prefix)
    model = CLIPModel(from_pretrained(AutoConfig, source.base, f"--base {source.base}"))
    fill(model, clip_weights(weights), str(source.file))
    model.save_pretrained(folder)
    source.processing(AutoProcessor, folder)
    return source.outside(prefix)


def _blip_vision(source: Source, folder: Path) -> list[str]:
    """A BLIP vision tower. Pixels are scaled as in the published code: to a square, with CLIP's mean and deviation."""
    weights, where = part(source.tensors, "visual_encoder."), str(source.file)
    sizes = blip_vision_sizes(weights, where)
    model = BlipVisionModel(BlipVisionConfig(**sizes))
    fill(model, blip_vision_weights(weights), where)
    model.save_pretrained(folder)
    size = sizes["image_size"]
    BlipImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return source.outside("visual_encoder.")


def _blip_vision_and_text(source: Source, folder: Path) -> list[str]:
    """A BLIP vision tower, and BLIP's text encoder without its cross-attention: a BERT without token types."""
    _blip_vision(source, folder / "vision")
    weights, where = part(source.tensors, "text_encoder."), str(source.file)
    sizes = bert_sizes(weights, where)
    model = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    alone = {name: one for name, one in weights.items() if ".crossattention." not in name}
    fill(model, alone, where, optional=("embeddings.token_type_embeddings.",))
    model.save_pretrained(folder / "text")
    source.processing(AutoTokenizer, folder / "text")
    return source.outside("visual_encoder.", "text_encoder.")


def _transformers_folder(source: Source, folder: Path) -> list[str]:
    """A `transformers` folder whose weights are pickled."""
    where = str(source.file)
    files = sorted(source.file.glob("pytorch_model*.bin"))
    if not files:
        raise ConfigError(f"{where}: not a folder with pytorch_model.bin")
    tensors = {name: one for file in files for name, one in read_tensors(file).items()}
    config = from_pretrained(AutoConfig, where, where, "the config of a known model")
    kind = getattr(transformers, (config.architectures or [""])[0], AutoModel)
    with new_folder(folder / "weights", durable=False) as draft:
        config.save_pretrained(draft)
        save_file({name: one.clone() for name, one in tensors.items()}, draft / "model.safetensors", {"format": "pt"})
    model, _ = load_model(kind, folder / "weights", where, dtype=torch.float32)
    shutil.rmtree(folder / "weights")
    for file in source.file.iterdir():
        if file.suffix in (".json", ".txt", ".model") and not file.name.endswith(".index.json"):
            shutil.copy(file, folder)
    model.save_pretrained(folder)
    kept = set(model.state_dict())
    return [name for name in tensors if name not in kept and name.split(".", 1)[-1] not in kept]


KINDS: dict[str, Kind] = {
    "aesthetic": Kind(_aesthetic, "a judge of kind aesthetic", CLIP_L),
    "image_reward": Kind(_image_reward, "a judge of kind image_reward", BERT),
    "hps": Kind(_clip, "a judge of kind hps", CLIP_H),
    "raft": Kind(_raft, "a judge of kind dynamic_degree"),
    "animereward_image": Kind(_blip_vision, "vision of VideoImageConsistency"),
    "animereward_text": Kind(_blip_vision_and_text, "vision/ and text/ of VideoTextConsistency", BERT),
    "animereward_character": Kind(_blip_vision, "vision of TrackedCharacter"),
    "animereward_motion": Kind(partial(_clip, prefix="clip."), "clip of PromptedMotion", CLIP_B),
    "transformers": Kind(_transformers_folder, "the same model in safetensors"),
}
