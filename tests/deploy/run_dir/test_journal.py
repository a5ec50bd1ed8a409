"""The journal writes the events of local and remote workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.messages import Span, TrainingFinished
from common.rpc.server import serving
from deploy.run_dir.journal import RunJournal, timed
from deploy.run_dir.jsonl import read_json_lines
from deploy.runtime.workers.remote_journal import RemoteJournal, journal_service
from tests.support.steps import STATS


def test_reports_of_a_remote_worker_are_in_the_run_folder(tmp_path: Path) -> None:
    with (
        RunJournal(tmp_path, lambda: {"ready": 4}) as journal,
        serving(journal_service(journal)) as service,
        RemoteJournal(service.address, "learner-0") as remote,
    ):
        remote.step(STATS)
        remote.span(Span("learner-0", "learning", 1000.25, 2.5))
        assert journal.end is None
        remote.trained(TrainingFinished(3, 7, "abc"))
        assert (journal.last, journal.end) == (STATS, TrainingFinished(3, 7, "abc"))
    (record,) = read_json_lines(tmp_path / "metrics.jsonl")
    assert (record["step"], record["lag_max"], record["refreshed"], record["queue"]) == (3, 1, True, {"ready": 4})
    (span,) = read_json_lines(tmp_path / "timeline.jsonl")
    assert (span["worker"], span["kind"], span["began"], span["seconds"]) == ("learner-0", "learning", 1000.25, 2.5)


def test_calls_without_work_leave_no_span(tmp_path: Path) -> None:
    with RunJournal(tmp_path, dict) as journal:
        assert timed(journal, "sampler-0", "sampling", lambda: False) is False
        assert timed(journal, "learner-0", "learning", lambda: None) is None
        assert timed(journal, "sampler-0", "sampling", lambda: "done") == "done"
        assert timed(journal, "rewarder-0", "scoring", lambda: 0) == 0
        assert timed(journal, "rewarder-0", "scoring", lambda: 16) == 16
        assert timed(journal, "sampler-1", "sampling", lambda: True) is True
        with pytest.raises(RuntimeError, match="broken"):
            timed(journal, "sampler-0", "sampling", _fail)
    told = [(record["worker"], record["units"]) for record in read_json_lines(tmp_path / "timeline.jsonl")]
    assert told == [("sampler-0", 1), ("rewarder-0", 16), ("sampler-1", 1)]


def _fail() -> bool:
    raise RuntimeError("broken")
