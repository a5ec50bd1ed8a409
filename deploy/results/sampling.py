"""Generates clips outside a run, in the same way as a run (`douga sample`). An interrupted call is resumed.

```
OUT/0007-2.mp4      clip 2 of prompt 7, both counted from 0; a prompt's number is its place in the prompt file
OUT/0007.png        the first frame of prompt 7
OUT/samples.json    one record per finished clip, sorted by prompt and clip: prompt, seed, model, size, sampler settings
OUT/settings.json   what the clips are a function of, besides prompt and seed
```
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from actors.ddim_inversion import InvertedSampler
from actors.prompts.crops import report_crops
from actors.prompts.repetitions import report_repetitions
from actors.prompts.source import one_prompt, open_prompts, prompt_rows, prompts_of
from actors.sampler import Sampler
from common.config import RunConfig, leaves, may_change
from common.data.tables import printable
from common.data.video import contact_sheet, decode_clip
from common.digests import digest
from common.errors import ConfigError
from common.files import read_file, replacing, write_whole
from common.messages import Candidate, Prompt
from common.models.captions import policy_reader, report_captions, short
from common.models.cogvideox import ModelFolder, open_model
from common.models.fingerprint import model_folder
from common.seeds import candidate_seed
from common.weights.store import WeightStore
from deploy.run_dir.samples import SAMPLES, SETTINGS, read_samples, read_settings

SHEET = "sheet.png"
SHEET_ROWS = 24  # clips on the contact sheet
TOON_COUNT = 8  # default number of prompts without a prompt file

Record = dict[str, Any]


@dataclass(frozen=True)
class SampleRequest:
    """What to sample, besides model and weights."""

    out: Path
    count: int | None = None  # the first prompts only; None: all of a file, or `TOON_COUNT` toon prompts
    split: str = "all"  # all, train or heldout
    clips_per_prompt: int = 1
    invert: Path | None = None  # all clips start from the DDIM-inverted noise of this clip
    one: tuple[str, Path | None] | None = (
        None  # caption and first frame of the only prompt, instead of those of the file
    )


def make_samples(config: RunConfig, weights: WeightStore | None, version: int, request: SampleRequest) -> None:
    """Samples the clips of `request` that its folder does not have yet; writes the files named above and sheet.png.

    With `weights` and a `version` above 0, samples with that version, else with the base model. Raises `ConfigError`
    for bad input, and if the folder has clips of other weights, settings or prompts.
    """
    model = open_model(config.model.path)
    prompts = _prompts(config, model, request)
    folder = SampleFolder(request.out, _settings(config, model, weights, version, request), recipe(config))
    sampler = InvertedSampler(model, config, request.invert) if request.invert else Sampler(model, config)
    if weights is not None and version:
        sampler.load(*weights.load(version))
    for prompt in prompts:
        folder.check(prompt)
        for made in _missing(config, sampler, prompt, request.clips_per_prompt, folder):
            print(folder.add(prompt, made), "-", printable(short(prompt.text)))
    folder.write_sheet()


def _prompts(config: RunConfig, model: ModelFolder, request: SampleRequest) -> Iterator[Prompt]:
    size = config.model.height, config.model.width
    if request.one is not None:
        prompt = one_prompt(*request.one, model.image_conditioned, size)
        report_captions("--text", [("caption", prompt.text)], policy_reader(model), _tell)
        return iter([prompt])
    if config.prompts != "toon":
        file = Path(config.prompts)
        rows = prompt_rows(file, model.image_conditioned, _tell)
        report_repetitions(str(file), rows, _tell)
        report_crops(str(file), rows, size, _tell)
        captions = [(f"line {row.line}", row.text) for row in rows]
        report_captions(str(file), captions, policy_reader(model), _tell)
        return islice(prompts_of(file, rows, size, request.split), request.count)
    if request.split != "all":
        raise ConfigError(f"--split {request.split}: only a prompt file has splits; toon prompts are held out")
    return iter(open_prompts("toon", config.seed).heldout(request.count or TOON_COUNT, config.seed))


def _tell(line: str) -> None:
    print(f"douga: {line}", file=sys.stderr)


def _settings(
    config: RunConfig, model: ModelFolder, weights: WeightStore | None, version: int, request: SampleRequest
) -> dict[str, Any]:
    """What clips are a function of, besides prompt and seed, by the names that an error shows."""
    values = leaves(config.model_dump(mode="json"))
    keys = [key for key in values if key.startswith(("model.", "sampler.")) and not may_change(key, config)]
    settings = {key: values[key] for key in ["seed", *keys] if key != "sampler.candidates"}
    settings |= {f"base model's {part}": found for part, found in model.parts.items()}
    settings["weights"] = weights.manifest(version).digest if weights is not None and version else "base"
    settings["--invert"] = _digest(request.invert) if request.invert else None
    return settings


def recipe(config: RunConfig) -> Record:
    """What diffusers needs, besides prompt, seed and trained weights, to sample the same clip: part of each record."""
    size, sampler = config.model, config.sampler
    place = str(model_folder(size.path).resolve())
    made: Record = {"model": place, "dtype": size.dtype, "frames": size.frames}
    made |= {"height": size.height, "width": size.width, "fps": size.fps}
    made |= {"scheduler": sampler.scheduler, "steps": sampler.steps, "guidance": sampler.guidance}
    return made | {"dynamic_guidance": sampler.dynamic_guidance}


def _digest(clip: Path) -> str:
    try:
        return digest(read_file(clip))
    except OSError as error:
        raise ConfigError(f"{clip}: cannot be read: {error.strerror}") from None


def _missing(
    config: RunConfig, sampler: Sampler, prompt: Prompt, count: int, folder: SampleFolder
) -> Iterator[Candidate]:
    """Samples the clips of a prompt that the folder lacks, of `count`."""
    indices = [index for index in range(count) if (prompt.ordinal, index) not in folder.records]
    if not indices:
        return
    seeds = [candidate_seed(config.seed, "sample", prompt.ordinal, index) for index in range(count)]
    for part in sampler.parts(prompt, sampler.encode(prompt), seeds, indices):
        yield from part


class SampleFolder:
    """The output folder. `records` are its finished clips by (prompt, clip), both counted from 0."""

    def __init__(self, path: Path, settings: Mapping[str, Any], recipe: Record) -> None:
        self.path, self._recipe = path, recipe
        self.records: dict[tuple[int, int], Record] = {}
        path.mkdir(parents=True, exist_ok=True)
        if (path / SAMPLES).exists() or (path / SETTINGS).exists():
            self._check_settings(settings)
        if (path / SAMPLES).exists():
            self.records = {(one["prompt_index"], one["clip_index"]): one for one in read_samples(path)}
        write_whole(path / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        before = read_settings(self.path)
        for name in dict.fromkeys([*before, *settings]):
            if before.get(name) != settings.get(name):
                self._refuse(f"made with {name} = {before.get(name)!r}, not {settings.get(name)!r}")

    def check(self, prompt: Prompt) -> None:
        """Raises `ConfigError` if the folder has a clip that was made for another prompt of the same number."""
        one = next((one for (number, _), one in self.records.items() if number == prompt.ordinal), None)
        if one is None:
            return
        if one["text"] != prompt.text:
            self._refuse(f"prompt {prompt.ordinal} was {short(one['text'])!r}, and is {short(prompt.text)!r} now")
        if prompt.image is not None and (self.path / one["image"]).read_bytes() != prompt.image:
            self._refuse(f"prompt {prompt.ordinal} has another first frame now")

    def _refuse(self, why: str) -> None:
        raise ConfigError(f"{self.path}: has clips already: {why}; choose another --out, or delete the folder")

    def add(self, prompt: Prompt, made: Candidate) -> Path:
        """Writes a clip, then its record, so that every record has its clip. Returns the clip's path."""
        name = f"{prompt.ordinal:04d}"
        record: Record = {"clip": f"{name}-{made.index}.mp4", "id": prompt.id, "text": prompt.text}
        record |= {"prompt_index": prompt.ordinal, "clip_index": made.index, "seed": made.seed}
        record |= {"version": made.policy_version, "character": prompt.character, "category": prompt.category}
        record |= self._recipe
        if prompt.image is not None:
            record["image"] = f"{name}.png"
            with replacing(self.path / record["image"]) as draft:  # an earlier clip's record may name it already
                draft.write_bytes(prompt.image)
        clip = self.path / record["clip"]
        clip.write_bytes(made.clip)
        self.records[prompt.ordinal, made.index] = record
        ordered = [self.records[place] for place in sorted(self.records)]
        write_whole(self.path / SAMPLES, json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
        return clip

    def write_sheet(self) -> None:
        """Writes the contact sheet of the first clips."""
        shown = [self.records[place]["clip"] for place in sorted(self.records)[:SHEET_ROWS]]
        contact_sheet([decode_clip((self.path / name).read_bytes()) for name in shown]).save(self.path / SHEET)
