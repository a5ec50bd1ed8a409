"""The dashboards: the files equal the generated ones, and queries use only defined metrics."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as Model

from deploy.observability.definitions import HISTOGRAM, OF_PROCESS, TABLE
from deploy.observability.grafana import dashboards
from deploy.observability.grafana.panels import ALL, Dashboard
from deploy.observability.stack import GRAFANA, grafana_environment, rules

PANELS = [panel for one in ALL for panel in one.panels]

each = pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)


@each
def test_the_files_are_those_of_the_generator(one: Dashboard) -> None:
    kept = (dashboards.OUT / f"{one.name}.json").read_text("utf-8")
    assert kept == dashboards.as_json(one), "run: python -m deploy.observability.grafana.dashboards"


def test_there_are_no_other_files() -> None:
    assert {file.stem for file in dashboards.OUT.iterdir()} == {one.name for one in ALL}


@each
def test_grafanas_own_types_read_them_without_loss(one: Dashboard) -> None:
    register_default_plugins()
    content = json.loads((dashboards.OUT / f"{one.name}.json").read_text("utf-8"))
    assert json.loads(JSONEncoder().encode(Model.from_json(content))) == content


@each
def test_panels_have_numbers_and_places_of_their_own(one: Dashboard) -> None:
    made = json.loads(dashboards.as_json(one))["panels"]
    assert [panel["id"] for panel in made] == list(range(1, len(one.panels) + 1))
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in made):
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
    assert [[target["refId"] for target in panel["targets"]] for panel in made] == [
        list("ABC")[: len(panel.queries)] for panel in one.panels
    ]


def test_queries_use_only_defined_metrics() -> None:
    for panel in PANELS:
        known = set(OF_PROCESS) | {"up", "ALERTS"}
        known |= {f"ray_node_{name}" for name in ("cpu_utilization", "gpus_utilization", "mem_used", "mem_total")}
        known |= {rule["record"] for group in rules()["groups"] for rule in group["rules"] if "record" in rule}
        for metric in TABLE.values():
            known |= {f"{metric.name}_bucket"} if metric.kind == HISTOGRAM else {metric.name}
        for query in panel.queries.values():
            assert 'run="$run"' in query
            named = re.findall(
                r"\b(?:run\w*:)?(?:douga|process|ray_node|up|ALERTS)\w*(?::[\w:]+)?", re.sub("{[^}]*}", "", query)
            )
            assert named
            assert set(named) <= known


def test_legends_use_labels_that_the_query_keeps() -> None:
    for panel in PANELS:
        for legend, query in panel.queries.items():
            for label in re.findall(r"{{(\w+)}}", legend):
                kept = re.findall(r"by \(([\w, ]+)\)", query)
                assert not kept or any(label in labels for labels in kept)
        assert len(panel.queries) <= 3
        assert panel.tells.endswith(".")


def test_the_provisioning_uses_the_variables_that_monitor_sets() -> None:
    files = sorted((GRAFANA / "provisioning").glob("*/*.yml"))
    asked = {name for file in files for name in re.findall(r": \$(\w+)", file.read_text("utf-8"))}
    assert len(files) == 2
    assert asked == {"DOUGA_PROMETHEUS", "DOUGA_DASHBOARDS"} <= grafana_environment(GRAFANA, "127.0.0.1:1", 0).keys()
    for file in files:
        assert yaml.safe_load(file.read_text("utf-8"))["apiVersion"] == 1
