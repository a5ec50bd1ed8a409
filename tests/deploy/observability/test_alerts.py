"""The alert rules: promtool accepts and tests them, and docs/alerts.md agrees with them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from common.config import keys, load_config, may_change
from deploy.observability.definitions import TABLE
from deploy.observability.stack import PROMETHEUS, rules

DOCS = Path(__file__).parents[3] / "docs"
RULES = [rule for group in rules()["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
TESTS = sorted(Path(__file__).parent.glob("rules-*.yml"))
CASES = {case["name"]: case for file in TESTS for case in yaml.safe_load(file.read_text("utf-8"))["tests"]}


def promtool(*words: str | Path) -> str:
    """Returns its output. Its tests are short, but the machine may be busy."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool; Debian: apt-get install prometheus")
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


# The rules.


def test_prometheus_takes_the_rules() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", PROMETHEUS / "rules.yml")


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_alerts_fire_only_above_their_thresholds(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", file)


def test_every_alert_is_tested_firing_and_not_firing() -> None:
    for name in ALERTS:
        early, late = CASES[name]["alert_rule_test"]
        assert early["alertname"] == late["alertname"] == name
        assert not early.get("exp_alerts")  # before its `for` has passed
        fired = {alert["exp_labels"]["run"] for alert in late["exp_alerts"]}
        runs = {run for one in CASES[name]["input_series"] for run in re.findall(r'run="(\w+)"', one["series"])}
        assert fired < runs  # the other runs are just below the threshold


def test_rules_use_only_defined_metrics() -> None:
    named = {name for rule in RULES for name in re.findall(r"(?<![:\w])douga_\w+(?![:\w])", rule["expr"])}
    assert named <= TABLE.keys()
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert {name for rule in RULES for name in re.findall(r"\brun\w*:\w+:\w+", rule["expr"])} <= recorded


def test_an_alert_says_what_is_wrong_and_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert name.startswith("Douga")
        assert "for" in rule or "increase(" in rule["expr"]  # an increase over a window does not flap
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"].startswith("{{ $labels.run }}: ")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["runbook"].endswith(f" docs/alerts.md#{name.lower()}")


def test_a_rule_covers_every_run() -> None:
    for rule in RULES:
        assert not re.search(r'run\s*=~?\s*"[^"]', rule["expr"]), rule
        assert re.search(r"\bby \(run\b|run\w*:douga", rule["expr"]), rule


# The docs.


def paragraphs() -> dict[str, str]:
    """Alert -> its paragraph in docs/alerts.md."""
    parts = re.split(r"^### (\w+)\n", (DOCS / "alerts.md").read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_table_of_alerts_is_that_of_the_rules() -> None:
    rows = re.findall(
        r"^\| (Douga\w+) \| (\w+) \| (\S+) \|", (DOCS / "monitoring.md").read_text("utf-8"), flags=re.MULTILINE
    )
    assert rows == [(name, rule["labels"]["severity"], rule.get("for", "–")) for name, rule in ALERTS.items()]


def test_every_alert_has_its_paragraph_in_the_order_of_the_rules() -> None:
    assert list(paragraphs()) == list(ALERTS)


def test_a_paragraph_names_meaning_checks_and_keys() -> None:
    for name in ALERTS:
        text, config = paragraphs()[name], load_config(None)
        assert re.findall(r"^- \*\*(.+)\*\*:", text, flags=re.MULTILINE) == ["Means", "Check", "Fix"]
        sections = {key.name.partition(".")[0] for key in keys() if "." in key.name}
        known = {key.name for key in keys()} | {"reward.weights", "reward.judges"}
        for key, star in re.findall(r"`(\w+\.[\w.]+)`(\*?)", text):
            if key.partition(".")[0] in sections:
                assert key in known
                assert bool(star) == may_change(key, config), f"{key}: * says that it may change on resume"
