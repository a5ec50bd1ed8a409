"""Which worker waits for which role, the bottleneck and the time left, in literal values."""

from __future__ import annotations

import pytest

from common.exchange.api import State
from common.exchange.queries import Work
from deploy.inspect.status import RunStatus, lines, run_status
from tests.support.runs import event, ledger_summary, snapshot, span, step

LAG = "exchange.max_lag = 1: enough pairs for the next pushes exist or are in progress"


def workers(found: RunStatus) -> list[str]:
    return [one.line for one in found.workers]


def test_a_learner_waits_for_samplers_which_set_the_pace() -> None:
    work = {
        "sampler-0": Work("sampling", 17, "train", 2, 4),
        "sampler-1": Work("sampling", 18, "train", 0, 4),
    }
    spans = [
        *(span(f"sampler-{n}", 1000.0 + 20 * k, 20.0, units=4) for n in (0, 1) for k in range(5)),  # until 1100
        span("rewarder-0", 1090.0, 4.0, units=20),
        span("learner-0", 1050.0, 9.0),
    ]
    ledger = ledger_summary(work, {"sampling": 2, "ready": 3, "trained": 8}, step=1, version=1)
    found = run_status(snapshot(1100.0, ledger, spans, [step(1, 1060.0)]))
    assert workers(found) == [
        "sampler-0 works on a training group, 2 of 4 clips",
        "sampler-1 works on a training group, 0 of 4 clips",
        "rewarder-0 waits for clips since 6 s",
        "learner-0 waits for pairs (3 of 8) since 41 s",
    ]
    assert [one.on for one in found.workers] == ["", "", "sampler", "sampler"]
    assert (found.phase, found.bottleneck, found.window) == ("training", "sampler", 100.0)
    shares = {role: (how["workers"], round(how["busy"], 6), how["waiting"]) for role, how in found.roles.items()}
    assert shares == {"sampler": (2, 1.0, 0), "rewarder": (1, 0.04, 1), "learner": (1, 0.09, 1)}
    assert found.rates == {
        "groups_per_second": pytest.approx(0.1),
        "clips_per_second": pytest.approx(0.2),
        "steps_per_minute": pytest.approx(0.6),
        "pushes_per_minute": pytest.approx(0.6),
    }


def test_samplers_wait_for_admission_while_the_learner_works() -> None:
    spans = [
        *(span(f"sampler-{n}", 1000.0, 10.0) for n in (0, 1)),
        *(span("learner-0", 1000.0 + 30 * k, 30.0) for k in range(3)),
    ]
    ledger = ledger_summary(
        {"learner-0": Work("learning", 4, "train", 0, 8)}, {"training": 8, "ready": 9}, step=3, refusal=LAG
    )
    found = run_status(snapshot(1102.0, ledger, spans, [step(n, 1000.0 + 30 * n) for n in (1, 2, 3)]))
    assert workers(found) == [
        f"sampler-0 waits for admission ({LAG}) since 92 s",
        f"sampler-1 waits for admission ({LAG}) since 92 s",
        "rewarder-0 waits for clips since 102 s",
        "learner-0 works on step 4",
    ]
    assert found.bottleneck == "learner"
    # Three steps, and 12 s of the current one, of 102 s.
    assert found.roles["learner"]["busy"] == pytest.approx(1.0)
    assert found.roles["sampler"] == {"workers": 2, "busy": pytest.approx(20 / 204), "waiting": 2}
    # 17 steps are left, one took 30 s.
    assert found.eta == pytest.approx(17 * 30)


def test_the_current_unit_of_work_counts_for_at_most_its_usual_length() -> None:
    """Its start is unknown: it may be long after the end of the last one."""
    spans = [span("learner-0", 1000.0, 5.0), *(span("sampler-0", 1010.0 + 10 * k, 10.0) for k in range(8))]
    ledger = ledger_summary({"learner-0": Work("learning", 2, "train", 0, 8)}, {"training": 8}, step=1, refusal=LAG)
    found = run_status(snapshot(1100.0, ledger, spans, [step(1, 1005.0)]))
    assert found.roles["learner"]["busy"] == pytest.approx(10 / 100)


def test_a_learner_waits_for_the_rewarder_if_enough_clips_are_sampled() -> None:
    ledger = ledger_summary(
        {"rewarder-0": Work("scoring", 0, "train", 0, 16)}, {"ready": 3, "scoring": 4, "sampled": 1}, refusal=LAG
    )
    found = run_status(snapshot(1030.0, ledger, [span("rewarder-0", 1000.0, 20.0, 8)]))
    learner = found.workers[-1]
    assert (learner.words, learner.on, learner.seconds) == ("for pairs (3 of 8)", "rewarder", 30.0)
    assert found.workers[-2].line == "rewarder-0 works on 16 clips"
    assert found.bottleneck == "rewarder"


def test_other_states_of_workers() -> None:
    spans = [
        span("sampler-0", 1000.0, 1.0), span("sampler-0", 1001.0, 1.0, kind="loading"), span("sampler-1", 1050.0, 1.0),
        span("sampler-1", 1061.0, 1.0, kind="loading"), span("sampler-2", 1020.0, 30.0), span("learner-0", 1000.0, 60.0)
    ]  # fmt: skip
    work = {"sampler-3": Work("sampling", 9, "eval", 0, 1, lost=True), "sampler-2": Work("sampling", 3, "eval", 0, 1)}
    ledger = ledger_summary(work, {"sampling": 2, "sampled": 1}, step=2, version=2)
    found = run_status(snapshot(1070.0, ledger, spans, [step(1, 1060.0)]))
    assert workers(found) == [
        "sampler-0 waits for the weights of version 2 since 68 s",
        "sampler-1 works between two groups",
        "sampler-2 works on a held-out group, 0 of 1 clips",  # joined; two are configured
        "sampler-3 is lost (other workers redo its work)",
        "rewarder-0 has not begun",
        "learner-0 works on step 2: publishing or saving",
    ]


def test_the_roles_of_a_serial_run_wait_for_their_turn() -> None:
    ledger = ledger_summary(
        {"sampler-0": Work("sampling", 5, "train", 0, 4)}, {"sampling": 1, "sampled": 2, "ready": 8}
    )
    spans = [span("rewarder-0", 1000.0, 1.0), span("learner-0", 1001.0, 1.0)]
    found = run_status(snapshot(1010.0, ledger, spans, mode="serial"))
    assert workers(found) == [
        "sampler-0 works on a training group, 0 of 4 clips",
        "rewarder-0 waits for its turn since 9 s",
        "learner-0 waits for its turn since 8 s",
    ]
    assert {one.on for one in found.workers[1:]} == {"sampler"}


def test_phases() -> None:
    started = (event(1000.0, "started"),)
    pending, done = {State.PENDING: 3, State.DONE: 5}, {State.DONE: 8}
    ledgers = {
        "starting": None,
        "evaluating base": ledger_summary(held_out=pending),
        "training": ledger_summary(held_out=done),
        "evaluating aligned": ledger_summary(held_out=pending, held_out_version=20, step=20),
    }
    for phase, ledger in ledgers.items():
        assert run_status(snapshot(1010.0, ledger, events=started)).phase == phase
    assert run_status(snapshot(1010.0, ledger_summary(), events=())).phase == "starting"
    spans = [span("sampler-0", 1000.0 + k, 1.0) for k in range(5)]
    found = run_status(snapshot(1010.0, ledgers["evaluating base"], spans, events=started))
    assert (found.words, found.eta) == ("evaluating base 5/8  0.50 groups/s  0:06 left", pytest.approx(6.0))


def test_a_stopped_run_shows_since_when_why_and_how_to_resume() -> None:
    ledger, steps = ledger_summary({"learner-0": Work("learning", 3, "train", 0, 8)}, step=2), [step(2, 1100.0)]
    started = event(1000.0, "started")
    ends = {
        "ended without recording why: killed by SIGKILL, the OOM killer or a power cut; see douga logs": [started],
        "failed after step 3 with exit code 3: judge red: ValueError: boom (mine.py:12)": [
            started,
            event(1010.0, "failed", step=3, words="judge red: ValueError: boom (mine.py:12)", exit_code=3),
        ],
        "interrupted after step 2": [started, event(1101.0, "interrupted", step=2)],
        "paused by the guardrails after step 2: frozen": [
            started, event(1101.0, "alarm", step=2, action="pause", rule="motion", words="frozen")
        ],
    }  # fmt: skip
    for words, events in ends.items():
        found = run_status(snapshot(9000.0, ledger, steps=steps, events=events, lock_owner=None))
        assert (found.phase, found.words, found.workers, found.bottleneck) == ("not running", words, [], None)
        assert found.since == max(1100.0, events[-1]["time"])
        assert found.resume_command == "douga run runs/mine/config.toml"
        assert any(line.endswith("; resume with: douga run runs/mine/config.toml") for line in lines(found))


def test_a_finished_run_shows_its_verdict() -> None:
    result = {"step": 20, "verdict": {"message": "Aligned."}}
    found = run_status(
        snapshot(
            9000.0,
            ledger_summary({}, {"trained": 160}, step=20),
            steps=[step(20, 1500.0)],
            lock_owner=None,
            result=result,
        )
    )
    assert (found.phase, found.words, found.resume_command, found.queue) == (
        "finished",
        "Aligned.",
        None,
        {"trained": 160},
    )
    more = run_status(
        snapshot(
            9000.0,
            ledger_summary(step=20),
            lock_owner=None,
            result=result,
            steps=[step(20, 1500.0)],
            learner__lr="1e-6",
        )
    )
    assert more.phase == "finished"


def test_the_learner_waits_for_a_straggler() -> None:
    work = {"sampler-1": Work("sampling", 17, "train", 2, 4)}
    ledger = ledger_summary(work, {"sampling": 1, "ready": 9}, step=3, refusal=LAG, straggler=17)
    spans = [span("learner-0", 1000.0, 60.0)]
    found = run_status(snapshot(1080.0, ledger, spans, [step(n, 1020.0 * n) for n in (1, 2, 3)]))
    learner = next(one for one in found.workers if one.name == "learner-0")
    assert learner.words == "for group 17, which would be too old after the next push (exchange.max_lag)"
    assert (learner.state, learner.on) == ("waits", "sampler")


def test_the_lines_of_a_terminal() -> None:
    events = [event(1000.0, "started"), event(1080.0, "alarm", step=2, rule="motion", action="warn", words="frozen")]
    steps = [step(1, 1030.0), step(2, 1060.0, refreshed=True), step(3, 1090.0, pushed=False)]
    ledger = ledger_summary(
        {}, {"pending": 1, "ready": 3, "trained": 24}, step=3, version=2, wasted={"death": 4}, refusal=LAG
    )
    spans = [span("sampler-0", 1000.0, 50.0, 4), span("rewarder-0", 1050.0, 10.0, 4), span("learner-0", 1060.0, 30.0)]
    assert lines(run_status(snapshot(1100.0, ledger, spans, steps, events))) == [
        "mine: training, process 4711",
        "training 3/20  pairs 24  version 2  lag 0.5  reward 75.00  loss 0.5000  0.01 groups/s  8:30 left",
        "",
        "step 3 of 20   version 2   lag 0.5 pushes (max 1, bound 1)",
        "groups   1 pending, 3 ready, 24 trained",
        "wasted   4 clips by death",
        "rates    0.01 groups/s, 0.04 clips/s, 1.8 steps/min, 1.2 pushes/min (last 1:40)",
        "last     push after step 2, 0:40 ago",
        "last     refresh after step 2, 0:40 ago",
        "last     alarm after step 2, 0:20 ago: frozen",
        "last     started after step 0, 1:40 ago",
        "busy     sampler 25% of 2, rewarder 10% of 1, learner 30% of 1; the learner is the bottleneck",
        "",
        f"  sampler-0 waits for admission ({LAG}) since 50 s",
        f"  sampler-1 waits for admission ({LAG}) since 100 s",
        "  rewarder-0 waits for clips since 40 s",
        "  learner-0 waits for pairs (3 of 8) since 10 s",
    ]
