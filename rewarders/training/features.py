"""Computes the frozen encoders' features once per clip and caches them on disk, so that training takes minutes.

``FOLDER/KEY.safetensors`` holds one clip's row. KEY is a digest of the clip's file, caption and first frame, so a
changed clip is computed again, and an interrupted pass resumes. The files do not identify the models: to detect other
models, one cached row is recomputed and compared.
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
from common.errors.oom import reraise_oom
from common.files import replacing
from rewarders.anime_reward.trainable import TrainableReward
from rewarders.training.dataset import RatedDataset

ROW = "features"
EVERY = 10.0  # seconds between progress lines


class CachedRows:
    """The features of m clips, read from disk batch by batch: 30,000 clips of 49 frames take 7 GB in memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, chosen: np.ndarray) -> torch.Tensor:
        """Returns the rows at the positions `chosen` ``[n]``, 0 .. m-1, float32 ``[n, D]`` on the CPU."""
        return torch.stack([load_file(self._files[i])[ROW] for i in chosen])

    def only(self, chosen: np.ndarray) -> CachedRows:
        """Returns those at the positions `chosen`."""
        return CachedRows([self._files[i] for i in chosen])


def features(
    reward: TrainableReward, rated: RatedDataset, folder: Path, log: Callable[[str], None]
) -> tuple[np.ndarray, CachedRows, list[BadRow]]:
    """Returns the indices of the m usable clips, their features, and the bad rows.

    A row is bad if its clip cannot be decoded, the reward refuses it, or its features are not finite. Raises
    `ConfigError` if all rows are bad.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{cache_key(rated, i)}.safetensors" for i in range(len(rated.rows))]
    cached = [i for i, file in enumerate(files) if file.exists()]
    if cached:
        _check_cached(reward, rated, cached[0], files[cached[0]])
    missing = rated.by_first_frame(i for i, file in enumerate(files) if not file.exists())
    bad: dict[int, BadRow] = {}
    last_log = time.monotonic()
    for done, (i, clip) in enumerate(rated.clips(missing)):
        if time.monotonic() - last_log > EVERY:
            log(f"{reward.dimension}: features of {done}/{len(missing)} clips")
            last_log = time.monotonic()
        row = clip if isinstance(clip, BadRow) else _row(reward, rated, i, clip)
        if isinstance(row, BadRow):
            bad[i] = row
        else:
            _save_row(files[i], row)
    good = [i for i in range(len(files)) if i not in bad]
    if not good:
        raise ConfigError(f"{next(iter(bad.values()))}; none of {len(bad)} clips can be used")
    return np.array(good), CachedRows([files[i] for i in good]), [bad[i] for i in sorted(bad)]


def cache_key(rated: RatedDataset, i: int) -> str:
    """Returns the digest of clip `i`, its caption and its first frame."""
    parts = (digest(rated.clip_bytes(i)), digest(rated.rows[i].prompt.encode()), rated.first_frame_digest(i))
    return digest(*(part.encode() for part in parts))


def _row(reward: TrainableReward, rated: RatedDataset, i: int, clip: np.ndarray) -> torch.Tensor | BadRow:
    try:
        row = reward.features([clip], [rated.prompt(i)])[0].float().cpu()
    except ValueError as error:
        reraise_oom(error)
        return rated.bad(i, str(error))
    return row if torch.isfinite(row).all() else rated.bad(i, "its features are not finite")


def _save_row(file: Path, row: torch.Tensor) -> None:
    with replacing(file) as draft:
        save_file({ROW: row.contiguous()}, draft)


def _check_cached(reward: TrainableReward, rated: RatedDataset, i: int, file: Path) -> None:
    """Raises `ConfigError` unless cached row `i` equals the reward's features now, within rounding."""
    ((_, clip),) = rated.clips([i])
    now = _row(reward, rated, i, clip) if isinstance(clip, np.ndarray) else clip
    before = load_file(file)[ROW]
    if isinstance(now, BadRow) or now.shape != before.shape or not torch.allclose(now, before, rtol=1e-3, atol=1e-4):
        raise ConfigError(f"{file.parent}: these features come from other models or options; delete the folder")
