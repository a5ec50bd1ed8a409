"""The files of a candidate set. Imports no torch.

```
SET/set.json                  what all candidates share: format, model, sizes, sampler settings
SET/candidates.jsonl          one row per candidate: prompt, seed, weights, raw scores, files and their digests
SET/prompts/KEY.safetensors   prompt_embeds [L, D] and, for image-to-video models, image_latent [1, C, h, w]
SET/prompts/KEY.png           first frame
SET/prompts/empty.safetensors prompt_embeds [L, D] of the empty caption
SET/clips/NAME.mp4            the clip
SET/latents/NAME.safetensors  latents [F, C, h, w], the sampler's final x0, VAE-scaled
```

KEY is a digest of caption and first frame. NAME is KEY, the start of the weights' digest, and the seed: a candidate has
the same name in every set. Candidates of one prompt and one set of weights are a group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.config import RunConfig, leaves
from common.errors import ConfigError, CorruptDataError, NotFoundError

FORMAT = 1
SETTINGS, ROWS = "set.json", "candidates.jsonl"
PROMPTS, CLIPS, LATENTS = "prompts", "clips", "latents"
EMPTY = f"{PROMPTS}/empty.safetensors"
WEIGHTS_DIGITS = 8  # of the weights' digest in names
SET = "candidates"  # folder of a set in the folder of the run that collected it
KEPT = "kept"  # folder of the set with the candidates that a run trained on, in the run's folder
POLICY = "transformer"  # the part of a model that is trained; sets of different policies can be merged
BATCHING = ("candidates", "micro_batch", "offload", "compile", "vae_tiling")  # sampler keys that need not be equal

NonEmpty = Annotated[str, Field(min_length=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class CandidateRow(BaseModel):
    """One candidate, immutable. Files are relative to the set's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_key: Digest
    prompt_id: NonEmpty
    prompt: NonEmpty
    first_frame: NonEmpty | None = None
    character: NonEmpty | None = None
    category: NonEmpty | None = None
    condition: NonEmpty  # safetensors file with prompt_embeds and image_latent
    clip: NonEmpty
    clip_digest: Digest
    latents: NonEmpty
    latents_digest: Digest  # of the file
    seed: int
    index: int = Field(ge=0)  # 0 .. N-1 in the group as it was sampled
    version: int = Field(ge=0)  # in the run that sampled it
    weights: Digest  # of the policy's weights
    scores: dict[NonEmpty, Finite] = {}  # dimension -> raw score
    scored_by: dict[NonEmpty, str] = {}  # dimension -> digest of the reward models
    # Of a run that trained on the group; None otherwise.
    ordinal: int | None = Field(default=None, ge=0)  # of the group in that run
    selected: int | None = Field(default=None, ge=0)  # place in its selection, of a pair 0: chosen, 1: rejected
    weight: Finite | None = None  # in its selection

    @property
    def name(self) -> str:
        """The candidate's name, the same in every set."""
        return candidate_name(self.prompt_key, self.weights, self.seed)

    @property
    def group(self) -> tuple[str, str]:
        """What the candidates of a group share: the prompt's key and the weights' digest."""
        return self.prompt_key, self.weights

    def files(self) -> list[str]:
        """All files that the row refers to."""
        return [self.condition, self.clip, self.latents, *([self.first_frame] if self.first_frame else [])]


@dataclass(frozen=True)
class SetSettings:
    """What all candidates of a set share: fingerprints of the model's parts, and configuration keys."""

    model: Mapping[str, str]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, config: RunConfig, model: Mapping[str, str]) -> SetSettings:
        """The settings of candidates that a run with `config` samples."""
        size = config.model.model_dump(mode="json", exclude={"path", "device"})
        sampler = config.sampler.model_dump(mode="json", exclude=set(BATCHING))
        return cls(dict(model), leaves({"model": size, "sampler": sampler}))

    def check_same(self, where: Path | str, other: SetSettings, sampler: bool = True) -> None:
        """Raises `ConfigError` if `other` differs: in the model, except for the policy, or in a setting.

        `where` names the owner of these settings. Without `sampler`, the samplers' settings may differ.
        """
        found = [
            f"the model's {part}" for part in self.model if part != POLICY and self.model[part] != other.model.get(part)
        ]
        for key in sorted(self.settings.keys() | other.settings.keys()):
            one, two = self.settings.get(key), other.settings.get(key)
            if one != two and (sampler or not key.startswith("sampler.")):
                found.append(f"{key} ({one!r} there, {two!r} here)")
        if found:
            raise ConfigError(f"{where}: the candidates there were made with other settings: {', '.join(found)}")

    def to_json(self) -> str:
        """The content of set.json."""
        content = {"format": FORMAT, "model": dict(self.model), "settings": dict(self.settings)}
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_settings(folder: Path) -> SetSettings:
    """Reads set.json. Raises `NotFoundError` without one, `CorruptDataError` or `ConfigError` if it is not readable."""
    path = folder / SETTINGS
    try:
        content = json.loads(path.read_text("utf-8"))
        number, model, settings = content["format"], content["model"], content["settings"]
    except FileNotFoundError:
        raise NotFoundError(f"{folder}: no candidate set (no {SETTINGS}); `douga collect` makes one") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"{path}: not the settings of a candidate set: {error!r}") from None
    if number != FORMAT:
        raise ConfigError(f"{path}: format {number}; this version of douga reads format {FORMAT}")
    return SetSettings(model, settings)


def is_set(folder: Path) -> bool:
    """Whether a folder is a candidate set, or a run with one."""
    return (folder / SETTINGS).is_file() or (folder / SET / SETTINGS).is_file()


def folder_of(place: Path) -> Path:
    """The folder of a set, given itself or the run that collected it."""
    return place / SET if (place / SET / SETTINGS).is_file() else place


def candidate_name(key: str, weights: str, seed: int) -> str:
    """The name of the candidate that `weights` sample for prompt `key` with `seed`."""
    return f"{key}-{weights[:WEIGHTS_DIGITS]}-{seed}"


def read_rows(folder: Path) -> dict[str, CandidateRow]:
    """The rows of the set in `folder` by name, in the order of the file, without a torn last one.

    Raises `CorruptDataError` naming file and line of a broken row.
    """
    path, found = folder / ROWS, {}
    text = path.read_text("utf-8") if path.exists() else ""
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], start=1):
        row = _parse_row(line, f"{path}:{number}")
        found[row.name] = row
    return found


def _parse_row(text: str, where: str) -> CandidateRow:
    try:
        return CandidateRow.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise CorruptDataError(f"{where}: {f'{name}: ' if name else ''}{first['msg']}") from None
