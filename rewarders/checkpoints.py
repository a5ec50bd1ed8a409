"""Heads on disk: per dimension one safetensors file and one JSON file that says what it is.

```
FOLDER/smoothness.json        {"class": "VideoSmoothness", "models": {"vision": "siglip"}, "options": {"frames": 24}...}
FOLDER/smoothness.safetensors the head
FOLDER/siglip/                a model of transformers; or a folder elsewhere, or a hub id
```

A file without a class is one of the toon world's heads: small whole networks, all six of which lie in one folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import common.toon
from common.errors import ConfigError
from common.errors.oom import reraise_oom
from rewarders.interface import Reward
from rewarders.toon_heads.appeal import Appeal
from rewarders.toon_heads.character import CharacterConsistency
from rewarders.toon_heads.head import SHAPE, AnimeHead
from rewarders.toon_heads.image import ImageConsistency
from rewarders.toon_heads.motion import Motion
from rewarders.toon_heads.smoothness import Smoothness
from rewarders.toon_heads.text import TextConsistency
from rewarders.toon_heads.trunk import vocabulary

if TYPE_CHECKING:
    from rewarders.anime_reward import FullReward

FORMAT = 1
HEADS: dict[str, type[AnimeHead]] = {
    head.dimension: head
    for head in (Smoothness, Motion, Appeal, TextConsistency, ImageConsistency, CharacterConsistency)
}


def save_heads(heads: Sequence[AnimeHead | FullReward], folder: Path) -> None:
    """Write ``DIMENSION.safetensors`` and ``DIMENSION.json`` for each head; pretrained models stay where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for head in heads:
        network = head if isinstance(head, AnimeHead) else head.head
        state = {name: tensor.detach().to("cpu").contiguous() for name, tensor in network.state_dict().items()}
        save_file(state, folder / f"{head.dimension}.safetensors")
        about = _description(head) if isinstance(head, AnimeHead) else {"format": FORMAT, **head.description(folder)}
        (folder / f"{head.dimension}.json").write_text(json.dumps(about, indent=2) + "\n")


def load_heads(path: str, device: str = "cpu") -> list[Reward]:
    """The heads of a folder (``toon``: the embedded ones), ready to score on `device`.

    A folder of full-size heads may have any of the six dimensions; one of toon heads has all. `ConfigError` names the
    file that is missing, broken, or of another format, and what of a head does not fit its models.
    """
    folder = Path(common.toon.__path__[0]) / "weights" / "heads" if path == "toon" else Path(path)
    if not folder.is_dir():
        raise ConfigError(f"reward.path = {path!r}: no folder of reward heads at {folder}")
    said = {name: _read(folder / f"{name}.json") for name in HEADS if (folder / f"{name}.json").is_file()}
    full = {name for name, about in said.items() if isinstance(about, dict) and "class" in about}
    return [
        _load_full(name, said[name], folder, device) if name in full else _load_toon(HEADS[name](), folder, device)
        for name in (said if full else HEADS)
    ]


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file}: no JSON: {_line(error)}") from None


def _load_full(dimension: str, said: dict[str, Any], folder: Path, device: str) -> Reward:
    """A head over pretrained models, as its file says."""
    from rewarders.anime_reward import CLASSES  # noqa: PLC0415 - transformers takes seconds, and toon heads need none of it

    about = folder / f"{dimension}.json"
    kind = CLASSES.get(said["class"])
    if said.get("format") != FORMAT or kind is None or kind.dimension != dimension:
        known = ", ".join(name for name, one in CLASSES.items() if one.dimension == dimension)
        raise ConfigError(
            f"{about}: format {said.get('format')!r}, class {said['class']!r}; "
            f"{dimension} of format {FORMAT} is scored by {known}"
        )
    try:
        reward = kind(dict(said.get("models", {})), dict(said.get("options", {})), device, folder)
    except (TypeError, ValueError) as error:  # ConfigError is a ValueError
        raise ConfigError(f"{about}: {_line(error)}") from None
    reward.head.load_state_dict(_weights(dimension, reward.head, folder))
    reward.head.requires_grad_(False)
    if reward.digest != said.get("digest"):
        raise ConfigError(f"{about}: its digest does not fit {dimension}.safetensors, its options and its models")
    return reward


def _load_toon(head: AnimeHead, folder: Path, device: str) -> AnimeHead:
    about, weights = folder / f"{head.dimension}.json", folder / f"{head.dimension}.safetensors"
    if not about.is_file():
        raise ConfigError(f"{folder}: {about.name} and {weights.name} must both be there")
    said = _read(about)
    head.load_state_dict(_weights(head.dimension, head, folder))
    if said != _description(head):
        wrong = [
            key for key, value in _description(head).items() if not isinstance(said, dict) or said.get(key) != value
        ]
        raise ConfigError(f"{about}: {', '.join(wrong) or 'extra keys'} do not fit {weights.name} and this program")
    return head.to(device).eval().requires_grad_(False)


def _weights(dimension: str, network: torch.nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a dimension's file; `ConfigError` unless they are those of `network`, by name and shape."""
    file = folder / f"{dimension}.safetensors"
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        state = cast(dict[str, torch.Tensor], load_file(file))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: {dimension}.json and {file.name} must both be there") from None
    except (ValueError, SafetensorError, RuntimeError) as error:
        reraise_oom(error)
        raise ConfigError(f"{file}: no weights of the {dimension} head: {_line(error)}") from None
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != wanted:
        name = min(name for name in found.keys() | wanted if found.get(name) != wanted.get(name))
        raise ConfigError(
            f"{file}: no weights of the {dimension} head: {name} is {found.get(name, 'missing')}, "
            f"not {wanted.get(name, 'known')}"
        )
    return state


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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
