"""Reads results of the official VBench and VBench-I2V packages back, as figures of the clips that were exported.

Both packages write NAME_eval_results.json, one for each call, with one entry for each dimension:

```
{"subject_consistency": [0.95, [{"video_path": "DIR/LABEL/PROMPT-0.mp4", "video_results": 0.94}, ...]],
 "camera_motion":       [0.50, {"pan_left": 0.5, ...}, [{"video_path": ..., "video_results": 1.0, ...}, ...]]}
```

The first element is the mean over the clips, 0..1. A clip's value is 0..1 too, or true and false (dynamic degree), but
for those of `SCALES`. Source: `evaluate` and the `compute_` functions of the public code of VBench and VBench-I2V.

A clip is known by the name of its file, and its model by the folder around it (`deploy/evaluation/vbench.py`). Figures
are named vbench.DIMENSION and are percent, as papers report them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from common.candidate_set.rows import CandidateRow
from common.digests import digest
from common.errors import ConfigError
from deploy.evaluation.figures import MeasuredModel
from deploy.evaluation.vbench import named_clips
from deploy.evaluation.vbench_scores import aggregate_scores

PREFIX = "vbench."  # of the figures' names
SCALES = {"imaging_quality": 100.0}  # dimension -> the best value of a clip; 1 for all others
TOLERANCE = 0.01  # between a dimension's mean and that of its clips: VBench averages some over frames
NAMED = 5  # clips that a line names


@dataclass(frozen=True)
class ClipResult:
    """One clip's value in one dimension, percent."""

    dimension: str
    video: Path
    value: float


@dataclass
class ModelResults:
    """What was read for one model. `values`: candidate -> dimension -> percent."""

    label: str
    clips: Mapping[str, CandidateRow]  # by the name of the exported file
    values: dict[str, dict[str, float]] = field(default_factory=dict)

    def take(self, result: ClipResult) -> None:
        """Adds a result of a clip in `clips`. Raises `ConfigError` if the clip has another one in this dimension."""
        found = self.values.setdefault(self.clips[result.video.name].name, {})
        first = found.setdefault(result.dimension, result.value)
        if first != result.value:
            raise ConfigError(
                f"{result.dimension}: a second result for {result.video.name!r} of {self.label}, {result.value:g} "
                f"after {first:g}; give the results of one run of VBench"
            )

    def missing(self, dimensions: Sequence[str]) -> str:
        """A line that names the clips without a result in any of `dimensions`; empty if all have one."""
        lacks = {name: [one for one in dimensions if one not in self.values.get(row.name, {})]
                 for name, row in self.clips.items()}  # fmt: skip
        clips = [name for name, lacking in lacks.items() if lacking]
        if not clips:
            return ""
        which = ", ".join(one for one in dimensions if any(one in lacking for lacking in lacks.values()))
        return f"{self.label}: no VBench result for {len(clips)} of {len(lacks)} clips ({which}): {_named(clips)}"


def read_results(models: Sequence[MeasuredModel], places: Sequence[str]) -> tuple[list[MeasuredModel], list[str]]:
    """Adds the results in the files `places`, each FILE or LABEL=FILE, to the clips of the models.

    Returns the models with the figures, and a line for the clips of each model that lack results and for the clips of
    each file that no model has. The same result may be in several files.

    Raises `ConfigError` for a file that is not of VBench, results of clips of other models, two different results of
    one clip, and a file at the clip's path that is not the clip.
    """
    results = {model.label: ModelResults(model.label, named_clips(model)) for model in models}
    notes = []
    for place in places:
        label, file = _labelled(place, results)
        try:
            notes += _take_file(results, label, file)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
    rows = [row for one in results.values() for row in one.values.values()]
    dimensions = list(dict.fromkeys(name for row in rows for name in row))
    notes += filter(None, (one.missing(dimensions) for one in results.values()))
    return [_with_figures(model, results[model.label].values) for model in models], notes


def _labelled(place: str, labels: Mapping[str, Any]) -> tuple[str | None, Path]:
    label, equals, file = place.partition("=")
    if not equals or "/" in label or Path(place).exists():
        return None, Path(place)
    if label not in labels:
        raise ConfigError(f"{place}: no model is called {label!r} ({', '.join(labels)})")
    return label, Path(file)


def _take_file(results: Mapping[str, ModelResults], label: str | None, file: Path) -> list[str]:
    """Adds the results of one file; returns a line for each model that lacks clips of it."""
    surplus: dict[str, dict[str, None]] = {}
    compared: set[Path] = set()
    used = set()
    for result in _read(file):
        owner = label or result.video.parent.name
        if owner not in results:
            raise ConfigError(
                f"its clips are in a folder {owner!r}, and no model is called that ({', '.join(results)}); "
                f"write LABEL={file}"
            )
        row = results[owner].clips.get(result.video.name)
        if row is None:
            surplus.setdefault(owner, {})[result.video.name] = None
            continue
        if result.video not in compared:
            _check_clip(result.video, row, owner)
            compared.add(result.video)
        results[owner].take(result)
        used.add(owner)
    strange = next((owner for owner in surplus if owner not in used), None)
    if strange is not None:
        raise ConfigError(f"no clip of {strange} is in it, but {_named(list(surplus[strange]))}")
    return [f"{file}: {_counted(clips)} that {owner} does not have: {_named(list(clips))}"
            for owner, clips in surplus.items()]  # fmt: skip


def _check_clip(video: Path, row: CandidateRow, label: str) -> None:
    """The exported file may be on another machine; where it is here, it must be the clip that was sampled."""
    if video.is_file() and digest(video.read_bytes()) != row.clip_digest:
        raise ConfigError(f"{video} is not the clip of {label}: export the clips again and run VBench on them")


def _read(file: Path) -> Iterator[ClipResult]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"cannot be read: {error}") from None
    if isinstance(content, list):
        raise ConfigError("the list of clips; the results are in the file that ends with _eval_results.json")
    if not isinstance(content, dict) or not content:
        raise ConfigError("no result of any dimension")
    for dimension, entry in content.items():
        yield from _dimension(dimension, entry)


def _dimension(dimension: str, entry: Any) -> Iterator[ClipResult]:
    if not (isinstance(entry, list) and len(entry) > 1 and _is_number(entry[0]) and isinstance(entry[-1], list)):
        raise ConfigError(f"{dimension}: must be a mean and the list of the clips' results")
    best = SCALES.get(dimension, 1.0)
    found = [_clip(dimension, number, row, best) for number, row in enumerate(entry[-1], start=1)]
    mean = fmean(result.value for result in found) / 100 if found else entry[0]
    if abs(mean - entry[0]) > TOLERANCE:
        raise ConfigError(f"{dimension}: the mean is {entry[0]:g}, but that of the clips is {mean:g}")
    yield from found


def _clip(dimension: str, number: int, row: Any, best: float) -> ClipResult:
    where = f"{dimension}: result {number}"
    if not isinstance(row, dict) or not isinstance(row.get("video_path"), str) or "video_results" not in row:
        raise ConfigError(f"{where}: must have video_path and video_results")
    value = row["video_results"]
    if not _is_number(value):
        raise ConfigError(f"{where}: video_results = {value!r}: must be a finite number, true or false")
    return ClipResult(dimension, Path(row["video_path"]), 100.0 * value / best)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) and math.isfinite(value)


def _with_figures(model: MeasuredModel, found: Mapping[str, Mapping[str, float]]) -> MeasuredModel:
    values = dict(model.values)
    for name, given in found.items():
        measured = {**given, **aggregate_scores(given)}
        values[name] = {**values[name], **{f"{PREFIX}{key}": value for key, value in measured.items()}}
    return replace(model, values=values)


def _counted(clips: Mapping[str, None]) -> str:
    return "1 clip" if len(clips) == 1 else f"{len(clips)} clips"


def _named(clips: Sequence[str]) -> str:
    more = len(clips) - NAMED
    return ", ".join(map(repr, clips[:NAMED])) + (f" and {more} more" if more > 0 else "")
