"""Writes ``report.html``, one self-contained page, and ``report.png``, a few of its clips as an image.

Both are made from the files in the run folder; no model is loaded.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.config import RunConfig, algorithm_class, load_config
from common.data.video import decode_clip, side_by_side
from common.errors import ConfigError
from deploy.guardrails.rules import Reading, mean_change, motion_share, read_readings
from deploy.results import charts
from deploy.results.comparison import REWARD, SIDES, compared_text
from deploy.results.contact_sheet import preview_image
from deploy.run_dir import layout, timeline
from deploy.run_dir.jsonl import EVENTS, METRICS, latest_by_step, read_json_lines
from deploy.run_dir.progress import minutes
from learner.algorithms.base import MetricSpec

STILL_PAIRS = 3  # pairs in report.png: the two largest gains and the smallest
KINDS = ("sampling", "scoring", "learning", "loading")
# Title, note, and the function from a metrics record to the value; None in records of before there was such a value.
Curve = tuple[str, str, Callable[[Mapping[str, Any]], float | None]]
CURVES: tuple[Curve, ...] = (
    ("Batch mean reward", "of the candidates trained on, 0..100", lambda r: 100 * r["reward"]),
    ("Loss", "mean over the batch", lambda r: r["loss"]),
    ("Learning rate", "of AdamW, `learner.lr_schedule`", lambda r: r.get("lr")),
    ("Gradient norm", "before clipping to `learner.clip_norm`", lambda r: r["grad_norm"]),
    ("Lag", "pushes between sampling and training, mean of the batch", lambda r: r["lag"]),
)


def curves_of(config: RunConfig) -> list[Curve]:
    """Returns the curves of a run: `CURVES`, then the metrics that its algorithm declares."""
    return [*CURVES, *(_curve(metric) for metric in algorithm_class(config.algorithm.name).metrics)]


def _curve(metric: MetricSpec) -> Curve:
    note = f"{metric.help} {metric.unit}".strip()
    return metric.name.replace("_", " ").capitalize(), note, lambda record: record["metrics"].get(metric.name)


def drawn_curves(config: RunConfig, steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, list, list]]:
    """Yields title, note, steps and values of each curve, from the metrics records that have its value."""
    for title, note, of in curves_of(config):
        points = {record["step"]: value for record in steps if (value := of(record)) is not None}
        if points:
            yield title, note, list(points), list(points.values())


@dataclass(frozen=True)
class ClipPair:
    """One held-out prompt on the page. Changes are aligned - base, in points of 100."""

    text: str
    change: float | None  # of the mean reward; None without a reward
    video: str  # data URI of one video with base left and aligned right, so that both play in sync
    dimensions: list[tuple[str, float]]
    oracle: list[tuple[str, float]]


def write(folder: Path) -> Path:
    """Writes report.html and report.png to a run folder and returns the path of report.html.

    Raises `ConfigError` if the run has no result yet, or no comparison.
    """
    config, result = load_config(folder / layout.CONFIG), layout.read_result(folder)
    if result is not None and result.get("asked") == 0:
        raise ConfigError(f"{folder}: no comparison to report, because evaluation.prompts = 0")
    if result is None or "verdict" not in result:
        raise ConfigError(f"{folder}: no result yet; finish the run first: {layout.resume_command(folder)}")
    path = folder / layout.REPORT
    layout.write_whole(path, render(folder, config, result))
    gains, least = extremes(result["by_prompt"], STILL_PAIRS)
    pairs = [(record, gain_of(record)) for record in (*gains, *least)]
    preview_image(folder, result["verdict"]["message"], pairs).save(folder / layout.PICTURE)
    return path


def render(folder: Path, config: RunConfig, result: Mapping[str, Any]) -> str:
    """Returns the HTML of the report."""
    steps = latest_by_step(read_json_lines(folder / METRICS))
    work = timeline.of(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        config=config,
        result=result,
        compared=compared_text(result),
        sides=SIDES,
        groups=_groups(result),
        shown=_shown_pairs(folder, config, result),
        curves=_curves(config, steps),
        watched=_watched(read_readings(folder)),
        alarms=[record for record in read_json_lines(folder / EVENTS) if record["event"] == "alarm"],
        refreshes=[record["step"] for record in steps if record["refreshed"]],
        work=work,
        lanes=Markup(charts.lanes(work, KINDS)) if work.bars else None,
        kinds=KINDS,
        overlap=work.overlap("sampling", "learning"),
        minutes=minutes,
        config_text=(folder / layout.CONFIG).read_text("utf-8"),
        command=f"{layout.resume_command(folder)} --name {config.name}-again",
    )


def _shown_pairs(folder: Path, config: RunConfig, result: Mapping[str, Any]) -> list[tuple[str, list[ClipPair]]]:
    gains, least = extremes(result["by_prompt"], config.evaluation.clips)
    if not result["learned"]:
        return [("", [clip_pair(folder, record, config.model.fps) for record in gains])]
    return [
        ("Largest gains", [clip_pair(folder, record, config.model.fps) for record in gains]),
        ("Smallest gains, or losses", [clip_pair(folder, record, config.model.fps) for record in least]),
    ]


def extremes(records: Sequence[Mapping[str, Any]], count: int) -> tuple[list, list]:
    """Returns (largest gains, smallest gains or losses) of the mean reward: at most `count` distinct records in all.

    Without a reward it is (the first `count` records, none).
    """
    if any(gain_of(record) is None for record in records):
        return list(records[:count]), []
    ordered = sorted(records, key=change_of, reverse=True)
    count = min(count, len(ordered))
    return ordered[: count - count // 2], ordered[::-1][: count // 2]


def gain_of(record: Mapping[str, Any]) -> float | None:
    """Returns `change_of` for the mean reward, None in a run without a reward."""
    return change_of(record) if REWARD in record["base"]["learned"] else None


def change_of(record: Mapping[str, Any], kind: str = "learned", name: str = REWARD) -> float:
    """Returns aligned - base of one prompt, in points of 100."""
    return record["aligned"][kind][name] - record["base"][kind][name]


def clip_pair(folder: Path, record: Mapping[str, Any], fps: int) -> ClipPair:
    """Returns one prompt's pair of clips; `folder` is the run folder."""
    clips = [decode_clip((folder / "clips" / record[side]["clip"]).read_bytes()) for side in SIDES]
    changes = {
        kind: [(name, change_of(record, kind, name)) for name in record["base"][kind] if name != REWARD]
        for kind in ("learned", "oracle")
    }
    video = base64.b64encode(side_by_side(clips, fps)).decode()
    uri = f"data:video/mp4;base64,{video}"
    return ClipPair(record["text"], gain_of(record), uri, changes["learned"], changes["oracle"])


def _groups(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns rows and a chart for the learned reward, and for the oracle if it has figures."""
    groups = []
    for kind in ("learned", "oracle"):
        rows = result[kind]
        if rows:
            drawn = charts.dots([(name, row["base"], row["aligned"]) for name, row in rows.items()])
            groups.append({"kind": kind, "rows": rows, "chart": Markup(drawn)})
    return groups


def _curves(config: RunConfig, steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    marks = [record["step"] for record in steps if record["refreshed"]]
    return [
        {"title": title, "note": note, "chart": Markup(charts.curve(title, at, values, marks))}
        for title, note, at, values in drawn_curves(config, steps)
    ]


def _watched(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """Returns charts of the guardrails' readings over pushes; alarms are marked."""
    pushes, marks = [one.pushes for one in readings], [(one.pushes, "mark", "") for one in readings if one.alarms]
    return [
        {"title": title, "chart": Markup(charts.series(title, pushes, rows, marks))}
        for title, rows in guard_rows(readings)
    ]


def guard_rows(readings: Sequence[Reading]) -> list[tuple[str, list[charts.Series]]]:
    """Returns title and series of each guardrail chart: one per output of the held-out judge, then the motion.

    The judge's charts also show the trained reward. Empty if there are fewer than two readings.
    """
    if len(readings) < 2:
        return []
    reward = ("trained reward", "base", [mean_change(one) for one in readings])
    judged = [one.judged for reading in readings for one in reading.policy.values()]
    answers = [name for name in judged[-1] if all(name in one for one in judged)]
    rows: list[tuple[str, list[charts.Series]]] = [
        (f"Judge: {name}", [reward, (name, "aligned", [mean_change(one, name) for one in readings])])
        for name in answers
    ]
    return [*rows, ("Motion", [("motion", "aligned", [100 * motion_share(one) for one in readings])])]
