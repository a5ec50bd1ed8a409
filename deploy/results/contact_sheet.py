"""Makes ``report.png``: a few pairs of the report as one image, for a README or a slide.

Each pair has the prompt with its change of the mean reward, and below it two rows of frames: base, then aligned. Losses
are shown as well as gains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from common.data.video import contact_sheet, decode_clip
from deploy.results.comparison import SIDES

LINE, MARGIN, SIZE = 26, 10, 17  # pixels: line height, margin and font size of the text
PAPER, INK = (255, 255, 255), (30, 30, 30)


def preview_image(folder: Path, title: str, pairs: Sequence[tuple[Mapping[str, Any], float | None]]) -> Image.Image:
    """Returns the image for `pairs`, each a record of `by_prompt` and its change in points, if
    it has one. `folder` is the run's."""
    blocks = [_text_strip(title)]
    for record, change in pairs:
        base, aligned = (_row(folder / "clips" / record[side]["clip"]) for side in SIDES)
        gain = "" if change is None else f"{change:+.1f}, "
        blocks += [_text_strip(f"{record['text']}: {gain}base above aligned"), base, aligned]
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _row(clip: Path) -> Image.Image:
    return contact_sheet([decode_clip(clip.read_bytes())])


def _text_strip(line: str) -> Image.Image:
    font = ImageFont.load_default(SIZE)
    strip = Image.new("RGB", (int(font.getlength(line)) + 2 * MARGIN, LINE), PAPER)
    ImageDraw.Draw(strip).text((MARGIN, 3), line, fill=INK, font=font)
    return strip
