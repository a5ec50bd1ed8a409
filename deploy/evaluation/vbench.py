"""Exports clips for VBench and VBench-I2V, which read the prompt of a clip from its file name.

```
DIR/LABEL/PROMPT-INDEX.mp4     both packages, for their own prompts: index 0, 1, ... of the clips of a prompt
DIR/LABEL.json                 file -> prompt, for --mode=custom_input --prompt_file
DIR/images/PROMPT.png          first frames, for VBench-I2V
```
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from common.candidate_set.rows import CandidateRow
from common.errors import ConfigError
from common.files import write_whole
from deploy.evaluation.figures import MeasuredModel

LONGEST_NAME = 255  # bytes of a file name on Linux


def export_vbench(out: Path, models: Sequence[MeasuredModel]) -> int:
    """Writes the clips of all models to `out`. Returns their number.

    Raises `ConfigError`, before anything is written, if a prompt cannot be a file name, or if two first frames have the
    same prompt.
    """
    named = [(model, named_clips(model)) for model in models]
    (out / "images").mkdir(parents=True, exist_ok=True)
    for model, clips in named:
        (out / model.label).mkdir(exist_ok=True)
        prompts = {}
        for name, row in clips.items():
            path = out / model.label / name
            path.write_bytes(model.candidates.clip(row))
            prompts[str(path.resolve())] = row.prompt
            image = model.candidates.prompt(row).image
            if image is not None:
                (out / "images" / f"{row.prompt}.png").write_bytes(image)
        write_whole(out / f"{model.label}.json", json.dumps(prompts, indent=1, ensure_ascii=False) + "\n")
    return sum(len(clips) for _, clips in named)


def named_clips(model: MeasuredModel) -> dict[str, CandidateRow]:
    """The name of a clip's exported file -> candidate. Raises `ConfigError` as `export_vbench` does."""
    found: dict[str, CandidateRow] = {}
    for rows in model.by_prompt().values():
        for index, row in enumerate(rows):
            name = f"{row.prompt}-{index}.mp4"
            if "/" in name or "\0" in name or len(name.encode()) > LONGEST_NAME:
                raise ConfigError(
                    f"{row.prompt_id}: VBench reads the prompt from the file name, and this one cannot be one "
                    f"('/', or more than {LONGEST_NAME} bytes): {row.prompt:.60}"
                )
            if name in found:
                raise ConfigError(f"{row.prompt_id} and {found[name].prompt_id}: two first frames of one prompt")
            found[name] = row
    return found
