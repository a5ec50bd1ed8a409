"""Heads on disk: per dimension one safetensors file and one JSON file that says what it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import common.toon
from common.config import ConfigError
from common.memory import pass_on
from rewarders.anime.appeal import Appeal
from rewarders.anime.character import CharacterConsistency
from rewarders.anime.head import SHAPE, AnimeHead
from rewarders.anime.image import ImageConsistency
from rewarders.anime.motion import Motion
from rewarders.anime.smoothness import Smoothness
from rewarders.anime.text import TextConsistency
from rewarders.anime.trunk import vocabulary

FORMAT = 1
HEADS: dict[str, type[AnimeHead]] = {
    head.dimension: head
    for head in (Smoothness, Motion, Appeal, TextConsistency, ImageConsistency, CharacterConsistency)
}


def save_heads(heads: Sequence[AnimeHead], folder: Path) -> None:
    """Write ``DIMENSION.safetensors`` and ``DIMENSION.json`` for each head."""
    folder.mkdir(parents=True, exist_ok=True)
    for head in heads:
        state = {name: tensor.detach().to("cpu").contiguous() for name, tensor in head.state_dict().items()}
        save_file(state, folder / f"{head.dimension}.safetensors")
        text = json.dumps(_description(head), indent=2)
        (folder / f"{head.dimension}.json").write_text(text + "\n")


def load_heads(path: str, device: str = "cpu") -> list[AnimeHead]:
    """The six heads of a folder (``toon``: the embedded ones), ready to score on `device`.

    `ConfigError` names the file that is missing, broken, or of another format.
    """
    folder = Path(common.toon.__path__[0]) / "weights" / "heads" if path == "toon" else Path(path)
    if not folder.is_dir():
        raise ConfigError(f"reward.path = {path!r}: no folder of reward heads at {folder}")
    return [_load(kind(), folder).to(device).eval().requires_grad_(False) for kind in HEADS.values()]


def _description(head: AnimeHead) -> dict[str, object]:
    return {
        "format": FORMAT,
        "dimension": head.dimension,
        "clip": list(SHAPE),
        "views": list(head.VIEWS),
        "words": list(vocabulary()) if head.CAPTION else [],
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "digest": head.digest,
    }


def _load(head: AnimeHead, folder: Path) -> AnimeHead:
    about, weights = folder / f"{head.dimension}.json", folder / f"{head.dimension}.safetensors"
    try:
        said = json.loads(about.read_text())
        state: dict[str, torch.Tensor] = load_file(weights)
        head.load_state_dict(state)
    except FileNotFoundError:
        raise ConfigError(f"{folder}: {about.name} and {weights.name} must both be there") from None
    except (ValueError, SafetensorError, RuntimeError) as error:
        pass_on(error)
        raise ConfigError(f"{weights}: no weights of the {head.dimension} head: {_line(error)}") from None
    if said != _description(head):
        wrong = [
            key for key, value in _description(head).items() if not isinstance(said, dict) or said.get(key) != value
        ]
        raise ConfigError(f"{about}: {', '.join(wrong) or 'extra keys'} do not fit {weights.name} and this program")
    return head


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
