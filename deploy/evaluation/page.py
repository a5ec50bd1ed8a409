"""evaluation.html: the table, and clips of all models side by side, sorted by gain and by loss."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.files import write_whole
from deploy.evaluation.figures import Evaluation, MeasuredModel
from deploy.evaluation.tables import heading, notes, title

PAGE = "evaluation.html"


def write_page(out: Path, found: Evaluation, models: Sequence[MeasuredModel]) -> Path:
    """Writes the page to the folder `out`; clips are linked, not copied. Returns its path."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(f"{PAGE}.j2").render(
        found=found,
        titles={name: title(found, name) for name in found.figures},
        heading=heading(found),
        notes=notes(found),
        data=Markup(_json(_data(out, found, models))),
    )
    path = out / PAGE
    write_whole(path, page)
    return path


def _data(out: Path, found: Evaluation, models: Sequence[MeasuredModel]) -> dict[str, Any]:
    """What the page's script shows: per prompt its text, first frame, every model's clips, and the changes."""
    clips = {model.label: model.by_prompt() for model in models}
    folders = {model.label: os.path.relpath(model.candidates.folder, out) for model in models}
    base = found.against
    return {
        "labels": list(found.labels),
        "against": base,
        "names": list(found.figures),
        "prompts": [
            {
                "text": clips[base][key][0].prompt,
                "clips": {
                    label: [f"{folders[label]}/{row.clip}" for row in rows[key]] for label, rows in clips.items()
                },
                "changes": {label: found.changes[label][key] for label in found.changes},
            }
            for key in found.prompts
        ],
    }


def _json(data: dict[str, Any]) -> str:
    """JSON that can stand inside a script element, whatever the prompts contain."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
