"""What frozen encoders see in clips, computed once per clip and kept on disk: training then takes minutes, not days.

``FOLDER/KEY.safetensors`` holds one clip's row; KEY is a digest of the clip's file, its caption and its first frame, so
a clip that changes is looked at anew, and an interrupted pass goes on where it stopped. Which models made the rows the
files cannot say: one row that was kept is computed again and compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from common.data.ratings import BadRow
from common.digests import digest
from common.errors import ConfigError
from common.errors.disk import writing
from common.errors.oom import reraise_oom
from common.messages import Prompt
from rewarders.anime_reward.trainable import TrainableReward
from rewarders.training.dataset import Rated

ROW = "features"
EVERY = 10.0  # seconds between lines of progress


def features(
    reward: TrainableReward, rated: Rated, folder: Path, log: Callable[[str], None]
) -> tuple[np.ndarray, torch.Tensor, list[BadRow]]:
    """(indices of the m clips that have features, float32 ``[m, D]`` on the CPU, the rows that have none).

    A clip that cannot be decoded, that the reward refuses, or whose features are no finite numbers, has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = rated.prompts()
    places = [folder / f"{_key(rated, i, prompt)}.safetensors" for i, prompt in enumerate(prompts)]
    kept = [i for i, place in enumerate(places) if place.exists()]
    if kept:
        _check(reward, rated, kept[0], prompts, places[kept[0]])
    missing = [i for i, place in enumerate(places) if not place.exists()]
    bad: dict[int, BadRow] = {}
    said = time.monotonic()
    for done, (i, clip) in enumerate(rated.clips(missing)):
        if time.monotonic() - said > EVERY:
            log(f"{reward.dimension}: features of {done}/{len(missing)} clips")
            said = time.monotonic()
        row = clip if isinstance(clip, BadRow) else _row(reward, rated, i, clip, prompts[i])
        if isinstance(row, BadRow):
            bad[i] = row
        else:
            _keep(places[i], row)
    good = [i for i in range(len(places)) if i not in bad]
    if not good:
        raise ConfigError(f"{next(iter(bad.values()))}; no good clip of {len(bad)}")
    return np.array(good), torch.stack([load_file(places[i])[ROW] for i in good]), list(bad.values())


def _key(rated: Rated, i: int, prompt: Prompt) -> str:
    parts = (rated.clip_bytes(i), prompt.text.encode(), prompt.image or b"")
    return digest(*(digest(part).encode() for part in parts))


def _row(reward: TrainableReward, rated: Rated, i: int, clip: np.ndarray, prompt: Prompt) -> torch.Tensor | BadRow:
    try:
        row = reward.features([clip], [prompt])[0].float().cpu()
    except ValueError as error:
        reraise_oom(error)
        return rated.bad(i, str(error))
    return row if torch.isfinite(row).all() else rated.bad(i, "its features are no finite numbers")


def _keep(place: Path, row: torch.Tensor) -> None:
    scratch = place.with_suffix(".tmp")
    with writing(place):
        save_file({ROW: row.contiguous()}, scratch)
        scratch.replace(place)


def _check(reward: TrainableReward, rated: Rated, i: int, prompts: Sequence[Prompt], place: Path) -> None:
    """`ConfigError` unless the kept row `i` is what the reward sees now, but for rounding."""
    ((_, clip),) = rated.clips([i])
    now = _row(reward, rated, i, clip, prompts[i]) if isinstance(clip, np.ndarray) else clip
    before = load_file(place)[ROW]
    if isinstance(now, BadRow) or now.shape != before.shape or not torch.allclose(now, before, rtol=1e-3, atol=1e-4):
        raise ConfigError(f"{place.parent}: these features were made by other models or options; delete the folder")
