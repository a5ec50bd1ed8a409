"""Collects a candidate set: N candidates of every training prompt, sampled by one version, scored, and all kept.

```
prompts ──> enqueue, exchange.pipeline_depth at a time ──> samplers ──> rewarders ──> append to RUN/candidates ──> drop
```

A prompt whose N candidates are in the set is not sampled again, so an interrupted collection resumes, and a larger
`collect.prompts` adds prompts.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.prompts.heldout import heldout_prompts
from actors.prompts.source import PromptSource, file_prompts
from common.candidate_set.folder import SetWriter, writing_to
from common.candidate_set.rows import POLICY, SET, SetSettings, candidate_name
from common.config import RunConfig
from common.data.prompt_keys import prompt_key
from common.errors import ConfigError
from common.exchange.api import OVER, LearnerExchange, RunExchange, State
from common.messages import Prompt, Purpose
from common.models.cogvideox import open_model
from common.models.fingerprint import check_same_model, model_parts
from common.roles import COLLECTING
from common.seeds import candidate_seed
from common.weights.store import WeightStore
from deploy.run_dir.progress import Progress, ThroughputTracker
from deploy.runtime.evaluation import StuckError, Work

log = logging.getLogger(__name__)

CHUNK = 1 << 22  # bytes per read while weights are copied


@dataclass
class Collection:
    """One start of a collection. `work` does part of the work, or waits for other processes."""

    config: RunConfig
    prompts: Callable[[int], Prompt]  # position, 0 .. collect.prompts - 1, to prompt
    exchange: RunExchange
    writer: SetWriter
    weights: str  # digest of the policy's weights
    progress: Progress
    work: Work
    _todo: deque[Prompt] = field(default_factory=deque)
    _stored: int = 0  # prompts that this start added to the set

    def collect(self) -> dict[str, Any]:
        """Samples and scores what the set lacks. Returns the figures for result.json.

        A held-out prompt that failed is in ``left_out`` (``id``, ``text``, ``reason``): models are compared on the
        others. Raises `StuckError` if a training prompt failed, no work is left, or all prompts failed. The next start
        tries failed prompts again.
        """
        total, version = self.config.collect.prompts, self.config.collect.version
        self._todo = deque(prompt for prompt in map(self.prompts, range(total)) if not self._complete(prompt))
        missing, pace = len(self._todo), ThroughputTracker(self.config)
        log.info("%d of %d prompts are left to collect", missing, total)

        def show() -> None:
            self._store()
            pace.groups = min(missing, self._stored + self._sampled())
            self.progress.update(pace.of_evaluation(COLLECTING, total - missing + pace.groups, total))

        while self._advance(version) and self.work(version, self._waiting(), show):
            show()
        show()
        left_out = self._left_out()
        embeds = self.exchange.empty_prompt()
        if embeds is not None:
            self.writer.keep_empty_prompt(embeds)
        found = {"step": 0, "collected": total - len(left_out), "candidates": len(self.writer.set.rows)}
        return found | ({"left_out": left_out} if left_out else {})

    def _advance(self, version: int) -> bool:
        """Stores what is scored, and enqueues more prompts. Returns whether there is more to wait for."""
        waiting = self._waiting()  # read first: a group may be done at any time, and must be stored before the end
        self._store()
        while self._todo and self._waiting() < self.config.exchange.pipeline_depth:
            prompt = self._todo.popleft()
            if self._complete(prompt):  # it was in flight when an earlier start ended
                continue
            self.exchange.enqueue([replace(prompt, purpose=Purpose.COLLECT)], version, prompt.ordinal)
        return bool(waiting or self._waiting())

    def _store(self) -> None:
        for group in self.exchange.collected():
            self._stored += not self._complete(group.prompt)
            self.writer.append(group, self.weights)
            self.exchange.drop_collected(group.ordinal)

    def _waiting(self) -> int:
        counts = self.exchange.counts(Purpose.COLLECT)
        return sum(count for state, count in counts.items() if state not in OVER)

    def _sampled(self) -> int:
        """Groups whose candidates wait for their scores."""
        counts = self.exchange.counts(Purpose.COLLECT)
        return sum(counts[state] for state in (State.SAMPLED, State.SCORING))

    def _complete(self, prompt: Prompt) -> bool:
        key, rows = prompt_key(prompt), self.writer.set.rows
        seeds = (
            candidate_seed(self.config.seed, self.config.collect.seeds, prompt.ordinal, index)
            for index in range(self.config.sampler.candidates)
        )
        return all(candidate_name(key, self.weights, seed) in rows for seed in seeds)

    def _left_out(self) -> list[dict[str, str]]:
        """The prompts that failed, as `collect` returns them. Raises as it does."""
        total = self.config.collect.prompts
        left = [prompt for prompt in map(self.prompts, range(total)) if not self._complete(prompt)]
        reasons = self.exchange.unscored(Purpose.COLLECT, self.config.collect.version)
        found = [
            {"id": prompt.id, "text": prompt.text, "reason": reasons[prompt.ordinal, prompt.id]}
            for prompt in left
            if (prompt.ordinal, prompt.id) in reasons
        ]
        training = self.config.collect.split == "train"
        if left and (training or len(found) < len(left) or len(left) == total):
            why = found[0]["reason"] if found else "no work is left"
            raise StuckError(
                f"{COLLECTING}: {len(left)} of {total} prompts have no candidates, {left[0].id!r} the first: {why}; "
                "the same command tries them again"
            )
        return found


def collected_prompts(config: RunConfig, source: PromptSource) -> Callable[[int], Prompt]:
    """The prompts to collect, by position: training prompts, or distinct held-out ones, or all rows of the file.

    Raises `ConfigError` if there are fewer than `collect.prompts`.
    """
    split, count = config.collect.split, config.collect.prompts
    if split == "train":
        found, known = source, source.training_prompts
    else:
        prompts = _heldout(source, config) if split == "heldout" else _rows(config)
        found, known = _numbered(prompts), len(prompts)
    if known is not None and known < count:
        raise ConfigError(f"collect.prompts = {count}: prompts = {config.prompts!r} has {known} with split = {split}")
    return found


def _heldout(source: PromptSource, config: RunConfig) -> list[Prompt]:
    evaluation = config.evaluation.model_copy(update={"prompts": config.collect.prompts})
    drawn = heldout_prompts(source, config.model_copy(update={"evaluation": evaluation})).comparison
    return list({prompt_key(prompt): prompt for prompt in reversed(drawn)}.values())[::-1]


def _rows(config: RunConfig) -> list[Prompt]:
    if config.prompts == "toon":
        raise ConfigError("collect.split = 'all': prompts = 'toon' has no rows; allowed are train and heldout")
    conditioned = open_model(config.model.path).image_conditioned
    return list(file_prompts(Path(config.prompts), conditioned, (config.model.height, config.model.width)))


def _numbered(prompts: Sequence[Prompt]) -> Callable[[int], Prompt]:
    return lambda position: replace(prompts[position], ordinal=position)


@contextmanager
def open_set(config: RunConfig, folder: Path) -> Iterator[SetWriter]:
    """Opens the candidate set of a run for writing. Raises `ConfigError` if it was made with other settings."""
    with writing_to(folder / SET, SetSettings.of(config, model_parts(config.model.path))) as writer:
        yield writer


def source_weights(config: RunConfig) -> WeightStore | None:
    """The store of the run named in `collect.run`; None to sample with the base model.

    Raises `NotFoundError` if it lacks the version, and `ConfigError` if that was trained from another base model.
    """
    if not config.collect.run:
        return None
    store, version = WeightStore(Path(config.collect.run) / "weights"), config.collect.version
    parts = model_parts(config.model.path)
    what = f"{config.collect.run}: version {version}"
    check_same_model(what, store.manifest(version).model, parts, config.model.path)
    return store


def install_weights(config: RunConfig, store: WeightStore, exchange: LearnerExchange) -> str:
    """Copies the weights to sample with into the run's own store, and announces them. Returns their digest.

    Raises like `source_weights`.
    """
    parts, version, other = model_parts(config.model.path), config.collect.version, source_weights(config)
    if other is None:
        return parts[POLICY]
    manifest = other.manifest(version)
    if version not in store.versions():
        with other.file(version).open("rb") as file:
            store.receive(manifest, iter(lambda: file.read(CHUNK), b""))
    exchange.announce(manifest)
    return other.name_in_sets(version, manifest.digest, parts[POLICY])
