"""Captions in text files beside videos: ``NAME.txt`` describes ``NAME.mp4``.

Names are compared in one Unicode form. A text that could describe two videos, and two texts that could describe one,
are refused; texts that describe no video are named by `CaptionFiles.strays`, because their names may be misspelt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from common.data.folders import files_of, same_form
from common.data.tables import printable, read_text, stripped
from common.errors import ConfigError

NAMED = 3  # files that a line names

Key = tuple[Path, str]  # the folder, and the name without suffix


class CaptionFiles:
    """The ``.txt`` files in the folders of some videos."""

    def __init__(self, videos: Sequence[Path]) -> None:
        self._videos, self._texts = _by_name(videos), _by_name(_texts(videos))

    def caption(self, video: Path) -> str:
        """The text for a video; empty if there is none.

        Raises `ConfigError` if the file is no text, or if it is not the only one for this video alone.
        """
        texts, videos = self._texts.get(_key(video), []), self._videos.get(_key(video), [])
        if not texts:
            return ""
        if len(texts) > 1:
            raise ConfigError(f"{printable(str(video))}: has {len(texts)} captions, {_listed(texts)}; keep one")
        if len(videos) > 1:
            raise ConfigError(
                f"{printable(str(texts[0]))}: would be the caption of {_listed(videos)}; give each its own name"
            )
        return stripped(read_text(texts[0], "caption"))

    def strays(self) -> list[str]:
        """One line about the texts that describe no video; empty if there are none."""
        found = [text for key, texts in self._texts.items() if key not in self._videos for text in texts]
        if not found:
            return []
        return [f"{printable(str(found[0].parent))}: {len(found)} .txt files describe no video: {_listed(found)}"]


def _texts(videos: Sequence[Path]) -> list[Path]:
    return [text for folder in dict.fromkeys(video.parent for video in videos) for text in files_of(folder, (".txt",))]


def _by_name(files: Sequence[Path]) -> dict[Key, list[Path]]:
    found: dict[Key, list[Path]] = defaultdict(list)
    for file in files:
        found[_key(file)].append(file)
    return found


def _key(file: Path) -> Key:
    return file.parent, same_form(file.stem)


def _listed(files: Sequence[Path]) -> str:
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return ", ".join(printable(file.name) for file in files[:NAMED]) + more
