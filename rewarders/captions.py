"""The text encoders of a configuration's heads and judges, without their weights: what they read of captions.

A judge server is asked for its own. Judges that take captions of any length are not among them, nor are classes
without `text_reader`, models that are not on this machine, and servers that do not answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from common.config import JudgeConfig, RewardConfig
from common.errors import ConfigError
from common.models.captions import CaptionReader, TextReader
from rewarders.anime_reward import CLASSES
from rewarders.anime_reward.encoders import CaptionTokenizer, resolve_folder
from rewarders.head_files import head_descriptions, is_encoder_description
from rewarders.judges.registry import REWARD_JUDGES, class_of_judge
from rewarders.judges.remote import RemoteJudge

PATIENCE = 10.0  # seconds
TEXT = "text"  # the role of the model that reads the caption


def text_readers(config: RewardConfig) -> Iterator[CaptionReader]:
    """One for each head and judge that cuts captions. Raises `ConfigError` for a missing folder of heads."""
    yield from head_readers(config.path)
    for name, judge in config.judges.items():
        yield from judge_readers(f"{REWARD_JUDGES}.{name}", judge)


def head_readers(path: str) -> Iterator[CaptionReader]:
    """Those of the heads in a folder. Raises `ConfigError` if it is missing."""
    folder, heads = head_descriptions(path) if path not in ("", "toon") else (Path(), {})
    for name, description in heads.items():
        if is_encoder_description(description) and TEXT in getattr(CLASSES.get(description["class"]), "ROLES", ()):
            with suppress(ConfigError, OSError, ValueError):
                yield _of_head(f"head {name}", resolve_folder(description["models"][TEXT], folder))


def judge_readers(name: str, judge: JudgeConfig) -> Iterator[CaptionReader]:
    """Those of a judge that messages call `name`. A server is given `PATIENCE` seconds."""
    with suppress(ConfigError):
        kind = class_of_judge(name, judge)
        if kind is RemoteJudge:
            asked = judge.model_copy(update={"timeout": min(judge.timeout, PATIENCE), "retries": 0})
            yield from RemoteJudge(asked).readers(name)
        elif found := (read := getattr(kind, "text_reader", None)) and read(judge):
            yield TextReader(name, *found)


def _of_head(name: str, folder: Path | None) -> TextReader:
    if folder is None:
        raise ConfigError(f"{name}: not on this machine")
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    words = CaptionTokenizer(TEXT, folder, getattr(config, "text_config", config))
    return TextReader(name, words.tokenizer, words.length)
