"""Makes first frames for a prompt file: an image by a text-to-image model for every row that has none.

```
FILE: captions ── text-to-image pipeline ──> OUT/images/DIGEST.png, OUT/prompts.jsonl: all columns, and image
```

HuViDPO makes its first frames with DPO-SDXL (sections 3.3 and 3.4).

An image's name is a digest of all that it depends on: caption, seed, row, model files and settings. So the same command
resumes, and a row whose caption changed, or all rows after a change of model, seed or settings, get new images. Old
images stay. The device is not part of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.prompts.source import complete_rows
from actors.prompts.text_to_image import INDEX, ImageSettings, TextToImage
from common.digests import digest
from common.errors import ConfigError
from common.errors.disk import writing
from common.files import replacing, write_whole
from common.models.fingerprint import fingerprint
from common.seeds import candidate_seed

TABLE, IMAGES = "prompts.jsonl", "images"
NAMED = 3  # rows that an error names
Log = Callable[[str], None]


@dataclass(frozen=True)
class _Row:
    where: str  # FILE:LINE, for errors
    columns: dict[str, Any]  # those of the new file
    caption: str
    seed: int
    image: Path | None  # the one to make; None if the row brings its own


def first_frames(
    file: Path, model: Path, out: Path, settings: ImageSettings, log: Log, seed: int = 0, device: str = "cpu"
) -> Path:
    """Write `out`/prompts.jsonl with an image in every row of the prompt file. Finished images are not made again.

    Rows with an image keep it. The seed of row i depends on `seed` and i alone. The model is loaded only if an image is
    missing. The file is written at the end, so it never names an image that does not exist.

    Returns:
        The path of the JSONL file.

    Raises:
        ConfigError: the prompt file or the model is bad, `out` holds the prompt file, or the model's safety checker
            blacked out images: all others are finished then.
    """
    table = out / TABLE
    if file.resolve() == table.resolve():
        raise ConfigError(f"{file}: would be overwritten; choose another --out")
    rows = list(_rows(file, model, out, settings, seed))
    with writing(out):
        (out / IMAGES).mkdir(parents=True, exist_ok=True)
    if missing := [row for row in rows if row.image is not None and not row.image.exists()]:
        _make(missing, TextToImage(model, settings, device, log), log)
    write_whole(table, "".join(json.dumps(row.columns, ensure_ascii=False) + "\n" for row in rows))
    return table


def _rows(file: Path, model: Path, out: Path, settings: ImageSettings, seed: int) -> Iterator[_Row]:
    """The checked rows of a prompt file."""
    if not (model / INDEX).is_file():
        raise ConfigError(f"{model}: not a pipeline folder: no {INDEX} in it")
    made_by = json.dumps([fingerprint(model), asdict(settings)])
    for place, (row, columns) in enumerate(complete_rows(file)):
        row_seed = candidate_seed(seed, "first frame", place, 0)
        if row.image is not None:
            image, name = None, os.path.relpath(row.image, out)
        else:
            name = f"{IMAGES}/{digest(json.dumps([made_by, row.text, row_seed]).encode())}.png"
            image = out / name
        # The id is written even if it is the default one, which depends on the file's name.
        yield _Row(f"{file}:{row.line}", columns | {"id": row.id, "image": name}, row.text, row_seed, image)


def _make(rows: list[_Row], model: TextToImage, log: Log) -> None:
    refused = []
    for count, row in enumerate(rows, start=1):
        image = model(row.caption, row.seed)
        if image is None:
            refused.append(row.where)
        else:
            assert row.image is not None
            with replacing(row.image) as draft:
                image.save(draft, "PNG")
        log(f"{count}/{len(rows)} first frames" + ("" if image else f": the safety checker refused {row.where}"))
    if refused:
        more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        raise ConfigError(
            f"{', '.join(refused[:NAMED])}{more}: the model's safety checker blacked out the image; change the caption"
        )
