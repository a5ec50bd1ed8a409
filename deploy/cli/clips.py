"""``douga sample`` and ``score``: generate and score clips outside a run. Parsing imports no torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import RunConfig, load_config
from common.errors import ConfigError
from deploy.cli.flags import add_command

SAMPLE = """\
Reads a model, or a run's weights, and the configured prompts. Writes mp4 files, first frames, samples.json (prompt,
clip and seed of each file) and the contact sheet sheet.png to the folder --out. The same command resumes an interrupted
one; with a larger --count or --clips-per-prompt it adds clips. A folder with clips of other weights, settings or
prompts is refused.

examples:
  douga sample                      8 held-out toon prompts, the embedded model
  douga sample runs/toon --count 4  the newest weights of a run
  douga sample runs/mine --prompts test.jsonl --clips-per-prompt 5 --out test
  douga sample /models/CogVideoX-5b-I2V --text "a robot walks" --image first.png
  douga sample /models/CogVideoX-5b-I2V --config deploy/launch/configs/gapo.toml --prompts test.jsonl --out base
  douga sample tuned --config my.toml --prompts my.jsonl --invert walk.mp4

Any configuration key can be set. A pipeline folder is sampled at the size that it was trained on, with 50 steps and
guidance 6, unless --config or keys say otherwise. All rows of a prompt file are sampled, each once, in their order;
with --split heldout, those that a run holds out. Clip k of row i has a seed that depends on --seed, i and k only.
"""
SCORE = """\
Reads mp4 files, or folders written by `douga sample`. Prints each clip's score from every head and judge, and their
weighted mean, all 0..100. Writes no files. For a candidate set (`douga collect`) it adds the scores to the set instead:
those that candidates lack, or with --again all. The same command resumes it.

examples:
  douga score samples               the clips of `douga sample`, with the embedded heads
  douga score a.mp4 --text "a robot walks right in the snow" --json
  douga score runs/base-200 --reward.judges.vs.kind videoscore --reward.judges.vs.path /models/vs
  douga score samples --reward.judges.vs.kind videoscore --reward.judges.vs.path /models/vs

Any configuration key can be set. A clip that cannot be scored is skipped with a message on stderr. If no clip can be
scored, the exit code is 2.
"""


def add(commands: Any) -> None:
    """Adds the commands of this file."""
    summary = "generate clips with a model folder or a run's newest weights"
    sample = add_command(commands, "sample", _sample, summary, SAMPLE, takes_keys=True)
    sample.add_argument("source", nargs="?", default="toon", help="'toon', a pipeline folder, or a run (default: toon)")
    sample.add_argument(
        "--config", type=Path, metavar="CONFIG.toml", help="with a pipeline folder: other settings than its usual ones"
    )
    sample.add_argument("--text", help="sample this one caption instead of a prompt file")
    sample.add_argument("--image", type=Path, help="first frame for --text; image-to-video models need one")
    sample.add_argument("--count", type=int, help="only the first prompts (default: the whole file; toon: 8)")
    sample.add_argument("--clips-per-prompt", type=int, default=1, help="clips per prompt, of other seeds (default: 1)")
    sample.add_argument(
        "--split",
        choices=("all", "train", "heldout"),
        default="all",
        help="rows of the prompt file: all, or as a run splits them (default: all)",
    )
    sample.add_argument(
        "--version", type=int, help="weight version of the run (default: the newest; 0: the base model)"
    )
    sample.add_argument(
        "--invert",
        type=Path,
        metavar="CLIP.mp4",
        help="start from the DDIM-inverted noise of this clip",
    )
    sample.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to (default: samples)")
    summary = "score clips as a run does: every head and judge, and the weighted mean"
    score = add_command(commands, "score", _score, summary, SCORE, takes_keys=True)
    score.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="mp4 files, or folders with a samples.json")
    score.add_argument("--text", help="caption of the mp4 files")
    score.add_argument("--image", type=Path, help="first-frame image of the mp4 files (default: frame 0 of each)")
    score.add_argument(
        "--config", type=Path, metavar="CONFIG.toml", help="use the rewards of this file (default: toon heads)"
    )
    score.add_argument("--again", action="store_true", help="candidate set: replace the scores that it has")
    score.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _sample(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    if options.count is not None and options.count < 1:
        raise ConfigError(f"--count {options.count}: must be at least 1")
    if options.clips_per_prompt < 1:
        raise ConfigError(f"--clips-per-prompt {options.clips_per_prompt}: must be at least 1")
    if options.invert and options.clips_per_prompt > 1:
        raise ConfigError("--invert: all clips of a prompt would be the same; leave out --clips-per-prompt")
    _check_prompts(options, flags)
    from deploy.results.sampling import SampleRequest, make_samples
    from deploy.run_dir.source import generator_of
    from deploy.runtime.oom import needed_by

    deterministic = {"sampler.scheduler": "ddim"} if options.invert else {}
    config, weights, version = generator_of(
        options.source, deterministic | dict(flags), options.version, options.config
    )
    if weights is None and options.version is not None:
        raise ConfigError(f"--version {options.version}: {options.source!r} is a model, not a run")
    one = None if options.text is None else (options.text, options.image)
    request = SampleRequest(options.out, options.count, options.split, options.clips_per_prompt, options.invert, one)
    with needed_by("sampler", config):
        make_samples(config, weights, version, request)
    return 0


def _check_prompts(options: argparse.Namespace, flags: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if it is not clear what to sample."""
    from deploy.run_dir.source import is_pipeline

    if options.text is not None:
        others = {"--prompts": "prompts" in flags, "--count": options.count, "--split": options.split != "all"}
        if other := next((name for name, given in others.items() if given), None):
            raise ConfigError(f"{other}: not with --text, which is the only prompt")
    elif options.image is not None:
        raise ConfigError(f"--image {options.image}: give its caption with --text")
    elif options.config is None and "prompts" not in flags and is_pipeline(options.source):
        raise ConfigError(
            f"{options.source}: which prompts? give --prompts FILE, or --text and --image ('--prompts toon': those of "
            "the toon world)"
        )


def _score(options: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    from rich.console import Console

    from common.candidate_set.rows import is_set
    from deploy.results.clips import score_clips, score_table

    sets = [place for place in options.clips if is_set(place)]
    if sets:
        return _score_sets(options, load_config(options.config, flags))
    rows = score_clips(load_config(options.config, flags), options.clips, options.text, options.image)
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        Console().print(score_table(rows))
    return 0


def _score_sets(options: argparse.Namespace, config: RunConfig) -> int:
    from common.candidate_set.rows import is_set
    from deploy.results.candidates import score_set

    other = next((place for place in options.clips if not is_set(place)), None)
    if other is not None or options.text or options.image or options.json:
        raise ConfigError(
            f"{other or options.clips[0]}: score candidate sets alone, without --text, --image and --json"
        )
    failed = 0
    for place in options.clips:
        done, refused = score_set(config, place, options.again, lambda line: print(line, file=sys.stderr))
        print(f"{place}: {done} scores added, {refused} clips could not be scored")
        failed += refused
    return 1 if failed else 0
