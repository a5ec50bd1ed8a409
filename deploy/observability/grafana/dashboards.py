"""``python -m deploy.observability.grafana.dashboards`` writes ``dashboards/*.json`` from `panels.py`.

Grafana's `grafana-foundation-sdk` (used only here) builds the JSON, for Grafana 10 and later. The Prometheus data
source is selected in Grafana, so the files can be imported anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.observability.grafana.panels import (
    ALL,
    HEAT,
    LINES,
    NAME,
    STACKED,
    STAT,
    Dashboard,
    Panel,
)

OUT = Path(__file__).parent / "dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHTS = {STAT: 4}  # of Grafana's grid; else 8


def as_json(one: Dashboard) -> str:
    """The dashboard as JSON for Grafana."""
    others = dashboard.DashboardLink("douga").type(models.DashboardLinkType.DASHBOARDS).tags(["douga"])
    others = others.keep_time(True).include_vars(True)
    runs = dashboard.QueryVariable("run").label("run").datasource(SOURCE).query("label_values(douga_step, run)")
    runs = runs.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    board = (
        dashboard.Dashboard(one.title)
        .uid(f"douga-{one.name}")
        .description(one.tells)
        .tags(["douga"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(others)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(runs)
    )
    for number, panel in enumerate(one.panels, 1):
        board = board.with_panel(_panel(panel).id(number))
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


def _panel(panel: Panel) -> Any:
    made = MAKERS[panel.kind](panel).title(panel.title).description(panel.tells).datasource(SOURCE)
    for letter, (legend, expression) in zip("ABC", panel.queries.items(), strict=False):
        query = prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend).range()
        made = made.with_target(query.format(PromQueryFormat.HEATMAP) if panel.kind == HEAT else query)
    return made.span(panel.width).height(HEIGHTS.get(panel.kind, 8))


def _lines(panel: Panel) -> Any:
    legend = common.VizLegendOptions().show_legend(True).placement(shapes.LegendPlacement.BOTTOM)
    legend = legend.display_mode(shapes.LegendDisplayMode.LIST).calcs(["lastNotNull"])
    tooltip = common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING)
    return timeseries.Panel().unit(panel.unit).fill_opacity(0).legend(legend).tooltip(tooltip)


def _stacked(panel: Panel) -> Any:
    return _lines(panel).fill_opacity(40).stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL))


def _stat(panel: Panel) -> Any:
    made = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    made = made.graph_mode(shapes.BigValueGraphMode.NONE).color_mode(shapes.BigValueColorMode.NONE)
    return made.text_mode(shapes.BigValueTextMode.NAME) if panel.unit == NAME else made.unit(panel.unit)


def _heat(panel: Panel) -> Any:
    return heatmap.Panel().calculate(False).unit(panel.unit)


MAKERS: dict[str, Callable[[Panel], Any]] = {LINES: _lines, STACKED: _stacked, STAT: _stat, HEAT: _heat}


def write() -> None:
    """Write every dashboard."""
    OUT.mkdir(exist_ok=True)
    for one in ALL:
        (OUT / f"{one.name}.json").write_text(as_json(one), "utf-8")


if __name__ == "__main__":
    write()
