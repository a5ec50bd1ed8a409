"""Records survive a kill in the middle of a line, and a repeated step counts once."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from deploy.run_dir.jsonl import TAIL, JsonLines, Tail, latest_by_step, older, read_json_lines


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_written_is_read_back_in_order(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    with JsonLines(path, clock=Clock()) as lines:
        lines.write(step=1, loss=0.5)
        assert read_json_lines(path) == [{"time": 100.0, "step": 1, "loss": 0.5}]  # readable while it is written
        lines.write(step=2, loss=0.25, text="動画")
    assert [record["step"] for record in read_json_lines(path)] == [1, 2]
    assert read_json_lines(path)[1]["text"] == "動画"


def test_a_truncated_line_is_skipped_and_removed_by_the_next_writer(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_json_lines(path) == [{"step": 1}]
    with JsonLines(path, clock=Clock()) as lines:
        lines.write(step=3)
    assert [record["step"] for record in read_json_lines(path)] == [1, 3]


def test_a_file_with_only_a_truncated_line_is_cleared(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"st')
    with JsonLines(path, clock=Clock()) as lines:
        lines.write(step=1)
    assert path.read_text() == '{"time": 100.0, "step": 1}\n'


def test_a_missing_file_has_no_records(tmp_path):
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2"):
        read_json_lines(path)


def test_nan_is_refused(tmp_path):
    with JsonLines(tmp_path / "metrics.jsonl") as lines, pytest.raises(ValueError, match="not JSON compliant"):
        lines.write(loss=float("nan"))
    assert read_json_lines(tmp_path / "metrics.jsonl") == []


def test_the_last_record_of_a_repeated_step_counts():
    records = [{"step": 1, "a": 1}, {"step": 2, "a": 2}, {"event": "resumed"}, {"step": 2, "a": 3}]
    assert latest_by_step(records) == [{"step": 1, "a": 1}, {"step": 2, "a": 3}]


def test_a_long_truncated_line_is_removed_and_earlier_records_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = "".join(f'{{"step": {step}, "text": "{"x" * 1000}"}}\n' for step in range(200))  # longer than what is read
    path.write_text(whole + '{"text": "' + "y" * 3 * TAIL)
    JsonLines(path).close()
    assert path.read_text() == whole


def test_a_bounded_file_keeps_its_newest_records_in_order(tmp_path):
    path = tmp_path / "timeline.jsonl"
    with JsonLines(path, bound=1000, clock=Clock()) as lines:
        for number in range(100):
            lines.write(number=number)  # 29 or 30 bytes
            numbers = [record["number"] for record in read_json_lines(path)]
            assert numbers == list(range(number + 1 - len(numbers), number + 1))
            assert len(numbers) >= min(number + 1, 17)
            assert path.stat().st_size + (older(path).stat().st_size if older(path).exists() else 0) < 1100
    with JsonLines(path, bound=1000, clock=Clock()) as lines:  # another start of the run
        lines.write(number=100)
    assert [record["number"] for record in read_json_lines(path)][-3:] == [98, 99, 100]


def test_a_broken_line_in_the_older_part_is_named(tmp_path):
    path = tmp_path / "timeline.jsonl"
    older(path).write_text("nonsense\n")
    path.write_text('{"step": 2}\n')
    with pytest.raises(ValueError, match=r"timeline\.older\.jsonl:1"):
        read_json_lines(path)


def test_a_tail_reads_new_records_and_restarts_with_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    assert tail.read() == [{"step": 1}, {"step": 2}]
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert tail.read() == [{"step": 1}, {"step": 2}, {"step": 3}]
    path.write_bytes(b'{"step": 7}\n')
    assert tail.read() == [{"step": 7}]
    with path.open("ab") as file:
        file.write(b"no JSON\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:2: not valid JSON"):
        tail.read()
    path.write_bytes(b"7\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:1: not a JSON object"):
        Tail(path).read()
