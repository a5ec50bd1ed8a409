"""Finds the clips to annotate, in a run or in a folder of one of three formats. Imports no torch.

```
run folder   ledger.sqlite, blobs/     held-out clips; source "base" or "version 12"
folder       ratings.jsonl             the clips of the ratings file (`common/data/ratings.py`)
folder       samples.json              the clips that `douga sample` wrote
set          candidates.jsonl          the candidates that `douga collect` made; source "base" or "version 12"
folder       any videos below it       NAME.txt next to NAME.mp4 is its caption; the subfolder is its source
```
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.candidate_set.rows import CandidateRow, folder_of, is_set, read_rows
from common.data.caption_files import CaptionFiles
from common.data.folders import files_of
from common.data.ratings import RatedClip, Ratings, read_ratings
from common.data.video import VIDEO_SUFFIXES, clip_length
from common.errors import ConfigError
from common.exchange.queries import HeldOutClip, heldout_clips
from deploy.run_dir import layout
from deploy.run_dir.samples import SAMPLES, read_samples
from rewarders.annotation.items import SurveyClip

RATINGS = "ratings.jsonl"
MAX_NAMED = 5  # maximum number of bad clips that are named on stderr


def find_clips(place: Path) -> tuple[Path, list[SurveyClip]]:
    """Returns (folder for the answers, playable clips) of a run or a folder.

    Clips that cannot be decoded are left out, with a message on stderr. Raises `ConfigError` if `place` is neither a
    run nor a folder, or if no clip is left.
    """
    folder, clips = _find(place)
    good = _playable(clips)
    if not good:
        raise ConfigError(f"{place}: contains no playable clip")
    return folder, good


def _find(place: Path) -> tuple[Path, list[SurveyClip]]:
    if is_set(place):
        return folder_of(place), _of_set(folder_of(place))
    folder = _run_folder(place)
    if folder is not None:
        return folder, [_of_run(clip) for clip in heldout_clips(folder)]
    if not place.is_dir():
        raise ConfigError(f"{place}: neither a run nor a folder")
    if (place / RATINGS).is_file():
        return place, _of_ratings(place)
    if (place / SAMPLES).is_file():
        return place, _of_samples(place)
    return place, _of_videos(place)


def _run_folder(place: Path) -> Path | None:
    if not any((folder / layout.CONFIG).is_file() for folder in (place, Path("runs") / place)):
        return None
    folder, config = layout.find_run(str(place))
    if config.simulate:
        raise ConfigError(f"{folder}: a simulated run has no clips")
    return folder


def _of_run(clip: HeldOutClip) -> SurveyClip:
    return SurveyClip(
        name=f"{clip.prompt_id}/{clip.candidate}",
        prompt=clip.text,
        source=_version(clip.version),
        character=clip.character,
        category=clip.category,
        read=clip.read,
        first_frame=clip.read_image,
    )


def _version(version: int) -> str:
    return f"version {version}" if version else "base"


def _of_ratings(place: Path) -> list[SurveyClip]:
    table = read_ratings(place / RATINGS)
    if table.bad:
        print(f"douga: {table.summary()}", file=sys.stderr)
    return [_of_rated(table, row) for row in table.rows]


def _of_rated(table: Ratings, row: RatedClip) -> SurveyClip:
    image = None if row.first_frame is None else table.place(row.first_frame)
    known = {"source": row.source, "character": row.character, "category": row.category, "seed": row.seed}
    return _of_files(table.place(row.clip), image, row.clip, row.prompt, **known)


def _of_samples(place: Path) -> list[SurveyClip]:
    return [_of_sample(place, record) for record in read_samples(place)]


def _of_sample(place: Path, record: dict[str, Any]) -> SurveyClip:
    image = place / record["image"] if record.get("image") else None
    more = {"source": _version(record.get("version", 0))}
    more |= {"character": record.get("character"), "category": record.get("category")}
    return _of_files(place / record["clip"], image, record["clip"], record["text"], **more)


def _of_set(place: Path) -> list[SurveyClip]:
    return [_of_candidate(place, row) for row in read_rows(place).values()]


def _of_candidate(place: Path, row: CandidateRow) -> SurveyClip:
    image = None if row.first_frame is None else place / row.first_frame
    more = {"source": _version(row.version), "character": row.character, "category": row.category}
    return _of_files(place / row.clip, image, row.clip, row.prompt, **more)


def _of_videos(place: Path) -> list[SurveyClip]:
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    shown = [folder for folder in folders if not any(part[0] == "." for part in folder.relative_to(place).parts)]
    videos = sorted(video for folder in shown for video in files_of(folder, VIDEO_SUFFIXES))
    texts = CaptionFiles(videos)
    for line in texts.strays():
        print(f"douga: {line}", file=sys.stderr)
    return [_of_file(place, path, texts.caption(path)) for path in videos]


def _of_file(place: Path, path: Path, text: str) -> SurveyClip:
    source = place.resolve().name if path.parent == place else str(path.parent.relative_to(place))
    return _of_files(path, None, str(path.relative_to(place)), text, source=source)


def _of_files(clip: Path, image: Path | None, name: str, prompt: str, **more: Any) -> SurveyClip:
    read_image = None if image is None else image.read_bytes
    files = {"file": clip, "first_frame_file": image, "read": clip.read_bytes, "first_frame": read_image}
    return SurveyClip(name, prompt, **files, **more)


def _playable(clips: Sequence[SurveyClip]) -> list[SurveyClip]:
    faults = [(clip, _fault(clip)) for clip in clips]
    bad = [f"{clip.name}: {fault}" for clip, fault in faults if fault is not None]
    for line in bad[:MAX_NAMED]:
        print(f"douga: {line}; left out", file=sys.stderr)
    if len(bad) > MAX_NAMED:
        print(f"douga: {len(bad)} clips left out in total", file=sys.stderr)
    return [clip for clip, fault in faults if fault is None]


def _fault(clip: SurveyClip) -> str | None:
    try:
        frames, _ = clip_length(clip.read())
    except (OSError, ValueError, RuntimeError) as error:
        return str(error)
    return None if frames else "no frames"
