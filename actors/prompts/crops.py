"""Says which pictures lose more than half of themselves when they are cropped to the shape of the clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actors.prompts.pictures import Tell
from actors.prompts.source import Row
from common.images import upright_size

LEAST = 0.5  # share of a picture's area


def report_crops(file: str, rows: Sequence[Row], size: tuple[int, int], tell: Tell) -> None:
    """Tells how many rows of a prompt file have such a picture. `size` is the height and width of the clips."""
    shares = {image: _share(image, *size) for image in dict.fromkeys(row.image for row in rows) if image is not None}
    cropped = [row for row in rows if row.image is not None and shares[row.image] < LEAST]
    if cropped:
        first = cropped[0]
        assert first.image is not None
        tell(
            f"{file}: {len(cropped)} of {len(rows)} images lose more than half of their area in the crop to "
            f"{size[0]}x{size[1]}; first line {first.line}, of which {shares[first.image]:.1%} is left"
        )


def _share(image: Path, height: int, width: int) -> float:
    """The share of the picture's area that is in the crop, 0 .. 1."""
    own_height, own_width = upright_size(image)
    shape = (own_width * height) / (own_height * width)
    return min(shape, 1 / shape)
