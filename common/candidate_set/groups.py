"""The groups of a candidate set as training data: every ordinal of a run gets one group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from common.candidate_set.folder import CandidateSet, read_set
from common.candidate_set.rows import CandidateRow, SetSettings
from common.config import RunConfig
from common.data.prompt_keys import prompt_key
from common.errors import ConfigError
from common.messages import Prompt
from common.models.fingerprint import model_parts
from common.reward_composition import reward_weights
from common.seeds import epoch_order


class StoredGroups:
    """The first `sampler.candidates` candidates of every group that has as many, reshuffled every epoch.

    `left_out` counts the groups that have too few. Raises `ConfigError` if none is left, if a candidate lacks a score
    that has a weight, if such scores of a group are of different reward models, or if the set was made with another
    model or size than the run's.
    """

    def __init__(self, candidates: CandidateSet, config: RunConfig) -> None:
        self.set, self._seed = candidates, config.seed
        here = SetSettings.of(config, model_parts(config.model.path))
        candidates.settings.check_same(candidates.folder, here, sampler=False)
        count, groups = config.sampler.candidates, list(candidates.groups().values())
        self._groups = [rows[:count] for rows in groups if len(rows) >= count]
        self.left_out = len(groups) - len(self._groups)
        if not self._groups:
            most = max(map(len, groups), default=0)
            raise ConfigError(
                f"{candidates.folder}: no group of sampler.candidates = {count}; the largest of its {len(groups)} "
                f"groups has {most}"
            )
        self._check_scores(config)

    def _check_scores(self, config: RunConfig) -> None:
        for group in self._groups:
            for name in sorted({name for row in group for name in self._weighted(row, config)}):
                if len({row.scored_by.get(name) for row in group}) > 1:
                    raise ConfigError(
                        f"{self.set.folder}: {group[0].clip}: {name}: candidates of a group were scored by different "
                        "reward models; `douga score --again` scores all alike"
                    )

    def _weighted(self, row: CandidateRow, config: RunConfig) -> Iterable[str]:
        """The scores of a candidate that make its reward."""
        try:
            return reward_weights(config.reward, row.scores)
        except ConfigError as error:
            raise ConfigError(f"{self.set.folder}: {row.clip}: {error}; `douga score` adds scores") from None

    def __len__(self) -> int:
        return len(self._groups)

    def __call__(self, ordinal: int) -> list[CandidateRow]:
        """The candidates of the group with this ordinal, >= 0."""
        epoch, place = divmod(ordinal, len(self._groups))
        return self._groups[epoch_order(self._seed, epoch, len(self._groups))[place]]

    def check_apart(self, heldout: Iterable[Prompt]) -> None:
        """Raises `ConfigError` if the set has candidates of a held-out prompt."""
        keys = {group[0].prompt_key for group in self._groups}
        shared = [prompt.id for prompt in heldout if prompt_key(prompt) in keys]
        if shared:
            raise ConfigError(
                f"{self.set.folder}: {len(shared)} held-out prompts are in it, {shared[0]!r} the first; a comparison "
                "on them would not be held out: name other prompts with split = heldout"
            )


def open_groups(config: RunConfig, notify: Callable[[str], None] = lambda _: None) -> StoredGroups:
    """Opens the set of `config.candidates`. Raises `NotFoundError`, `CorruptDataError` or `ConfigError`."""
    groups = StoredGroups(read_set(Path(config.candidates)), config)
    if groups.left_out:
        few = f"have fewer than sampler.candidates = {config.sampler.candidates} candidates"
        notify(f"{groups.set.folder}: {groups.left_out} groups {few}; left out")
    return groups
