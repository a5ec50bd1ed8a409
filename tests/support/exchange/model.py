"""A reference model of the ledger in plain dicts: the state table and rules of docs/architecture.md, without SQLite.

Every method is a call of `RunExchange` and returns what that call must return. A call that fails raises the same type
of error and changes nothing. `view` is everything that must equal the real ledger after every call. There is no reply
cache, no transaction and no file: a blob is its bytes, stored under the name that the group uses.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, inf, isfinite, isnan
from typing import Any

from common.config import RunConfig
from common.errors import ConfigError
from common.exchange.storage import blobs
from common.exchange.storage.blobs import pack
from common.exchange.storage.group_blobs import SHOWN
from common.messages import Candidate, Conditioning, Prompt, Purpose, SamplingLease, Score
from tests.support.exchange.fakes import Clock, source

EVALUATIONS = 1 << 40  # ordinals of probe and eval groups
RUNNING = ("sampling", "sampled", "scoring")
OPEN = ("sampled", "scoring")
ENDED = ("trained", "expired")


@dataclass
class Clip:
    """One stored candidate."""

    id: str
    leased_by: str | None = None
    lease_expires: float = 0.0
    failures: int = 0
    raw: float | None = None  # the same in all dimensions
    reward_version: str = ""


@dataclass
class Missing:
    """A candidate of an opened group that is not sampled yet."""

    attempt: int = 0
    leased_by: str | None = None
    lease_expires: float = 0.0
    failures: int = 0


@dataclass
class Group:
    """One prompt and its candidates by index."""

    prompt: Prompt
    size: int
    position: int
    required_version: int | None
    state: str = "pending"
    version: int | None = None
    pushes: int | None = None
    leased_by: str | None = None
    lease_expires: float = 0.0
    attempt: int = 0
    reason: str = ""
    missing: dict[int, Missing] = field(default_factory=dict)
    clips: dict[int, Clip] = field(default_factory=dict)
    kept: tuple[int, int, float] | None = None  # indices of chosen and rejected, gap
    times_trained: int = 0
    step: int | None = None
    ended_at_step: int | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    waits: bool = False  # until it is collected, with all blobs

    @property
    def trains(self) -> bool:
        return self.prompt.purpose is Purpose.TRAIN

    @property
    def whole(self) -> bool:
        """Whether it has N candidates, and its conditioning is kept."""
        return self.prompt.purpose in (Purpose.TRAIN, Purpose.COLLECT)

    def keep(self, *names: str) -> None:
        if not self.waits:
            self.blobs = {name: data for name, data in self.blobs.items() if name in names}


class Model:
    """One exchange with its ledger."""

    def __init__(self, config: RunConfig, clock: Clock) -> None:
        self.config, self.rules, self.clock = config, config.exchange, clock
        self.min_gap = config.algorithm.model_dump()["min_gap"]
        self.groups: dict[int, Group] = {}
        self.wasted: set[tuple[str, str]] = set()
        self.batches: dict[int, list[int]] = {}  # step -> ordinals, in order
        self.committed: set[int] = set()
        self.versions: dict[int, tuple[int, int, bool]] = {}  # step, pushes, rolled back
        self.checkpoints: set[int] = set()
        self.refreshes: dict[int, int | None] = {}  # requested after step -> applied after step
        # Of pruned rows: groups by purpose and state, their uses, wasted candidates by reason, the highest version.
        self.archived: Counter[tuple[str, str]] = Counter()
        self.archived_uses: Counter[int] = Counter()  # by step
        self.archived_waste: Counter[str] = Counter()
        self.archived_version = -1
        self.pushes = self.oldest_resumable_step = self.largest = 0
        self.shown: list[Group] = []  # in the order of their selection
        self.keeping = config.keep_candidates_bytes > 0

    # State.

    def view(self) -> dict[str, Any]:
        """Everything that must equal the real ledger."""
        return {
            "groups": {
                ordinal: (
                    *(one.state, one.version, one.pushes, one.leased_by, one.attempt, one.reason),
                    *(one.times_trained, one.step, one.ended_at_step, one.kept and one.kept[:2], sorted(one.blobs)),
                )
                for ordinal, one in self.groups.items()
            },
            "missing": {
                (ordinal, index): (place.leased_by, place.failures)
                for ordinal, one in self.groups.items()
                for index, place in one.missing.items()
            },
            "clips": {
                clip.id: (ordinal, index, clip.leased_by, clip.failures, clip.raw)
                for ordinal, one in self.groups.items()
                for index, clip in one.clips.items()
                if one.state in OPEN
            },
            "wasted": self.wasted,
            "archived": {
                **{(str(purpose), state): count for (purpose, state), count in self.archived.items()},
                **{("wasted_candidates", reason): count for reason, count in self.archived_waste.items()},
                **({("times_trained", ""): sum(self.archived_uses.values())} if self.archived_uses else {}),
                **({("version", ""): self.archived_version} if self.archived_version >= 0 else {}),
            },
            "batches": {step: (batch, step in self.committed) for step, batch in self.batches.items()},
            "versions": self.versions,
            "checkpoints": self.checkpoints,
            "refreshes": self.refreshes,
            "current": (
                self.next_version(),
                self.current_version(),
                self.wanted_version(),
                self.wanted_version(0),
                self.pushes,
                self.oldest_resumable_step,
            ),
            "bytes": sum(map(len, self.contents())),
        }

    def contents(self) -> set[bytes]:
        """The distinct blobs on disk."""
        return {data for group in self.groups.values() for data in group.blobs.values()}

    # Sampling.

    def lease_sampling(self, worker: str, version: int) -> tuple[int, int, int, tuple[int, ...], bool] | None:
        """Ordinal, attempt, version, leased indices, whether the conditioning is stored."""
        if version and version not in self.versions and version > self.archived_version:
            raise ValueError
        self._release_expired()
        for group in self.groups.values():
            if group.state == "sampling" and group.leased_by == worker and group.version != version:
                self._return_to_pending(group)
        waiting = {ordinal: one for ordinal, one in sorted(self.groups.items()) if one.state == "pending"}
        opened = self._open_ordinals(version)
        first = [o for o, one in waiting.items() if not one.trains and one.required_version in (None, version)]
        first = sorted(first + [ordinal for ordinal in opened if ordinal >= EVALUATIONS]) or opened
        if first:
            return self._lease(first[0], worker, version)
        if not self.admits(version):
            return None
        training = next((ordinal for ordinal, one in waiting.items() if one.trains), None)
        if training is None:
            training = self.admitted(Purpose.TRAIN)
            self._admit(training, source(training), training, None)
        return self._lease(training, worker, version)

    def _open_ordinals(self, version: int) -> list[int]:
        """Open groups of `version` with a candidate that nobody samples."""
        return [
            ordinal
            for ordinal, one in sorted(self.groups.items())
            if (one.state, one.version) == ("sampling", version)
            and any(place.leased_by is None for place in one.missing.values())
        ]

    def _release_expired(self) -> None:
        late = [
            (group, place)
            for _, group in sorted(self.groups.items())
            for _, place in sorted(group.missing.items())
            if place.leased_by is not None and place.lease_expires < self.clock.now
        ]
        for group, place in late:
            self._count_failure(group, place, f"lease of {place.leased_by} expired")
        for group in self.groups.values():
            if group.state == "sampling" and group.lease_expires < self.clock.now:
                self._return_to_pending(group)

    def _return_to_pending(self, group: Group) -> None:
        """Unless another worker samples it."""
        for place in (place for _, place in sorted(group.missing.items()) if place.leased_by is not None):
            group.leased_by, group.lease_expires = place.leased_by, place.lease_expires
            return
        if group.state == "sampling":
            group.state, group.leased_by = "pending", None

    def admits(self, version: int) -> bool:
        """Whether a training group may start now under `version`."""
        _, pushes, rolled_back = self.versions.get(version, (0, 0, False))
        if rolled_back or self.pushes - pushes > self.rules.max_lag:
            return False
        mine = [one for one in self.groups.values() if one.trains]
        running, live = (
            sum(one.state in RUNNING for one in mine),
            [o for o in mine if o.state in ("ready", "training")],
        )
        spent = sum(one.times_trained for one in mine) + sum(self.archived_uses.values())
        m = self.rules.max_times_trained
        per_step = self.config.learner.batch_size
        ahead = (self.rules.max_lag + min(pushes, self.pushes) + 1) * per_step * self.config.learner.steps_per_push
        unspent = min(ahead, self.config.steps * per_step) - spent  # planned uses that are not committed yet
        promised = sum(m - one.times_trained for one in live) + m * running
        room = ceil((unspent - promised) / m)
        if unspent >= per_step:  # the pairs of one step must be distinct
            room = max(room, per_step - len(live) - running)
        if min(room, self.rules.pipeline_depth - running) < 1:
            return False
        used, sampling = sum(map(len, self.contents())), sum(one.state == "sampling" for one in mine)
        return not used or used + self.largest * (sampling + 1) <= self.rules.max_bytes

    def admitted(self, *purposes: Purpose) -> int:
        """The number of groups ever admitted."""
        here = sum(one.prompt.purpose in purposes for one in self.groups.values())
        return here + sum(count for (purpose, _), count in self.archived.items() if purpose in purposes)

    def _admit(self, ordinal: int, prompt: Prompt, position: int, required_version: int | None) -> None:
        size = self.config.sampler.candidates if prompt.purpose in (Purpose.TRAIN, Purpose.COLLECT) else 1
        group = self.groups[ordinal] = Group(prompt, size, position, required_version)
        assert prompt.image is not None
        group.blobs["image"] = packed(prompt.image)

    def _lease(self, ordinal: int, worker: str, version: int) -> tuple[int, int, int, tuple[int, ...], bool]:
        group, expires = self.groups[ordinal], self.clock.now + self.rules.lease_seconds
        if group.state == "pending":
            if group.version not in (None, version):
                self._drop_candidates(group, "death", "image", "conditioning")
            group.state, group.version = "sampling", version
            group.pushes = self.versions.get(version, (0, 0, False))[1]
            for index in range(group.size):
                if index not in group.clips:
                    group.missing.setdefault(index, Missing())
        group.attempt += 1
        group.leased_by, group.lease_expires = worker, expires
        size, free = (
            self.config.sampler.micro_batch,
            [index for index, one in sorted(group.missing.items()) if one.leased_by is None],
        )
        indices = tuple(index for index in free if index // size == free[0] // size)
        for index in indices:
            failures = group.missing[index].failures
            group.missing[index] = Missing(group.attempt, worker, expires, failures)
        return ordinal, group.attempt, version, indices, not group.whole or "conditioning" in group.blobs

    def _count_failure(self, group: Group, place: Missing, reason: str) -> None:
        if place.failures + 1 < self.rules.max_attempts:
            worker, place.leased_by = place.leased_by, None
            place.failures += 1
            if group.leased_by == worker:
                self._return_to_pending(group)
        elif group.state == "sampling":
            group.state, group.reason, group.leased_by, group.missing = "failed", reason, None, {}
            self._drop_candidates(group, "failed")

    def _drop_candidates(self, group: Group, reason: str, *kept: str) -> None:
        self.wasted |= {(clip.id, reason) for clip in group.clips.values()}
        group.clips = {}
        group.keep(*kept)

    def _held_group(self, lease: SamplingLease, indices: Sequence[int]) -> Group | None:
        """The group, if the lease of one of these candidates is current."""
        group = self.groups.get(lease.prompt.ordinal)
        if group is None or (group.state, group.version) != ("sampling", lease.version):
            return None
        mine = [index for index in indices if index in group.missing and self._is_mine(group.missing[index], lease)]
        return group if mine else None

    def _is_mine(self, place: Missing, lease: SamplingLease) -> bool:
        return (place.leased_by, place.attempt) == (lease.worker, lease.attempt)

    def submit_conditioning(self, lease: SamplingLease, conditioning: Conditioning) -> tuple[bool, str]:
        group = self._held_group(lease, lease.indices)
        if group is None:
            return False, "lost lease"
        if group.whole:
            if "conditioning" in group.blobs:
                return False, "duplicate"
            group.blobs["conditioning"] = pack([conditioning.prompt_embeds, conditioning.image_latent])
        return True, ""

    def submit_candidate(self, lease: SamplingLease, candidate: Candidate) -> tuple[bool, str]:
        if any(clip.id == candidate.id for one in self.groups.values() for clip in one.clips.values()):
            return False, "duplicate"
        index = candidate.index
        group = self._held_group(lease, (index,))
        if group is None:
            if candidate.ordinal in self.groups:
                self.wasted.add((candidate.id, "late"))
            return False, "lost lease"
        last = len(group.clips) == group.size - 1
        if last and group.whole and "conditioning" not in group.blobs:
            raise ValueError
        group.clips[index] = Clip(candidate.id)
        del group.missing[index]
        group.blobs |= {f"latents/{index}": pack([candidate.latents]), f"clip/{index}": packed(candidate.clip)}
        group.leased_by, group.lease_expires = lease.worker, self.clock.now + self.rules.lease_seconds
        if last:
            group.state, group.leased_by = "sampled", None
            if group.trains:
                self.largest = max(self.largest, sum(map(len, group.blobs.values())))
        return True, ""

    def fail_sampling(self, lease: SamplingLease, reason: str, kind: str = "") -> None:
        group = self.groups.get(lease.prompt.ordinal)
        for place in [] if group is None else list(group.missing.values()):
            if group is not None and self._is_mine(place, lease):
                self._count_failure(group, place, reason)

    def enqueue(self, prompts: list[Prompt], version: int | None) -> None:
        for position, prompt in enumerate(prompts):
            same = [
                one
                for one in self.groups.values()
                if (one.prompt.id, one.prompt.purpose, one.position, one.required_version)
                == (prompt.id, prompt.purpose, position, version)
            ]
            if not any(one.state == "pending" or (version is not None and one.state != "failed") for one in same):
                self._admit(
                    EVALUATIONS + self.admitted(Purpose.PROBE, Purpose.EVAL, Purpose.COLLECT), prompt, position, version
                )

    def drop_collected(self, ordinal: int) -> None:
        if ordinal in self.groups and self.groups[ordinal].trains:
            self._release(self.groups[ordinal])
        elif ordinal in self.groups:
            self.groups[ordinal].keep()
            self._archive([ordinal])

    # Probes.

    def _probes(self, state: str) -> list[Group]:
        return [one for one in self.groups.values() if one.prompt.purpose is Purpose.PROBE and one.state == state]

    def rescore_probes(self, version: int) -> None:
        for group in self._probes("done"):
            if group.version == version:
                group.state = "sampled"
                for clip in group.clips.values():
                    clip.raw, clip.reward_version, clip.failures = None, "", 0

    def retire_probes(self) -> None:
        for group in self._probes("pending"):
            if group.required_version != 0:
                group.state, group.reason = "failed", "retired before it was sampled"
                group.missing = {}
                group.keep()
        for group in self._probes("done"):
            if group.version != 0:
                group.keep()
        over = {id(one) for one in self._probes("failed") + self._probes("done") if one.blobs == {}}
        self._archive([ordinal for ordinal, one in self.groups.items() if id(one) in over])

    def _archive(self, ordinals: list[int]) -> None:
        """Delete these groups and add them to the archived counts."""
        for step, batch in list(self.batches.items()):
            left = [ordinal for ordinal in batch if ordinal not in ordinals]
            self.archived_uses[step] += (len(batch) - len(left)) * (step in self.committed)
            self.batches[step] = left
        self.batches = {step: batch for step, batch in self.batches.items() if batch}
        self.archived_uses = +self.archived_uses
        for ordinal in ordinals:
            group = self.groups.pop(ordinal)
            self.archived[group.prompt.purpose, group.state] += 1
        for name, reason in sorted(self.wasted):
            if int(name.split("-")[0]) in ordinals:
                self.wasted.remove((name, reason))
                self.archived_waste[reason] += 1

    def ask_refresh(self, version: int) -> None:
        at, _, rolled_back = self.versions.get(version, (0, 0, True))
        if not rolled_back:
            self.refreshes.setdefault(at, None)

    def refresh_due(self, step: int) -> bool:
        for at, taken in self.refreshes.items():
            if taken is None and at <= step:
                self.refreshes[at] = step
        return step in self.refreshes.values()

    # Scoring.

    def lease_candidates(self, worker: str, limit: int) -> list[str]:
        late = [clip.id for one in self.groups.values() for clip in one.clips.values() if clip.leased_by is not None]
        for name in sorted(late):
            group, clip = self._find(name)
            if clip.leased_by is None or clip.lease_expires >= self.clock.now:
                continue
            holder, clip.leased_by = clip.leased_by, None
            clip.failures += 1
            if clip.failures >= self.rules.max_attempts:
                self._fail(group, f"scoring lease of {holder} expired", "failed")
            self._return_to_sampled(group)
        free = [
            (one.trains, ordinal, index)
            for ordinal, one in self.groups.items()
            for index, clip in one.clips.items()
            if one.state in OPEN and clip.leased_by is None and clip.raw is None
        ]
        leased = []
        for _, ordinal, index in sorted(free)[:limit]:
            self.groups[ordinal].state = "scoring"
            clip = self.groups[ordinal].clips[index]
            clip.leased_by, clip.lease_expires = worker, self.clock.now + self.rules.lease_seconds
            leased.append(clip.id)
        return leased

    def _find(self, name: str) -> tuple[Group, Clip]:
        return next((one, clip) for one in self.groups.values() for clip in one.clips.values() if clip.id == name)

    def _return_to_sampled(self, group: Group) -> None:
        if group.state == "scoring" and all(clip.leased_by is None for clip in group.clips.values()):
            group.state = "sampled"

    def _fail(self, group: Group, reason: str, waste: str) -> None:
        self.wasted |= {(clip.id, waste) for clip in group.clips.values()}
        group.state, group.reason = "failed", reason
        group.keep()
        for clip in group.clips.values():
            clip.leased_by = None

    def submit_scores(self, worker: str, scores: list[Score]) -> list[tuple[bool, str]]:
        return [self._score(score) for score in scores]

    def _score(self, score: Score) -> tuple[bool, str]:
        if all(clip.id != score.candidate_id for one in self.groups.values() for clip in one.clips.values()):
            return False, "unknown candidate"
        group, clip = self._find(score.candidate_id)
        if clip.raw is not None and clip.reward_version == score.reward_version:
            return False, "duplicate"
        if group.state not in OPEN:
            return False, f"group is {group.state}"
        broken = [name for name, value in sorted(score.values.items()) if not isfinite(value)]
        if broken:
            reason = f"{'nan' if isnan(score.values[broken[0]]) else 'infinite'} score: {broken[0]}"
            self._fail(group, reason, "nan")
            return True, reason
        group.state = "scoring"
        clip.raw, clip.reward_version, clip.leased_by = score.values["motion"], score.reward_version, None
        for other in group.clips.values():
            if other.reward_version != clip.reward_version:
                other.raw, other.reward_version = None, ""
        if all(other.raw is not None for other in group.clips.values()):
            self._select(group)
        return True, ""

    def _select(self, group: Group) -> None:
        if not group.trains:
            group.state = "done"
            return
        raw = [clip.raw or 0.0 for _, clip in sorted(group.clips.items())]
        best, worst = raw.index(max(raw)), raw.index(min(raw))
        gap = 2 ** (raw[best] / 100) - 2 ** (raw[worst] / 100)
        if best == worst or gap < self.min_gap:
            group.state, group.waits = "tied", self.keeping
        else:
            group.state, group.waits, group.kept = "ready", self.keeping, (best, worst, gap)
            self.shown.append(group)
        for scored in (*self.shown[:-SHOWN], group):
            self._settle(scored)

    def _settle(self, group: Group) -> None:
        ended = group.state == "tied" or (
            group.state in ENDED and (group.ended_at_step or 0) <= self.oldest_resumable_step
        )
        if ended:
            group.keep()
            return
        assert group.kept is not None
        kinds = ("latents", "clip") if any(one is group for one in self.shown[-SHOWN:]) else ("latents",)
        group.keep("image", "conditioning", *(f"{kind}/{end}" for kind in kinds for end in group.kept[:2]))

    def stop_keeping(self) -> None:
        self.keeping = False
        for group in self.groups.values():
            self._release(group)

    def _release(self, group: Group) -> None:
        if group.waits:
            group.waits = False
            self._settle(group)

    # Training.

    def last_step(self) -> int:
        return max(self.committed, default=0)

    def _lag(self, group: Group) -> int:
        return max(0, self.pushes - (group.pushes or 0))

    def lease_batch(self, worker: str, step: int, count: int) -> list[int]:
        if step != self.last_step() + 1:
            raise ValueError
        for group in self.groups.values():
            if group.state == "training" and group.lease_expires < self.clock.now:
                self._return_to_ready(group)
        queue = {ordinal: one for ordinal, one in sorted(self.groups.items()) if one.state == "ready"}
        for group in queue.values():
            if self._lag(group) > self.rules.max_lag:
                group.state, group.ended_at_step = "trained" if group.times_trained else "expired", step
        batch = self._batch(worker, step, count, [o for o, one in queue.items() if one.state == "ready"])
        for ordinal in batch:
            group = self.groups[ordinal]
            group.state, group.leased_by, group.step = "training", worker, step
            group.lease_expires = self.clock.now + self.rules.lease_seconds
        return batch

    def _batch(self, worker: str, step: int, count: int, queue: list[int]) -> list[int]:
        before = self.batches.get(step, [])
        if len(before) == count:
            if all(ordinal in queue for ordinal in before):
                return before
            if all((self.groups[o].state, self.groups[o].step) == ("training", step) for o in before):
                return before if self.groups[before[0]].leased_by == worker else []
        if len(queue) < count or self._awaits_straggler(step):
            return []

        def worth(ordinal: int) -> float:
            group = self.groups[ordinal]
            assert group.kept is not None
            return -group.kept[2] / (1 + self._lag(group)) if self.rules.order == "priority" else 0.0

        batch = sorted(queue, key=lambda o: (worth(o), self.groups[o].times_trained, o))[:count]
        self.batches[step] = batch
        return batch

    def _awaits_straggler(self, step: int) -> bool:
        """Whether the push after `step` would make a group under way too stale."""
        lags = [
            self.pushes + 1 - (one.pushes or 0) for one in self.groups.values() if one.trains and one.state in RUNNING
        ]
        return step % self.config.learner.steps_per_push == 0 and max(lags, default=0) > self.rules.max_lag

    def _return_to_ready(self, group: Group) -> None:
        group.state, group.leased_by, group.step = "ready", None, None

    def commit_step(self, step: int, ordinals: list[int]) -> None:
        known = set(self.batches.get(step, []))
        if step <= self.oldest_resumable_step and known < set(ordinals):
            return
        if not ordinals or known != set(ordinals):
            raise ValueError
        if step in self.committed:
            return
        if step != self.last_step() + 1:
            raise ValueError
        self.committed.add(step)
        for group in (self.groups[ordinal] for ordinal in ordinals):
            group.times_trained += 1
            ended = group.state in ENDED
            self._return_to_ready(group)
            if ended or group.times_trained == self.rules.max_times_trained:
                group.state, group.ended_at_step = "trained", step

    def announce(self, version: int, step: int, pushes: int) -> None:
        if version in self.versions and self.versions[version][:2] == (step, pushes):
            return
        if version < self.next_version():
            raise ValueError
        self.versions[version] = step, pushes, False
        self.pushes = pushes

    def next_version(self) -> int:
        return max(self.versions, default=-1) + 1

    def current_version(self) -> int:
        return max((version for version, (_, _, rolled_back) in self.versions.items() if not rolled_back), default=0)

    def wanted_version(self, held: int | None = None) -> int:
        if held is not None and self._open_ordinals(held):
            return held
        waiting = [
            one.required_version for _, one in sorted(self.groups.items()) if one.state == "pending" and not one.trains
        ]
        asked = [version for version in waiting if version is not None]
        return asked[0] if asked else self.current_version()

    def record_checkpoint(self, step: int) -> None:
        if not 0 < step <= self.last_step():
            raise ValueError
        self.checkpoints.add(step)
        kept = sorted(self.checkpoints)[-self.config.learner.keep_checkpoints :]
        if len(kept) == self.config.learner.keep_checkpoints:
            self.oldest_resumable_step = max(self.oldest_resumable_step, kept[0])
        for group in self.groups.values():
            if group.state in ENDED and (group.ended_at_step or 0) <= self.oldest_resumable_step:
                group.keep()
        self._prune()

    def _prune(self) -> None:
        """Delete old groups and versions that no resume can need."""
        oldest = self.admitted(Purpose.TRAIN) - self.rules.keep_groups
        self._archive(
            [
                ordinal
                for ordinal, one in self.groups.items()
                if one.trains and ordinal < oldest and not one.waits
                if one.state in ("tied", "failed")
                or (one.state in ENDED and (one.ended_at_step or 0) <= self.oldest_resumable_step)
            ]
        )
        first = self.oldest_resumable_step // self.config.learner.steps_per_push - self.rules.max_lag - 1
        for version, (_, pushes, rolled_back) in list(self.versions.items()):
            if not rolled_back and pushes < first:
                del self.versions[version]
                self.archived_version = max(self.archived_version, version)
        self.checkpoints = {one for one in self.checkpoints if one >= self.oldest_resumable_step}

    def rollback(self, step: int) -> None:
        if not self.oldest_resumable_step <= step <= self.last_step():
            raise ConfigError
        self.committed = {one for one in self.committed if one <= step}
        uses: dict[int, int] = defaultdict(int)
        for one in self.committed:
            for ordinal in self.batches.get(one, []):  # missing: all its groups were pruned
                uses[ordinal] += 1
        for ordinal, group in self.groups.items():
            group.times_trained = uses[ordinal]
            if group.state == "training" or (group.state in ENDED and (group.ended_at_step or 0) > step):
                self._return_to_ready(group)
                group.ended_at_step = None
        self.versions = {
            v: (at, pushes, rolled_back or at > step) for v, (at, pushes, rolled_back) in self.versions.items()
        }
        for group in self.groups.values():
            discarded = self.versions.get(group.required_version, (0, 0, False))[2]
            if not group.trains and group.state in ("pending", "sampling") and discarded:
                group.state, group.reason, group.leased_by = "failed", "retired before it was sampled", None
                group.missing = {}
                group.keep()
        self.pushes = step // self.config.learner.steps_per_push
        self.refreshes = {
            at: None if taken is not None and taken > step else taken
            for at, taken in self.refreshes.items()
            if at <= step
        }
        self.checkpoints = {one for one in self.checkpoints if one <= step}
        if step:
            self.record_checkpoint(step)

    # Leases of all kinds.

    def _leases_of(self, worker: str) -> list[Any]:
        clips = [clip for one in self.groups.values() for clip in one.clips.values()]
        places = [place for one in self.groups.values() for place in one.missing.values()]
        return [one for one in [*self.groups.values(), *places, *clips] if one.leased_by == worker]

    def renew(self, worker: str) -> None:
        for one in self._leases_of(worker):
            one.lease_expires = self.clock.now + self.rules.lease_seconds

    def release(self, worker: str) -> None:
        for one in self._leases_of(worker):
            one.lease_expires = -inf

    def reopen(self) -> None:
        """Restart the exchange's process, which drops all leases."""
        self.keeping = self.config.keep_candidates_bytes > 0
        for group in self.groups.values():
            for clip in group.clips.values():
                clip.leased_by = None
            self._return_to_sampled(group)
            for place in group.missing.values():
                place.leased_by = None
            if group.state == "sampling":
                group.state, group.leased_by = "pending", None
            if group.state == "training":
                self._return_to_ready(group)


def packed(data: bytes) -> bytes:
    """The blob that holds these bytes."""
    return pack([blobs.raw(data)])
