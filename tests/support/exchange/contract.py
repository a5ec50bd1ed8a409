"""Tests that every exchange must pass, local or remote: subclass `ExchangeContract` and provide its two fixtures.

`open_exchange(config)` opens the exchange of one run, or reopens it after `close`; `clock` is its clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import nan

import pytest

from common.config import RunConfig
from common.exchange.api import State, Submitted
from common.exchange.local import LocalExchange
from common.messages import Purpose, Score
from common.seeds import candidate_seed
from tests.support.exchange.fakes import (
    Clock,
    array,
    candidate,
    conditioning,
    digest,
    heldout,
    make_pairs,
    sample,
    score,
    score_all,
    small,
    total,
    train,
    values,
    weight_version,
)

Factory = Callable[[RunConfig], LocalExchange]


class ExchangeContract:
    """Behaviour of the calls, one test each."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def open_exchange(self, clock: Clock) -> Factory:
        raise TypeError("the subclass must define this fixture")

    # Sampling.

    def test_a_group_goes_through_all_states(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        for _ in range(2):
            lease = exchange.lease_sampling("sampler-0", 0)
            assert lease is not None
            assert exchange.counts()[State.SAMPLING] == 1
            assert exchange.submit_conditioning(lease, conditioning(lease.prompt)) == Submitted(True)
            for index in (0, 1):
                assert exchange.submit_candidate(lease, candidate(lease, index)) == Submitted(True)
            assert exchange.counts()[State.SAMPLED] == 1
            tasks = exchange.lease_candidates("rewarder-0", 8)
            assert [task.clip[:3] for task in tasks] == [b"mp4", b"mp4"]
            assert exchange.counts()[State.SCORING] == 1
            answers = exchange.submit_scores("rewarder-0", [score(tasks[0], 80.0), score(tasks[1], 30.0)])
            assert answers == [Submitted(True), Submitted(True)]
        pairs = exchange.lease_batch("learner-0", 1, 2)
        assert exchange.counts()[State.TRAINING] == 2
        exchange.commit_step(1, [pair.ordinal for pair in pairs])
        assert exchange.counts()[State.TRAINED] == total(exchange.counts()) == 2
        exchange.check()

    def test_leases_carry_prompt_seeds_and_version(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(sampler__candidates=4))
        first, second = exchange.lease_sampling("a", 0), exchange.lease_sampling("b", 0)
        assert first is not None
        assert second is not None
        assert (first.prompt.ordinal, first.prompt.id, first.prompt.image) == (0, "train-0", b"png")
        assert (second.prompt.ordinal, second.worker, second.attempt, second.version) == (1, "b", 1, 0)
        assert len({*first.seeds, *second.seeds}) == 8

    def test_a_pair_holds_what_was_sampled_and_scored(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(sampler__candidates=4, learner__batch_size=1))
        lease = sample(exchange)
        assert lease is not None
        score_all(exchange, {"0-0-v0": 50.0, "0-1-v0": 80.0, "0-2-v0": 30.0, "0-3-v0": 60.0})
        (training,) = exchange.lease_batch("learner-0", 1, 1)
        assert training.selection.candidates == (1, 2)
        assert training.selection.weights == pytest.approx((0.509957, 0.509957), abs=1e-6)
        assert training.rewards == pytest.approx((0.8, 0.3))
        assert training.latents == (candidate(lease, 1).latents, candidate(lease, 2).latents)
        assert training.conditioning == conditioning(lease.prompt)
        assert training.lag == 0

    def test_conditioning_without_image(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(learner__batch_size=1))
        lease = exchange.lease_sampling("sampler-0", 0)
        assert lease is not None
        text_only = type(conditioning(lease.prompt))(array(digest("text")), None)
        exchange.submit_conditioning(lease, text_only)
        for index in (0, 1):
            exchange.submit_candidate(lease, candidate(lease, index))
        score_all(exchange, {"0-0-v0": 1.0, "0-1-v0": 2.0})
        assert exchange.lease_batch("learner-0", 1, 1)[0].conditioning == text_only

    def test_submits_are_idempotent(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        lease = exchange.lease_sampling("sampler-0", 0)
        assert lease is not None
        exchange.submit_conditioning(lease, conditioning(lease.prompt))
        assert exchange.submit_conditioning(lease, conditioning(lease.prompt)) == Submitted(False, "duplicate")
        for index in (0, 1):
            exchange.submit_candidate(lease, candidate(lease, index))
            assert exchange.submit_candidate(lease, candidate(lease, index)) == Submitted(False, "duplicate")
        task = exchange.lease_candidates("rewarder-0", 1)[0]
        assert exchange.submit_scores("rewarder-0", [score(task, 1.0)] * 2) == [
            Submitted(True),
            Submitted(False, "duplicate"),
        ]
        assert exchange.wasted() == {}
        exchange.check()

    def test_a_candidate_outside_its_lease_is_rejected(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        lease, other = exchange.lease_sampling("a", 0), exchange.lease_sampling("b", 0)
        assert lease is not None
        assert other is not None
        with pytest.raises(ValueError, match="0-0-v0: not one of the leased 1 x"):
            exchange.submit_candidate(other, candidate(lease, 0))
        wrong = candidate(lease, 0)
        with pytest.raises(ValueError, match="sampled with seed"):
            exchange.submit_candidate(lease, replace(wrong, seed=1))
        with pytest.raises(ValueError, match="0-0-v0: not one of the leased"):
            exchange.submit_candidate(replace(lease, indices=(1,)), wrong)

    def test_the_last_candidate_requires_the_conditioning(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        lease = exchange.lease_sampling("a", 0)
        assert lease is not None
        exchange.submit_candidate(lease, candidate(lease, 0))
        with pytest.raises(ValueError, match="conditioning must be submitted"):
            exchange.submit_candidate(lease, candidate(lease, 1))
        exchange.submit_conditioning(lease, conditioning(lease.prompt))
        assert exchange.submit_candidate(lease, candidate(lease, 1)).accepted

    def test_admission_waits_for_the_learner(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())  # (max_lag + pushes + 1) * 2 = (1 + 0 + 1) * 2 = 4 groups
        make_pairs(exchange, 4)
        assert exchange.lease_sampling("sampler-0", 0) is None
        train(exchange, 1)
        assert exchange.lease_sampling("sampler-0", 0) is None  # only a push raises the limit, not a step
        exchange.announce(weight_version(1, 1, 1))
        assert [sample(exchange, 1) is not None for _ in range(3)] == [True, True, False]

    def test_admission_stops_when_the_run_has_enough_pairs(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(steps=2, exchange__max_lag=9))
        count = 2 * small().learner.batch_size
        assert [sample(exchange) is not None for _ in range(count + 1)] == [True] * count + [False]
        assert exchange.refusal == "steps = 2: enough pairs for the rest of the run exist or are in progress"

    def test_pipeline_depth_bounds_running_groups(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__pipeline_depth=2))
        assert sample(exchange) is not None
        assert exchange.lease_sampling("b", 0) is not None
        assert exchange.lease_sampling("c", 0) is None
        score_all(exchange, {"0-0-v0": 80.0, "0-1-v0": 30.0})
        assert exchange.lease_sampling("c", 0) is not None

    def test_ties_and_failures_free_admission_capacity(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__max_lag=0, exchange__max_attempts=1))  # at most 2 groups
        sample(exchange)
        score_all(exchange, {"0-0-v0": 50.0, "0-1-v0": 50.0})
        lease = exchange.lease_sampling("sampler-0", 0)
        assert lease is not None
        exchange.fail_sampling(lease, "image is broken")
        make_pairs(exchange, 2)
        counts = exchange.counts()
        assert (counts[State.TIED], counts[State.FAILED], counts[State.READY]) == (1, 1, 2)
        exchange.check()

    def test_a_sampler_with_old_weights_gets_no_training_group(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__max_lag=0))
        make_pairs(exchange, 2)
        train(exchange, 1)
        exchange.announce(weight_version(1, 1, 1))
        assert exchange.lease_sampling("sampler-0", 0) is None
        assert exchange.lease_sampling("sampler-0", 1) is not None
        with pytest.raises(ValueError, match="version 5 was never announced"):
            exchange.lease_sampling("sampler-0", 5)

    def test_a_group_fails_after_max_attempts(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__max_attempts=2))
        for attempt in (1, 2):
            lease = exchange.lease_sampling("sampler-0", 0)
            assert lease is not None
            assert (lease.prompt.ordinal, lease.attempt) == (0, attempt)
            if attempt == 2:
                exchange.submit_candidate(lease, candidate(lease, 0))
            exchange.fail_sampling(lease, "no such image")
        assert exchange.counts()[State.FAILED] == 1
        assert exchange.failures() == {0: "no such image"}
        assert exchange.wasted() == {"failed": 1}
        following = exchange.lease_sampling("sampler-0", 0)
        assert following is not None
        assert following.prompt.ordinal == 1

    # Leases of single candidates.

    def test_samplers_share_a_group(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(sampler__candidates=3, sampler__micro_batch=1))
        leases = [exchange.lease_sampling(worker, 0) for worker in "abcd"]
        assert [(one.prompt.ordinal, one.indices, one.attempt) for one in leases if one] == [
            *((0, (0,), 1), (0, (1,), 2), (0, (2,), 3), (1, (0,), 1))
        ]
        first, second, third, _ = [one for one in leases if one]
        for lease, index in ((third, 2), (first, 0)):
            exchange.submit_conditioning(lease, conditioning(lease.prompt))
            assert exchange.submit_candidate(lease, candidate(lease, index)).accepted
        assert exchange.counts()[State.SAMPLED] == 0
        assert exchange.submit_candidate(second, candidate(second, 1)).accepted
        assert exchange.counts()[State.SAMPLED] == 1
        following = exchange.lease_sampling("a", 0)  # the oldest open group, though admission allows another one
        assert following is not None
        assert (following.prompt.ordinal, following.indices, following.encoded) == (1, (1,), False)
        exchange.check()

    def test_a_lease_is_one_slice_of_the_group(self, open_exchange: Factory) -> None:
        """A micro-batch always has the same rows, so that every candidate gets the same bits."""
        exchange = open_exchange(small(sampler__candidates=5, sampler__micro_batch=2))
        leases = [exchange.lease_sampling(worker, 0) for worker in "abc"]
        assert [one.indices for one in leases if one] == [(0, 1), (2, 3), (4,)]

    def test_an_open_group_is_continued_by_its_version_alone(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(sampler__micro_batch=1))
        exchange.announce(weight_version(1, 1, 1))
        old = exchange.lease_sampling("old", 0)
        assert old is not None
        assert (exchange.wanted_version(0), exchange.wanted_version(1), exchange.wanted_version()) == (0, 1, 1)
        new = exchange.lease_sampling("new", 1)
        assert new is not None
        assert (new.prompt.ordinal, new.version) == (1, 1)
        exchange.submit_conditioning(old, conditioning(old.prompt))
        exchange.submit_candidate(old, candidate(old, 0))
        assert exchange.counts()[State.SAMPLING] == 2  # it stays open for the sampler that comes back
        last = exchange.lease_sampling("old", exchange.wanted_version(0))
        assert last is not None
        assert (last.prompt.ordinal, last.indices, last.version) == (0, (1,), 0)
        assert exchange.wanted_version(0) == 1  # no candidate is left for the old weights
        assert exchange.wasted() == {}

    def test_a_group_whose_sampler_comes_back_with_other_weights_is_sampled_anew(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(sampler__micro_batch=1))
        lease = exchange.lease_sampling("a", 0)
        assert lease is not None
        exchange.submit_conditioning(lease, conditioning(lease.prompt))
        exchange.submit_candidate(lease, candidate(lease, 0))
        exchange.announce(weight_version(1, 1, 1))
        again = exchange.lease_sampling("a", 1)
        assert again is not None
        assert (again.prompt.ordinal, again.indices, again.version) == (0, (0,), 1)
        assert exchange.wasted() == {"death": 1}
        exchange.check()

    def test_a_death_loses_the_candidates_of_one_lease(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(sampler__candidates=3, sampler__micro_batch=1, exchange__max_attempts=2))
        dying, alive = exchange.lease_sampling("dying", 0), exchange.lease_sampling("alive", 0)
        assert dying is not None
        assert alive is not None
        exchange.release("dying")
        exchange.announce(weight_version(1, 1, 1))
        again = exchange.lease_sampling("other", 0)
        assert again is not None
        assert (again.prompt.ordinal, again.indices, again.version) == (0, (0,), 0)
        for lease in (again, alive):
            exchange.submit_conditioning(lease, conditioning(lease.prompt))
            assert exchange.submit_candidate(lease, candidate(lease, lease.indices[0])).accepted
        exchange.release("alive")  # between two leases: nothing of it is lost
        exchange.release("other")
        last = exchange.lease_sampling("third", 0)
        assert last is not None
        assert (last.prompt.ordinal, last.indices) == (0, (2,))
        assert exchange.wasted() == {}
        exchange.fail_sampling(last, "out of memory")
        for worker in ("fourth", "fifth"):  # the second failure at candidate 2 fails the group
            lease = exchange.lease_sampling(worker, 0)
            assert lease is not None
            exchange.fail_sampling(lease, "out of memory")
        assert exchange.failures() == {0: "out of memory"}
        assert exchange.wasted() == {"failed": 2}
        exchange.check()

    # Pacing.

    def test_older_weights_open_no_group_that_would_be_too_old_at_its_turn(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__max_lag=1))  # (1 + 0 + 1) x 2 = 4 groups of version 0
        make_pairs(exchange, 3)
        train(exchange, 1)
        exchange.announce(weight_version(1, 1, 1))
        assert sample(exchange, 0) is not None  # the fourth: trained before the second push, so at lag 1
        assert exchange.lease_sampling("a", 0) is None
        assert exchange.refusal == "exchange.max_lag = 1: pairs of older weights would be too old at their turn"
        assert exchange.lease_sampling("a", 1) is not None

    def test_the_learner_waits_for_a_straggler_rather_than_let_its_group_expire(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__max_lag=1, sampler__micro_batch=1))
        slow = exchange.lease_sampling("slow", 0)
        assert slow is not None
        assert exchange.lease_sampling("also slow", 0) is not None
        make_pairs(exchange, 3)
        assert train(exchange, 1) == [1, 2]  # lag 1 after the push, which is allowed
        exchange.announce(weight_version(1, 1, 1))
        make_pairs(exchange, 2, version=1)
        assert train(exchange, 2) == []  # lag 2 after the push
        for worker in ("slow", "also slow"):
            exchange.release(worker)
        restarted = exchange.lease_sampling("slow", 1)
        assert restarted is not None
        assert (restarted.prompt.ordinal, restarted.version) == (0, 1)
        assert train(exchange, 2) == [3, 4]
        assert exchange.counts()[State.EXPIRED] == 0

    # Leases.

    def test_a_dead_samplers_group_is_leased_again(self, open_exchange: Factory, clock: Clock) -> None:
        exchange = open_exchange(small(exchange__lease_seconds=60))
        dead = exchange.lease_sampling("dead", 0)
        assert dead is not None
        exchange.submit_conditioning(dead, conditioning(dead.prompt))
        exchange.submit_candidate(dead, candidate(dead, 0))
        clock.now += 61
        again = exchange.lease_sampling("alive", 0)
        assert again is not None
        assert (again.prompt.ordinal, again.attempt, again.indices) == (0, 2, (1,))
        assert exchange.submit_candidate(dead, candidate(dead, 1)) == Submitted(False, "lost lease")
        assert exchange.submit_candidate(again, candidate(again, 1)).accepted
        assert exchange.wasted() == {"late": 1}

    def test_another_version_resamples_the_group(self, open_exchange: Factory, clock: Clock) -> None:
        exchange = open_exchange(small(exchange__lease_seconds=60))
        dead = exchange.lease_sampling("dead", 0)
        assert dead is not None
        exchange.submit_conditioning(dead, conditioning(dead.prompt))
        exchange.submit_candidate(dead, candidate(dead, 0))
        exchange.announce(weight_version(1, 1, 1))
        clock.now += 61
        again = exchange.lease_sampling("alive", 1)
        assert again is not None
        assert (again.version, again.indices) == (1, (0, 1))
        assert exchange.wasted() == {"death": 1}
        for index in (0, 1):
            assert exchange.submit_candidate(again, candidate(again, index)).accepted
        exchange.check()

    def test_heartbeats_keep_a_lease(self, open_exchange: Factory, clock: Clock) -> None:
        exchange = open_exchange(small(exchange__lease_seconds=60))
        lease = exchange.lease_sampling("slow", 0)
        assert lease is not None
        for _ in range(3):
            clock.now += 50
            exchange.renew("slow")
        other = exchange.lease_sampling("fast", 0)
        assert other is not None
        assert other.prompt.ordinal == 1
        assert exchange.submit_candidate(lease, candidate(lease, 0)).accepted

    def test_a_dead_rewarders_clips_are_leased_again(self, open_exchange: Factory, clock: Clock) -> None:
        exchange = open_exchange(small(exchange__lease_seconds=60, exchange__max_attempts=2))
        sample(exchange)
        tasks = exchange.lease_candidates("dead", 2)
        exchange.submit_scores("dead", [score(tasks[0], 80.0)])
        assert exchange.lease_candidates("alive", 2) == []
        clock.now += 61
        again = exchange.lease_candidates("alive", 2)
        assert [task.candidate_id for task in again] == ["0-1-v0"]
        clock.now += 61
        assert exchange.lease_candidates("alive", 2) == []
        assert exchange.failures() == {0: "scoring lease of alive expired"}
        exchange.check()

    def test_release_frees_the_leases_of_a_dead_worker_at_once(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__max_attempts=2))
        for _ in range(2):
            lease = exchange.lease_sampling("dying", 0)
            assert lease is not None
            assert lease.prompt.ordinal == 0
            exchange.release("dying")
        after = exchange.lease_sampling("alive", 0)
        assert after is not None
        assert after.prompt.ordinal == 1  # group 0 failed, because its sampler died twice
        assert exchange.failures() == {0: "lease of dying expired"}

    def test_release_does_not_affect_other_workers(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        alive = exchange.lease_sampling("alive", 0)
        assert alive is not None
        exchange.release("dead")
        assert exchange.submit_candidate(alive, candidate(alive, 0)).accepted

    # Scoring.

    def test_batches_mix_prompts_oldest_first(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        for _ in range(3):
            sample(exchange)
        first, second = exchange.lease_candidates("a", 3), exchange.lease_candidates("b", 9)
        assert [task.candidate_id for task in first] == ["0-0-v0", "0-1-v0", "1-0-v0"]
        assert [task.candidate_id for task in second] == ["1-1-v0", "2-0-v0", "2-1-v0"]
        assert [(task.ordinal, task.index) for task in first] == [(0, 0), (0, 1), (1, 0)]
        assert first[2].prompt.id == "train-1"

    def test_a_half_sampled_group_is_not_scored(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        lease = exchange.lease_sampling("sampler-0", 0)
        assert lease is not None
        exchange.submit_candidate(lease, candidate(lease, 0))
        assert exchange.lease_candidates("rewarder-0", 8) == []

    def test_nan_fails_the_group(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        sample(exchange)
        tasks = exchange.lease_candidates("rewarder-0", 2)
        bad = Score(tasks[0].candidate_id, "heads-1", values(50.0) | {"motion": nan})
        answers = exchange.submit_scores("rewarder-0", [bad, score(tasks[1], 1.0)])
        assert answers == [Submitted(True, "nan score: motion"), Submitted(False, "group is failed")]
        assert exchange.failures() == {0: "nan score: motion"}
        assert exchange.wasted() == {"nan": 2}
        exchange.check()

    def test_a_nan_score_reports_its_reason(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        sample(exchange)
        name = exchange.lease_candidates("rewarder-0", 2)[0].candidate_id
        bad = Score(name, "heads-1", values(50.0) | {"motion": nan}, {"motion": "late" * 100, "text": "not asked"})
        reason = f"nan score: motion: {('late' * 100)[:200]}"
        assert exchange.submit_scores("rewarder-0", [bad]) == [Submitted(True, reason)]
        assert exchange.failures() == {0: reason}
        exchange.check()

    def test_unknown_candidates_are_rejected(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        answer = exchange.submit_scores("rewarder-0", [Score("9-9-v9", "heads-1", values(1.0))])
        assert answer == [Submitted(False, "unknown candidate")]

    def test_scores_of_two_reward_models_are_not_mixed(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        sample(exchange)
        first, second = exchange.lease_candidates("rewarder-0", 2)
        exchange.submit_scores("rewarder-0", [score(first, 80.0)])
        exchange.submit_scores("rewarder-1", [Score(second.candidate_id, "heads-2", values(30.0))])
        assert exchange.counts()[State.READY] == 0
        (again,) = exchange.lease_candidates("rewarder-1", 2)
        assert again.candidate_id == first.candidate_id
        exchange.submit_scores("rewarder-1", [Score(again.candidate_id, "heads-2", values(20.0))])
        assert exchange.counts()[State.READY] == 1

    # Training.

    def test_a_batch_has_exactly_the_requested_size_or_is_empty(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        make_pairs(exchange, 3)
        assert exchange.lease_batch("learner-0", 1, 4) == []
        assert train(exchange, 1, 2) == [0, 1]
        assert train(exchange, 2, 2) == []
        make_pairs(exchange, 1)
        assert train(exchange, 2, 2) == [2, 3]

    def test_lease_batch_and_commit_step_are_idempotent(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        make_pairs(exchange, 4)
        first = exchange.lease_batch("learner-0", 1, 2)
        assert exchange.lease_batch("learner-0", 1, 2) == first
        assert exchange.lease_batch("learner-1", 1, 2) == []
        exchange.commit_step(1, [0, 1])
        exchange.commit_step(1, [0, 1])
        assert exchange.counts()[State.TRAINED] == 2
        with pytest.raises(ValueError, match="roll back first"):
            exchange.lease_batch("learner-0", 1, 2)
        with pytest.raises(ValueError, match="which it did not lease"):
            exchange.commit_step(2, [2, 3])

    def test_stale_pairs_expire_when_a_batch_is_leased(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        make_pairs(exchange, 4)
        train(exchange, 1)
        exchange.announce(weight_version(1, 1, 1))
        (pair,) = exchange.lease_batch("learner-0", 2, 1)
        assert pair.lag == 1
        exchange.commit_step(2, [pair.ordinal])
        exchange.announce(weight_version(2, 2, 2))
        assert exchange.counts()[State.READY] == 1
        assert exchange.lease_batch("learner-0", 3, 1) == []
        assert exchange.counts()[State.EXPIRED] == 1
        exchange.check()

    def test_pairs_do_not_expire_with_time(self, open_exchange: Factory, clock: Clock) -> None:
        exchange = open_exchange(small())
        make_pairs(exchange, 2)
        clock.now += 1e9
        assert train(exchange, 1) == [0, 1]

    @pytest.mark.parametrize("times", [1, 2])
    def test_a_commit_counts_even_if_its_pairs_expired_during_the_step(
        self, open_exchange: Factory, clock: Clock, times: int
    ) -> None:
        config = small(exchange__max_lag=0, exchange__lease_seconds=60, exchange__max_times_trained=times)
        exchange = open_exchange(config)
        make_pairs(exchange, 2)
        exchange.lease_batch("slow", 1, 2)
        clock.now += 61
        exchange.announce(weight_version(1, 1, 1))
        assert exchange.lease_batch("hasty", 1, 2) == []
        assert exchange.counts()[State.EXPIRED] == 2
        exchange.commit_step(1, [0, 1])  # the weights already include them
        assert exchange.counts()[State.TRAINED] == 2
        exchange.check()
        exchange.rollback(0)
        assert exchange.counts()[State.READY] == 2

    def test_steps_must_be_leased_and_committed_in_order(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        make_pairs(exchange, 4)
        with pytest.raises(ValueError, match="step 2 requested, but step 1 is not committed yet"):
            exchange.lease_batch("learner-0", 2, 2)
        train(exchange, 1)
        train(exchange, 2)
        exchange.rollback(0)
        with pytest.raises(ValueError, match="step 2 requested, but step 1 is not committed yet"):
            exchange.commit_step(2, [2, 3])  # from a learner that was replaced and still runs

    def test_a_rollback_retires_evaluations_of_the_versions_that_it_discards(self, open_exchange: Factory) -> None:
        """Their weights may be deleted before a sampler loads them; samplers would wait for them forever."""
        exchange = open_exchange(small())
        make_pairs(exchange, 2)
        train(exchange, 1)
        exchange.announce(weight_version(1, 1, 1))
        exchange.enqueue(heldout(2), version=1)
        exchange.enqueue(heldout(1, Purpose.PROBE))
        lease = exchange.lease_sampling("sampler-0", 1)
        assert lease is not None
        assert exchange.wanted_version() == 1
        exchange.rollback(0)
        assert exchange.wanted_version() == 0
        assert exchange.counts(Purpose.EVAL)[State.FAILED] == 2
        assert exchange.counts(Purpose.PROBE)[State.PENDING] == 1  # any version may sample it
        assert exchange.submit_candidate(lease, candidate(lease, 0)) == Submitted(False, "lost lease")
        again = exchange.lease_sampling("sampler-0", 0)
        assert again is not None
        assert again.prompt.purpose is Purpose.PROBE
        exchange.check()

    def test_uses_never_exceed_max_times_trained(self, open_exchange: Factory) -> None:
        """Even if steps are repeated after a rollback."""
        exchange = open_exchange(small(exchange__max_times_trained=2, exchange__max_lag=9))
        make_pairs(exchange, 2)
        assert [train(exchange, step) for step in (1, 2, 3)] == [[0, 1], [0, 1], []]
        exchange.commit_step(2, [0, 1])  # a retry
        assert exchange.counts()[State.TRAINED] == 2
        exchange.rollback(1)
        assert exchange.counts()[State.READY] == 2  # one use of each is left
        make_pairs(exchange, 1)
        assert [train(exchange, step) for step in (2, 3)] == [[0, 1], []]
        make_pairs(exchange, 1)
        assert [train(exchange, step) for step in (3, 4, 5)] == [[2, 3], [2, 3], []]
        assert exchange.counts()[State.TRAINED] == 4
        exchange.check()

    def test_a_failed_group_reports_its_last_cause(self, open_exchange: Factory, clock: Clock) -> None:
        exchange = open_exchange(small(exchange__max_attempts=2, exchange__lease_seconds=60, exchange__max_lag=9))
        lost = exchange.lease_sampling("dying", 0)  # group 0: one sampler dies, another cannot read the image
        assert lost is not None
        clock.now += 61
        again = exchange.lease_sampling("sampler-0", 0)
        assert again is not None
        assert again.prompt.ordinal == 0
        exchange.fail_sampling(again, "image is broken")
        for _ in range(2):  # group 1: rewarders die; group 2: a score is NaN
            sample(exchange)
        for worker in ("rewarder-0", "rewarder-1"):
            exchange.lease_candidates(worker, 1)
            clock.now += 61
        tasks = exchange.lease_candidates("rewarder-2", 2)
        assert [task.prompt.ordinal for task in tasks] == [2, 2]
        exchange.submit_scores("rewarder-2", [score(tasks[0], nan)])
        assert exchange.failures() == {
            0: "image is broken",
            1: "scoring lease of rewarder-1 expired",
            2: "nan score: appeal",
        }
        assert exchange.wasted() == {"failed": 2, "nan": 2}
        assert exchange.bytes_on_disk() == 0
        exchange.check()

    def test_pairs_are_trained_max_times_trained_times(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__max_times_trained=2, exchange__max_lag=3))
        make_pairs(exchange, 4)
        assert [train(exchange, step) for step in (1, 2, 3, 4, 5)] == [[0, 1], [2, 3], [0, 1], [2, 3], []]
        assert exchange.counts()[State.TRAINED] == 4
        exchange.check()

    def test_priority_order_takes_the_largest_weight(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__order="priority"))
        for high in (50.0, 90.0, 40.0):
            lease = sample(exchange)
            assert lease is not None
            ordinal = lease.prompt.ordinal
            score_all(exchange, {f"{ordinal}-0-v0": high, f"{ordinal}-1-v0": 30.0})
        assert train(exchange, 1) == [1, 0]

    def test_a_lost_training_lease_frees_its_pairs(self, open_exchange: Factory, clock: Clock) -> None:
        exchange = open_exchange(small(exchange__lease_seconds=60))
        make_pairs(exchange, 2)
        exchange.lease_batch("dead", 1, 2)
        clock.now += 61
        assert train(exchange, 1) == [0, 1]

    def test_version_ids_must_increase(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        assert (exchange.next_version(), exchange.current_version()) == (0, 0)
        exchange.announce(weight_version(0, 0, 0))
        assert (exchange.next_version(), exchange.current_version()) == (1, 0)
        exchange.announce(weight_version(1, 1, 1))
        exchange.announce(weight_version(1, 1, 1))
        assert (exchange.next_version(), exchange.current_version()) == (2, 1)
        with pytest.raises(ValueError, match="version 1 was used before"):
            exchange.announce(weight_version(1, 2, 2))

    def test_the_empty_prompt_embedding_is_stored(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        assert exchange.empty_prompt() is None
        embeds = array(b"embeds")
        exchange.keep_empty_prompt(embeds)
        assert exchange.empty_prompt() == embeds

    # Probes and evaluations.

    def test_evaluations_come_first_and_end_as_results(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        exchange.enqueue(heldout(3))
        leases = [sample(exchange) for _ in range(4)]
        assert [lease.prompt.id for lease in leases if lease] == ["held-0", "held-1", "held-2", "train-0"]
        assert [len(lease.seeds) for lease in leases if lease] == [1, 1, 1, 2]
        score_all(exchange)
        results = exchange.results(Purpose.EVAL, 0)
        assert [result.prompt for result in results] == heldout(3)
        assert results[1].candidate.clip == candidate(leases[1], 0).clip if leases[1] else False
        assert set(results[1].values) == set(values(0.0))
        assert exchange.counts(Purpose.EVAL)[State.DONE] == 3
        assert total(exchange.counts()) == 1
        exchange.check()

    def test_evaluations_of_two_versions_use_the_same_seeds(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        exchange.enqueue(heldout(2), version=0)
        exchange.announce(weight_version(1, 1, 1))
        exchange.enqueue(heldout(2), version=1)
        aligned = [sample(exchange, 1) for _ in range(2)]
        base = [sample(exchange, 0) for _ in range(2)]
        assert [lease.seeds for lease in base if lease] == [lease.seeds for lease in aligned if lease]
        score_all(exchange)
        before, after = exchange.results(Purpose.EVAL, 0), exchange.results(Purpose.EVAL, 1)
        assert [one.prompt.id for one in before] == [one.prompt.id for one in after] == ["held-0", "held-1"]
        assert {one.candidate.policy_version for one in after} == {1}

    def test_enqueuing_again_for_a_version_adds_nothing(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        exchange.enqueue(heldout(3), version=0)
        sample(exchange)
        score_all(exchange)
        exchange.enqueue(heldout(3), version=0)
        assert total(exchange.counts(Purpose.EVAL)) == 3
        exchange.enqueue(heldout(3, Purpose.PROBE), version=0)
        assert total(exchange.counts(Purpose.PROBE)) == 3

    def test_wanted_version_follows_pending_evaluations(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        assert exchange.wanted_version() == 0
        exchange.announce(weight_version(1, 1, 1))
        assert exchange.wanted_version() == 1  # the newest
        exchange.enqueue(heldout(1), version=0)
        assert exchange.wanted_version() == 0
        sample(exchange, 0)
        assert exchange.wanted_version() == 1

    def test_probes_of_the_base_model_are_rescored(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        exchange.enqueue(heldout(2, Purpose.PROBE), version=0)
        first = [sample(exchange) for _ in range(2)]
        score_all(exchange, {candidate(lease, 0).id: 40.0 for lease in first if lease})
        exchange.rescore_probes(0)
        assert exchange.results(Purpose.PROBE, 0) == []
        assert exchange.counts(Purpose.PROBE)[State.SAMPLED] == 2
        score_all(exchange, {candidate(lease, 0).id: 70.0 for lease in first if lease})
        again = exchange.results(Purpose.PROBE, 0)
        assert [one.values["motion"] for one in again] == [70.0, 70.0]
        assert [one.candidate.id for one in again] == [candidate(lease, 0).id for lease in first if lease]
        exchange.check()

    def test_retiring_keeps_only_the_probes_of_the_base_model(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small())
        for version in (1, 2):
            exchange.announce(weight_version(version, version, version))
        for version, count in ((0, 1), (1, 3)):
            exchange.enqueue(heldout(count, Purpose.PROBE), version=version)
        for version in (0, 1, 1):
            sample(exchange, version)
        score_all(exchange)
        whole = exchange.bytes_on_disk()
        assert exchange.wanted_version() == 1
        exchange.retire_probes()
        assert exchange.wanted_version() == 2  # the newest, since no probe of version 1 is pending any more
        assert len(exchange.results(Purpose.PROBE, 0)) == 1
        counts = exchange.counts(Purpose.PROBE)
        assert (counts[State.DONE], counts[State.FAILED], counts[State.PENDING]) == (3, 1, 0)
        assert exchange.bytes_on_disk() < whole
        assert exchange.failures() == {}
        exchange.check()

    def test_a_refresh_is_due_after_the_same_step_also_after_a_rollback(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__max_lag=4, learner__keep_checkpoints=4))
        make_pairs(exchange, 8)
        for step in (1, 2, 3):
            train(exchange, step)
            exchange.announce(weight_version(step, step, step))
        exchange.ask_refresh(2)
        assert not exchange.refresh_due(1)  # requested after step 2
        assert exchange.refresh_due(3)  # the learner was already at step 3
        assert exchange.refresh_due(3)
        assert not exchange.refresh_due(4)
        exchange.rollback(2)
        assert [exchange.rolled_back(version) for version in (0, 1, 2, 3)] == [False, False, False, True]
        assert exchange.refresh_due(2)  # it was applied after step 3, which was rolled back
        exchange.rollback(1)
        assert not any(map(exchange.refresh_due, (1, 2, 3)))  # the version that requested it was rolled back
        exchange.ask_refresh(3)
        assert not any(map(exchange.refresh_due, (1, 2, 3)))  # a version that was rolled back
        exchange.check()

    def test_collected_groups_keep_all_candidates_until_they_are_dropped(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(collect__prompts=9))
        exchange.enqueue(heldout(1, Purpose.COLLECT), 0, start=5)
        exchange.enqueue(heldout(1, Purpose.COLLECT), 0, start=6)
        leases = [sample(exchange) for _ in range(3)]
        assert leases[2] is None
        assert exchange.refusal == "collect.prompts = 9: the run does not train"
        assert [lease.seeds for lease in leases if lease] == [
            tuple(candidate_seed(0, Purpose.COLLECT, position, index) for index in range(2)) for position in (5, 6)
        ]
        score_all(exchange)
        first, second = exchange.collected()
        assert leases[0] is not None
        assert first.candidates == tuple(candidate(leases[0], index) for index in range(2))
        assert first.conditioning == conditioning(leases[0].prompt)
        assert [one.candidate_id for one in first.scores] == [one.id for one in first.candidates]
        assert [one.reward_version for one in first.scores] == ["heads-1", "heads-1"]
        exchange.drop_collected(first.ordinal)
        exchange.drop_collected(first.ordinal)  # a retry
        assert [one.ordinal for one in exchange.collected()] == [second.ordinal]
        assert exchange.counts(Purpose.COLLECT)[State.DONE] == 2
        exchange.check()
        exchange.drop_collected(second.ordinal)
        assert exchange.bytes_on_disk() == 0
        exchange.check()

    def test_training_groups_keep_all_candidates_until_they_are_dropped(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(keep_candidates_bytes=1, sampler__candidates=3, exchange__keep_groups=1))
        exchange.announce(replace(weight_version(0, 0, 0), digest="ab" * 16))
        lease, tied = sample(exchange), sample(exchange)
        assert lease is not None
        assert tied is not None
        names = {f"{ordinal}-{index}-v0": 50.0 for ordinal in (0, 1) for index in range(3)}
        score_all(exchange, names | {"0-1-v0": 80.0, "0-2-v0": 30.0})
        assert [one.ordinal for one in exchange.collected()] == [0, 1]
        make_pairs(exchange, 1)
        train(exchange, 1)
        exchange.announce(weight_version(1, 1, 1))
        exchange.record_checkpoint(1)  # deletes neither the blobs nor the rows of a group that waits
        exchange.check()
        first, second, _ = exchange.collected()
        assert first.candidates == tuple(candidate(lease, index) for index in range(3))
        assert first.conditioning == conditioning(lease.prompt)
        assert first.prompt == lease.prompt
        assert [one.values["motion"] for one in first.scores] == [50.0, 80.0, 30.0]
        assert (first.weights, first.selection and first.selection.candidates) == ("ab" * 16, (1, 2))
        assert (len(second.candidates), second.selection) == (3, None)
        for one in (first, second, first):
            exchange.drop_collected(one.ordinal)
        (last,) = exchange.collected()
        exchange.drop_collected(last.ordinal)
        assert exchange.bytes_on_disk() == 0  # the checkpoint is past both pairs
        assert total(exchange.counts()) == 3
        exchange.check()

    def test_what_training_needs_of_a_dropped_group_stays(self, open_exchange: Factory) -> None:
        kept, usual = (small(sampler__candidates=4, keep_candidates_bytes=size) for size in (1, 0))
        exchange = open_exchange(kept)
        make_pairs(exchange, 2)
        for one in exchange.collected():
            exchange.drop_collected(one.ordinal)
        bytes_kept = exchange.bytes_on_disk()
        batch = exchange.lease_batch("learner-0", 1, 2)
        exchange.close()
        exchange = open_exchange(usual)
        assert exchange.bytes_on_disk() == bytes_kept
        assert exchange.lease_batch("learner-0", 1, 2) == batch

    def test_a_run_may_stop_keeping_candidates(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(sampler__candidates=4, keep_candidates_bytes=1))
        make_pairs(exchange, 1)
        exchange.stop_keeping()
        make_pairs(exchange, 1)
        assert list(exchange.collected()) == []
        exchange.close()
        exchange = open_exchange(small(sampler__candidates=4, keep_candidates_bytes=1))
        make_pairs(exchange, 1)
        assert [one.ordinal for one in exchange.collected()] == [2]  # another start decides anew
        exchange.close()
        exchange = open_exchange(small(sampler__candidates=4))
        assert list(exchange.collected()) == []
        exchange.check()

    def test_a_collected_group_needs_its_conditioning(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(collect__prompts=1))
        exchange.enqueue(heldout(1, Purpose.COLLECT), 0)
        lease = exchange.lease_sampling("sampler-0", 0)
        assert lease is not None
        exchange.submit_candidate(lease, candidate(lease, 0))
        with pytest.raises(ValueError, match="its conditioning must be submitted before its last candidate"):
            exchange.submit_candidate(lease, candidate(lease, 1))

    def test_offline_data_is_never_too_old(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(candidates="set", exchange__max_lag=0, learner__steps_per_push=2))
        make_pairs(exchange, 4)
        train(exchange, 1)
        for version in (1, 2):
            exchange.announce(weight_version(version, version, version))
        assert exchange.lease_sampling("sampler-0", 0) is not None  # whatever version the sampler holds
        assert train(exchange, 2) == [2, 3]
        assert exchange.counts()[State.EXPIRED] == 0

    def test_the_next_lease_clears_the_refusal(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__pipeline_depth=1))
        sample(exchange)
        assert exchange.lease_sampling("sampler-0", 0) is None
        assert "pipeline_depth" in exchange.refusal
        exchange.enqueue(heldout(1))
        assert exchange.lease_sampling("sampler-0", 0) is not None
        assert exchange.refusal == ""

    def test_evaluations_do_not_count_in_admission(self, open_exchange: Factory) -> None:
        exchange = open_exchange(small(exchange__max_lag=0, exchange__pipeline_depth=2))
        exchange.enqueue(heldout(5))
        for _ in range(5):
            assert sample(exchange) is not None
        assert [sample(exchange) is not None for _ in range(3)] == [True, True, False]
