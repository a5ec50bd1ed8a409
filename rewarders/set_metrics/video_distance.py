"""Fréchet distance of video features between a set of clips and real clips. Lower is better, and 0 is the least.

The features are those of `video_encoder.py`, the distance that of `frechet.py`. With the encoder of Ge et al. 2024, "On
the Content Bias in Fréchet Video Distance", it is their content-debiased FVD, except that they read 16 consecutive
frames from anywhere in a real video, and here always the first. It is never the FVD of Unterthiner et al. 2018, whose
encoder is I3D: numbers of different encoders, frame rates or references cannot be compared.

With fewer clips than features a covariance is singular, and the distance is too large. It can then only be compared
with that of as many clips against the same reference; the metric logs a warning.

A reference is a folder of videos, or the file that `FrechetVideoDistance.save_reference` makes of one::

    mean [D]   covariance [D, D]   count   fps   encoder (digest of weights and preprocessing)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.config import SetMetricConfig
from common.data.video import VIDEO_SUFFIXES
from common.errors import ConfigError
from common.errors.messages import one_line
from common.errors.oom import reraise_oom
from common.files import replacing
from common.messages import Prompt
from rewarders.interface import Clip
from rewarders.judges.adapter import same_rate
from rewarders.rewarder import read_clip
from rewarders.set_metrics.frechet import Gaussian, GaussianFit, frechet_distance
from rewarders.set_metrics.interface import Watch
from rewarders.set_metrics.video_encoder import VideoEncoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """The Gaussian of a set's features, and the frame rate of its clips."""

    gaussian: Gaussian
    fps: float


class FrechetVideoDistance:
    """A `SetMetric` with one output."""

    outputs = ("frechet_video_distance",)

    def __init__(self, config: SetMetricConfig, device: str) -> None:
        """Raises `ConfigError` if ``path`` is no VideoMAE, or if ``reference`` is missing or of another encoder."""
        self._encoder = VideoEncoder(config.path, device, config.fps)
        self._source = Path(config.reference)
        if not config.reference:
            raise ConfigError("reference: must be a folder of real clips, or a file of their features")
        self._reference = self._load() if self._source.suffix == ".npz" else None
        self._videos = [] if self._reference else self._list_videos()
        self.watch: Watch = lambda what, items: items

    def measure(self, clips: Iterable[tuple[Clip, Prompt]]) -> dict[str, float]:
        """See `SetMetric.measure`."""
        reference = self.reference()
        found = self._features((f"prompt {prompt.id}", clip) for clip, prompt in clips)
        if not same_rate(found.fps, reference.fps):
            raise ValueError(
                f"the clips have {found.fps:g} frames per second, the reference {reference.fps:g}: set fps"
            )
        for what, one in (("clips", found), ("reference clips", reference)):
            self._warn_if_few(what, one.gaussian.count)
        return {self.outputs[0]: frechet_distance(found.gaussian, reference.gaussian)}

    def reference(self) -> Features:
        """The reference's features: computed on the first call if it is a folder. Raises `ConfigError`."""
        if self._reference is None:
            try:
                self._reference = self._features(self._read_videos())
            except ValueError as error:
                reraise_oom(error)
                raise ConfigError(f"reference = {str(self._source)!r}: {error}") from None
        return self._reference

    def save_reference(self, file: Path) -> None:
        """Writes the reference's features to `file` (.npz). Raises like `reference`, or `StorageError`."""
        found = self.reference()
        with replacing(file) as draft, draft.open("wb") as stream:
            np.savez(
                stream,
                mean=found.gaussian.mean,
                covariance=found.gaussian.covariance,
                count=found.gaussian.count,
                fps=found.fps,
                encoder=self._encoder.digest,
            )

    def _features(self, clips: Iterable[tuple[str, Clip]]) -> Features:
        """Fits the features of named clips, which must have one frame rate. Raises `ValueError` with a clip's name."""
        fit, fps = GaussianFit(self._encoder.width), 0.0
        for name, clip in clips:
            try:
                window = self._encoder.window(clip)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if fps and not same_rate(window.fps, fps):
                raise ValueError(f"{name}: {window.fps:g} frames per second, clips before it {fps:g}: set fps")
            fps = fps or window.fps
            fit.add(self._encoder(window))
        return Features(fit.gaussian(), fps)

    def _warn_if_few(self, what: str, count: int) -> None:
        if count <= self._encoder.width:
            log.warning(
                "%s: %d %s for %d features, so it is too large; compare it only with that of as many clips against "
                "the same reference",
                self.outputs[0],
                count,
                what,
                self._encoder.width,
            )

    def _list_videos(self) -> list[Path]:
        folder = self._source
        if not folder.is_dir():
            raise ConfigError(f"reference = {str(folder)!r}: must be a folder of videos, or a .npz file")
        videos = sorted(file for file in folder.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
        if len(videos) < 2:
            raise ConfigError(f"reference = {str(folder)!r}: {len(videos)} videos; at least 2 are needed")
        return videos

    def _read_videos(self) -> Iterator[tuple[str, Clip]]:
        for file in self.watch("reference", self._videos):
            try:
                yield file.name, read_clip(file.read_bytes())
            except (ValueError, OSError) as error:
                reraise_oom(error)
                raise ValueError(f"{file.name}: {error}") from None

    def _load(self) -> Features:
        where = f"reference = {str(self._source)!r}"
        try:
            with np.load(self._source, allow_pickle=False) as stored:
                gaussian = Gaussian(stored["mean"], stored["covariance"], int(stored["count"]))
                fps, encoder = float(stored["fps"]), str(stored["encoder"])
        except Exception as error:  # a damaged file raises almost anything
            reraise_oom(error)
            raise ConfigError(f"{where}: cannot be read: {one_line(error)}") from None
        if encoder != self._encoder.digest:
            raise ConfigError(f"{where}: made with other weights, preprocessing or fps; make it again from its clips")
        width = self._encoder.width
        if gaussian.mean.shape != (width,) or gaussian.covariance.shape != (width, width):
            raise ConfigError(f"{where}: mean and covariance must be of {width} features")
        if not (np.isfinite(gaussian.mean).all() and np.isfinite(gaussian.covariance).all()):
            raise ConfigError(f"{where}: not finite")
        return Features(gaussian, fps)
