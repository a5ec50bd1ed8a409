"""The text encoders of a configuration's heads and judges, without their weights: what they read of captions.

Judges that take captions of any length are not among them, nor are remote ones, classes without `text_reader`, and
models that are not on this machine: they are opened where clips are scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from common.config import RewardConfig
from common.errors import ConfigError
from common.models.captions import TextReader
from rewarders.anime_reward import CLASSES
from rewarders.anime_reward.encoders import CaptionTokenizer, resolve_folder
from rewarders.head_files import head_descriptions, is_encoder_description
from rewarders.judges.registry import REWARD_JUDGES, class_of_judge

TEXT = "text"  # the role of the model that reads the caption


def text_readers(config: RewardConfig) -> Iterator[TextReader]:
    """One for each head and judge that cuts captions. Raises `ConfigError` for a missing folder of heads."""
    folder, heads = head_descriptions(config.path) if config.path else (Path(), {})
    for name, description in heads.items():
        if is_encoder_description(description) and TEXT in getattr(CLASSES.get(description["class"]), "ROLES", ()):
            with suppress(ConfigError, OSError, ValueError):
                yield _of_head(f"head {name}", resolve_folder(description["models"][TEXT], folder))
    for name, judge in config.judges.items():
        with suppress(ConfigError):
            read = getattr(class_of_judge(name, judge), "text_reader", None)
            if found := read and read(judge):
                yield TextReader(f"{REWARD_JUDGES}.{name}", *found)


def _of_head(name: str, folder: Path | None) -> TextReader:
    if folder is None:
        raise ConfigError(f"{name}: not on this machine")
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    words = CaptionTokenizer(TEXT, folder, getattr(config, "text_config", config))
    return TextReader(name, words.tokenizer, words.length)
