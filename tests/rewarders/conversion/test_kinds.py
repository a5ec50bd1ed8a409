"""Each kind of published checkpoint: small files with its names become models that compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, BlipConfig, BlipForImageTextRetrieval, CLIPModel

from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.anime_reward import PromptedMotion, VideoImageConsistency, VideoTextConsistency
from rewarders.anime_reward.encoders import Text, Vision
from rewarders.conversion.checkpoints import Tensors
from rewarders.conversion.kinds import convert
from rewarders.conversion.names import HEAD
from rewarders.judges.dynamic_degree import load_raft
from rewarders.judges.image_rewards import Aesthetic, ImageReward
from rewarders.judges.pretrained import load_frozen
from rewarders.optical_flow.raft import Raft
from tests.support.tiny_encoders import tiny_bert, tiny_clip

WIDTH, PATCH, SIZE = 2 * HEAD, 8, 32
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 48, 40, 3), np.uint8)
PROMPT = Prompt(0, "p", "a robot walks")


class Block(nn.Module):
    """timm's ViT block, with the names of the published files."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 2 * WIDTH), "fc2": nn.Linear(2 * WIDTH, WIDTH)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, 2, HEAD)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attn["proj"](seen)
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class PublishedVit(nn.Module):
    """BLIP's vision tower, as the published code computes it."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (SIZE // PATCH) ** 2, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.pos_embed
        return self.norm(self.blocks(x))


@pytest.fixture(scope="module")
def vit() -> PublishedVit:
    torch.manual_seed(0)
    model = PublishedVit()
    for weights in model.parameters():
        nn.init.normal_(weights, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def bert() -> tuple[BertModel, Tensors]:
    """A BERT without token types, and its weights in the names of BLIP's text encoder."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    nn.init.zeros_(model.embeddings.token_type_embeddings.weight)
    state = {name: one for name, one in model.state_dict().items() if "token_type" not in name}
    state["embeddings.position_ids"] = torch.arange(40)[None]
    return model, state


def save(file: Path, **parts: Tensors) -> Path:
    """Writes the parts below their names, as a training's checkpoint."""
    weights = {f"{part}.{name}": one for part, state in parts.items() for name, one in state.items()}
    torch.save({"model": weights, "optimizer": {"state": {}}, "epoch": 6}, file)
    return file


def run(kind: str, file: Path, out: Path, base: str = "") -> list[str]:
    lines: list[str] = []
    convert(kind, file, out, base, lines.append)
    return lines


@pytest.mark.parametrize("kind", ["animereward_image", "animereward_character"])
def test_blips_vision_tower(kind: str, vit: PublishedVit, tmp_path: Path) -> None:
    head = {"weight": torch.ones(1, 4), "bias": torch.ones(1)}
    file = save(tmp_path / "checkpoint.pth", visual_encoder=vit.state_dict(), head_diff=head)
    lines = run(kind, file, tmp_path / "out")
    assert lines[0].startswith(f"{tmp_path / 'out'}: vision of ")
    assert lines[1:] == ["left out: head_diff (2)"]
    vision = Vision(tmp_path / "out", "cpu")
    images = vision.pixels(FRAMES)
    with torch.no_grad():
        ours = vision.tower(pixel_values=images).last_hidden_state
        assert torch.allclose(ours, vit(images), atol=1e-4)
    reward = VideoImageConsistency.create({"vision": str(tmp_path / "out")})
    assert 0 <= reward.score([FRAMES], [PROMPT])[0] <= 100


def test_blips_text_encoder(vit: PublishedVit, bert: tuple[BertModel, Tensors], tmp_path: Path) -> None:
    model, state = bert
    crossing = {"encoder.layer.0.crossattention.self.query.weight": torch.ones(2, 2)}
    file = save(tmp_path / "c.pth", visual_encoder=vit.state_dict(), text_encoder=state | crossing)
    run("animereward_text", file, tmp_path / "out", tiny_bert(tmp_path / "base"))
    text = Text(tmp_path / "out" / "text", "cpu")
    with torch.no_grad():
        theirs = model(**text.words("a robot walks", "cpu")).last_hidden_state[0, 0]
    assert torch.allclose(text("a robot walks"), theirs, atol=1e-6)
    folders = {role: str(tmp_path / "out" / role) for role in ("vision", "text")}
    assert 0 <= VideoTextConsistency.create(folders).score([FRAMES], [PROMPT])[0] <= 100


PUBLISHED = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
    "self_attn.q_proj.": "attn.in_proj_",
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}


def in_published_names(model: CLIPModel) -> Tensors:
    """Returns CLIP's weights in OpenAI's names; queries, keys and values of a layer are one tensor there."""
    published: Tensors = {}
    state = model.state_dict()
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        old = name
        for ours, theirs in PUBLISHED.items():
            old = old.replace(ours, theirs)
        if ".q_proj." in name:
            published[old] = torch.cat([state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
        else:
            published[old] = tensor.T if old in ("text_projection", "visual.proj") else tensor
    return published


def test_actionclip(tmp_path: Path) -> None:
    base = tiny_clip(tmp_path / "base")
    model = CLIPModel.from_pretrained(base).eval()
    weights = in_published_names(model)
    assert {"visual.proj", "transformer.resblocks.0.attn.in_proj_weight", "positional_embedding"} <= set(weights)
    file = save(tmp_path / "motion.pth", clip=weights, adapter={"frame_position_embeddings.weight": torch.ones(8, 16)})
    assert run("animereward_motion", file, tmp_path / "out", base)[1:] == ["left out: adapter (1)"]
    clip = {"clip": base}
    ours, theirs = PromptedMotion.create({"clip": str(tmp_path / "out")}), PromptedMotion.create(clip)
    assert torch.equal(ours.features([FRAMES], [PROMPT]), theirs.features([FRAMES], [PROMPT]))


def test_hps(tmp_path: Path) -> None:
    base = tiny_clip(tmp_path / "base")
    weights = in_published_names(CLIPModel.from_pretrained(base))
    torch.save({"epoch": 0, "state_dict": weights | {"attn_mask": torch.ones(2)}}, tmp_path / "hps.pt")
    assert len(run("hps", tmp_path / "hps.pt", tmp_path / "out", base)) == 1
    before, after = (
        CLIPModel.from_pretrained(base).state_dict(),
        load_frozen(CLIPModel, str(tmp_path / "out")).state_dict(),
    )
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    del weights["ln_final.bias"]
    torch.save(weights | {"odd": torch.ones(1)}, tmp_path / "less.pt")
    with pytest.raises(
        ConfigError, match=r"less\.pt: not a CLIPModel: missing: text_model\.final_layer_norm\.bias; unknown: odd$"
    ):
        run("hps", tmp_path / "less.pt", tmp_path / "none", base)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("single", [True, False])
def test_aesthetic_layers(single: bool, tmp_path: Path) -> None:
    base = tiny_clip(tmp_path / "base")
    layers = (
        nn.Sequential(nn.Linear(16, 1)) if single else nn.Sequential(nn.Linear(16, 4), nn.Dropout(), nn.Linear(4, 1))
    )
    state = layers[0].state_dict() if single else nn.ModuleDict({"layers": layers}).state_dict()
    torch.save(state, tmp_path / "layers.pth")
    run("aesthetic", tmp_path / "layers.pth", tmp_path / "out", base)
    judge = Aesthetic(JudgeConfig(kind="aesthetic", path=str(tmp_path / "out")), "cpu")
    probe = torch.randn(2, 16)
    assert torch.allclose(judge.layers(probe), layers.eval()(probe), atol=1e-6)
    torch.save({"other.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"other\.pth: not linear layers: unknown: other\.weight"):
        run("aesthetic", tmp_path / "other.pth", tmp_path / "none", base)


def test_raft(tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = Raft().state_dict()
    torch.save({f"module.{name}": one for name, one in weights.items()}, tmp_path / "raft-things.pth")
    run("raft", tmp_path / "raft-things.pth", tmp_path / "out")
    found = load_raft(str(tmp_path / "out")).state_dict()
    assert all(torch.equal(found[name], one) for name, one in weights.items())


def test_image_reward(vit: PublishedVit, tmp_path: Path) -> None:
    torch.manual_seed(2)
    sizes = {"vocab_size": 40, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "encoder_hidden_size": WIDTH, "max_position_embeddings": 40}
    tower = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(text_config=sizes, vision_config=tower)
    text = BlipForImageTextRetrieval(config).text_encoder.state_dict()
    parts = {f"visual_encoder.{name}": one for name, one in vit.state_dict().items()}
    parts |= {f"text_encoder.{name}": one for name, one in text.items()}
    parts |= {
        f"{name}_proj.{what}": torch.ones(*size)
        for name in ("vision", "text")
        for what, size in (("weight", (6, WIDTH)), ("bias", (6,)))
    }
    mlp = {"layers.0.weight": torch.randn(1, WIDTH), "layers.0.bias": torch.zeros(1)}
    file = save(tmp_path / "ImageReward.pt", blip=parts, mlp=mlp)
    run("image_reward", file, tmp_path / "out", tiny_bert(tmp_path / "base"))
    judge = ImageReward(JudgeConfig(kind="image_reward", path=str(tmp_path / "out")), "cpu")
    images = judge.pixels(FRAMES)
    with torch.no_grad():
        assert torch.allclose(judge.model.vision_model(pixel_values=images).last_hidden_state, vit(images), atol=1e-4)
    ours = judge.model.text_encoder.state_dict()
    assert all(torch.equal(ours[name], one) for name, one in text.items())
    assert np.isfinite(judge.score([FRAMES], [PROMPT])[0])


def test_a_transformers_folder_with_pickled_weights(tmp_path: Path) -> None:
    base = Path(tiny_clip(tmp_path / "base"))
    before = Vision(base, "cpu")(FRAMES)
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    torch.save(weights | {"score.weight": torch.ones(1)}, base / "pytorch_model.bin")
    assert run("transformers", base, tmp_path / "out")[1:] == ["left out: score (1)"]
    assert torch.equal(Vision(tmp_path / "out", "cpu")(FRAMES), before)
    assert not list((tmp_path / "out").glob("*.bin"))
    torch.save({"logit_scale": torch.ones(())}, base / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"base: not a complete CLIPModel: weights missing: "):
        run("transformers", base, tmp_path / "none")


def test_what_is_refused(vit: PublishedVit, tmp_path: Path) -> None:
    file = save(tmp_path / "c.pth", visual_encoder=vit.state_dict() | {"gate": torch.ones(1)})
    with pytest.raises(ConfigError, match=r"c\.pth: not a BlipVisionModel: unknown: gate$"):
        run("animereward_image", file, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"c\.pth: has no embeddings\.word_embeddings\.weight; it has nothing"):
        run("animereward_text", save(tmp_path / "c.pth", visual_encoder=vit.state_dict()), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"mps: allowed are aesthetic, image_reward, hps, raft, "):
        run("mps", file, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"exists; a new folder is needed"):
        run("hps", file, tmp_path)
    with pytest.raises(ConfigError, match=r"not a folder with pytorch_model\.bin"):
        run("transformers", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
