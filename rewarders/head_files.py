"""Reward heads on disk: per dimension a safetensors file with the weights and a JSON file that describes them.

```
FOLDER/smoothness.json        {"class": "VideoSmoothness", "models": {"vision": "siglip"}, "options": {"frames": 81}...}
FOLDER/smoothness.safetensors the head
FOLDER/siglip/                a transformers model; it may also be a folder elsewhere or a hub id
FOLDER/smoothness-vision/     an encoder that was fine-tuned with the head; the JSON file has its size in "encoders"
```

There are two formats:

- `EncoderFormat`: the description names a class of `rewarders.anime_reward`; the weights are a small head over
  pretrained encoders, as published or fine-tuned. A folder may have any of the six dimensions.
- `ToonFormat`: the description names no class; the weights are a whole toon network. A folder has all six.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from common.toon import WEIGHTS
from rewarders.interface import Reward
from rewarders.toon_heads.heads import CLIP_SHAPE, HEADS, ToonHead
from rewarders.toon_heads.network import vocabulary

if TYPE_CHECKING:
    from rewarders.anime_reward import EncoderReward

FORMAT = 1


def save_heads(heads: Sequence[ToonHead | EncoderReward], folder: Path) -> None:
    """Writes ``DIMENSION.safetensors`` and ``DIMENSION.json`` for each head. Pretrained models are not copied."""
    folder.mkdir(parents=True, exist_ok=True)
    for head in heads:
        if isinstance(head, ToonHead):
            network, description = head, ToonFormat.describe(head)
        else:
            network, description = head.head, EncoderFormat.describe(head, folder)
        state = {name: tensor.detach().to("cpu").contiguous() for name, tensor in network.state_dict().items()}
        save_file(state, folder / f"{head.dimension}.safetensors")
        (folder / f"{head.dimension}.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def save_tuned(reward: EncoderReward, folder: Path) -> EncoderReward:
    """Writes the fine-tuned encoders of `reward` to ``DIMENSION-ROLE`` in `folder`, then the head.

    Returns the reward as it is loaded from there: its digest covers the encoders' files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {role: folder.resolve() / f"{reward.dimension}-{role}" for role in reward.encoders}
    for role, place in own.items():
        reward.encoders[role].save(place)
    models = reward.models | {role: str(place) for role, place in own.items()}
    saved = type(reward)(models, reward.options, reward.device, reward.base, tuned=own)
    saved.head.load_state_dict(reward.head.state_dict())
    saved.head.requires_grad_(False)
    save_heads([saved], folder)
    return saved


def load_heads(path: str, device: str = "cpu") -> list[Reward]:
    """Returns the heads of a folder (``toon``: the embedded ones), ready to score on `device`.

    Raises `ConfigError` if a file is missing, damaged or of another format, or if a head does not fit its models. The
    message names the file.
    """
    folder, found = head_descriptions(path)
    if not any(map(is_encoder_description, found.values())):
        return [ToonFormat.load(name, _needed(name, found, folder), folder, device) for name in HEADS]
    return [
        EncoderFormat.load(name, description, folder, device)
        if is_encoder_description(description)
        else ToonFormat.load(name, description, folder, device)
        for name, description in found.items()
    ]


def head_classes(path: str) -> dict[str, type]:
    """Returns the class of each head that `load_heads` would load, by dimension, without loading it. Raises like it for
    a missing folder or description."""
    folder, found = head_descriptions(path)
    return {
        name: EncoderFormat.class_of(name, one, folder / f"{name}.json") if is_encoder_description(one) else ToonHead
        for name, one in found.items()
    }


def head_descriptions(path: str) -> tuple[Path, dict[str, Any]]:
    """The folder of heads, and the content of its JSON files by dimension."""
    folder = WEIGHTS / "heads" if path == "toon" else Path(path)
    if not folder.is_dir():
        raise ConfigError(f"reward.path = {path!r}: no folder of reward heads at {folder}")
    return folder, {name: _read(folder / f"{name}.json") for name in HEADS if (folder / f"{name}.json").is_file()}


def is_encoder_description(description: object) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON file describes an `EncoderReward`; every other one describes a `ToonHead`."""
    return isinstance(description, dict) and "class" in description


class EncoderFormat:
    """A trained head over pretrained encoders: class, models and options are in the description."""

    @staticmethod
    def describe(reward: EncoderReward, folder: Path) -> dict[str, object]:
        """Returns the content of the JSON file in `folder`."""
        return {"format": FORMAT, **reward.description(folder)}

    @staticmethod
    def load(dimension: str, description: dict[str, Any], folder: Path, device: str) -> Reward:
        """Opens the models, loads the head and checks the digest over both."""
        file = folder / f"{dimension}.json"
        kind = EncoderFormat.class_of(dimension, description, file)
        _check_method(kind.METHOD, description.get("method"), file)
        try:
            models, options = dict(description.get("models", {})), dict(description.get("options", {}))
            reward = kind(models, options, device, folder, tuple(description.get("encoders", ())))
        except (TypeError, ValueError) as error:  # ConfigError is a ValueError
            raise ConfigError(f"{file}: {one_line(error)}") from None
        reward.head.load_state_dict(_weights(dimension, reward.head, folder))
        reward.head.requires_grad_(False)
        if reward.digest != description.get("digest"):
            raise ConfigError(f"{file}: its digest does not match {dimension}.safetensors, its options and its models")
        return reward

    @staticmethod
    def class_of(dimension: str, description: dict[str, Any], file: Path) -> type[EncoderReward]:
        """Returns the class that the description names. Raises `ConfigError` for another one or another format."""
        from rewarders.anime_reward import CLASSES  # noqa: PLC0415 - transformers takes seconds; toon heads do not need it

        kind = CLASSES.get(description["class"])
        if description.get("format") != FORMAT or kind is None or kind.dimension != dimension:
            allowed = ", ".join(name for name, one in CLASSES.items() if one.dimension == dimension)
            raise ConfigError(
                f"{file}: format {description.get('format')!r}, class {description['class']!r}; "
                f"allowed for {dimension} in format {FORMAT}: {allowed}"
            )
        return kind


class ToonFormat:
    """A whole toon network: the description repeats its row of `HEADS`, so that a changed row is detected."""

    @staticmethod
    def describe(head: ToonHead) -> dict[str, object]:
        """Returns the content of the JSON file."""
        spec = HEADS[head.dimension]
        return {
            "format": FORMAT,
            "dimension": head.dimension,
            "clip": list(CLIP_SHAPE),
            "views": list(spec.views),
            "words": list(vocabulary()) if spec.caption else [],
            "parameters": sum(parameter.numel() for parameter in head.parameters()),
            "digest": head.digest,
        }

    @staticmethod
    def load(dimension: str, description: object, folder: Path, device: str) -> Reward:
        """Loads the network and checks it against its description."""
        head = ToonHead(dimension)
        head.load_state_dict(_weights(dimension, head, folder))
        expected = ToonFormat.describe(head)
        if description != expected:
            found = description if isinstance(description, dict) else {}
            wrong = [key for key, value in expected.items() if key not in found or found[key] != value]
            raise ConfigError(
                f"{folder / f'{dimension}.json'}: differs from {dimension}.safetensors and this program "
                f"in {', '.join(wrong) or 'extra keys'}"
            )
        return head.to(device).eval().requires_grad_(False)


def _check_method(now: Mapping[str, str], recorded: object, file: Path) -> None:
    """Raises `ConfigError` if a head was trained on other inputs than it would get now, such as other frames."""
    before = recorded if isinstance(recorded, dict) else {}
    for name, value in now.items():
        if before.get(name) != value:
            raise ConfigError(
                f"{file}: trained with {name} = {before.get(name, 'unknown')}; this program has {value!r}: "
                "train the head again"
            )


def _needed(dimension: str, found: dict[str, Any], folder: Path) -> Any:
    if dimension not in found:
        raise ConfigError(f"{folder}: {dimension}.json and {dimension}.safetensors are both required")
    return found[dimension]


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON: {one_line(error)}") from None


def _weights(dimension: str, network: torch.nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file. Raises `ConfigError` unless their names and shapes are those of `network`."""
    file = folder / f"{dimension}.safetensors"
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        state = cast(dict[str, torch.Tensor], load_file(file))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: {dimension}.json and {file.name} are both required") from None
    except (ValueError, SafetensorError, RuntimeError) as error:
        reraise_oom(error)
        raise ConfigError(f"{file}: not the weights of the {dimension} head: {one_line(error)}") from None
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        name = min(name for name in found.keys() | expected if found.get(name) != expected.get(name))
        raise ConfigError(
            f"{file}: not the weights of the {dimension} head: {name} is {found.get(name, 'missing')}, "
            f"expected {expected.get(name, 'no such tensor')}"
        )
    return state
