"""``report.png``: the report's first pairs as one picture, for a README, a slide or a message.

Every pair is two rows of frames, base above aligned, under the prompt and its change of the mean reward. Gains and
losses are shown alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from common.data.video import contact_sheet, decode_clip
from deploy.results.comparison import SIDES

LINE, MARGIN, SIZE = 26, 10, 17  # pixels: height of a line of text, its margin, its letters
PAPER, INK = (255, 255, 255), (30, 30, 30)


def preview_image(folder: Path, title: str, pairs: Sequence[tuple[Mapping[str, Any], float]]) -> Image.Image:
    """The picture of some records of a run folder, each with its change in points."""
    blocks = [_words(title)]
    for record, change in pairs:
        base, aligned = (_row(folder / "clips" / record[side]["clip"]) for side in SIDES)
        blocks += [_words(f"{record['text']}: {change:+.1f}, base above aligned"), base, aligned]
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _row(clip: Path) -> Image.Image:
    return contact_sheet([decode_clip(clip.read_bytes())])


def _words(line: str) -> Image.Image:
    font = ImageFont.load_default(SIZE)
    strip = Image.new("RGB", (int(font.getlength(line)) + 2 * MARGIN, LINE), PAPER)
    ImageDraw.Draw(strip).text((MARGIN, 3), line, fill=INK, font=font)
    return strip
