"""Charts as inline SVG, for the report and the live page. The page's CSS sets the colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape

from deploy.run_dir.timeline import Bar, Timeline

WIDTH, WIDE = 400, 1000  # width in SVG units of a chart in a column, and of one across the page
TICKS = 4  # approximate number of intervals between axis ticks

Row = tuple[str, Mapping[str, float], Mapping[str, float]]  # label, base interval, aligned interval

Series = tuple[str, str, Sequence[float]]  # name, CSS class, values
Mark = tuple[float, str, str]  # position on the x axis, CSS class, tooltip
POINTS = 300  # maximum number of points of a line; longer series are averaged


def dots(rows: Sequence[Row]) -> str:
    """Returns a chart of base and aligned means with their 95 % intervals: one line per row, on a common scale."""
    left, right, line = 92.0, WIDTH - 14.0, 30.0
    height = line * len(rows) + 34
    ends = [interval[end] for _, *pair in rows for interval in pair for end in ("low", "high")]
    ticks = nice_ticks(min(ends), max(ends))
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{height - 26:.1f}"/>')
        parts.append(_text(x(tick), height - 10, f"{tick:g}", "middle"))
    for index, (label, base, aligned) in enumerate(rows):
        y = 4 + line * (index + 0.5)
        parts.append(_text(left - 10, y + 4, label, "end", "label"))
        for kind, row, offset in (("base", base, -4.5), ("aligned", aligned, 4.5)):
            parts.append(_whisker(f"{label}, {kind}", kind, row, x, y + offset))
    return _svg(height, parts, "base and aligned means with 95 % intervals")


def _whisker(title: str, kind: str, row: Mapping[str, float], x: Callable[[float], float], y: float) -> str:
    """Returns an interval as a line with a dot at its mean."""
    return (
        f'<line class="{kind}" x1="{x(row["low"]):.1f}" x2="{x(row["high"]):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle class="{kind}" cx="{x(row["mean"]):.1f}" cy="{y:.1f}" r="3.6">'
        f"<title>{escape(title)}: {row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]</title></circle>"
    )


def curve(title: str, steps: Sequence[int], values: Sequence[float], marks: Sequence[int] = ()) -> str:
    """Returns a chart of one quantity over optimizer steps; `marks` are steps with a dashed line."""
    return series(title, steps, [(title, "aligned", values)], [(step, "mark", "") for step in marks], "step")


def series(
    title: str,
    at: Sequence[float],
    rows: Sequence[Series],
    marks: Sequence[Mark] = (),
    unit: str = "push",
    until: float | None = None,
) -> str:
    """Returns a chart of several quantities on one scale. `at` are the x positions of all rows, ascending.

    Each of `marks` is a vertical line. `unit` labels the x axis, which spans at least 0..`until`, if that is given.
    """
    left, right, top, bottom = 52.0, WIDTH - 12.0, 12.0, 146.0
    at, rows = _thinned(at, rows)
    values = [value for _, _, row in rows for value in row]
    ticks = nice_ticks(min(values), max(values))
    first, last = (at[0], max(at[-1], at[0] + 1)) if until is None else (0.0, max(until, at[-1]))

    def x(point: float) -> float:
        return left + (right - left) * (point - first) / (last - first)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(left - 6, y(tick) + 4, f"{tick:g}", "end"))
    parts += [_mark(mark, x, top, bottom) for mark in marks]
    for name, kind, row in rows:
        points = " ".join(f"{x(point):.1f},{y(value):.1f}" for point, value in zip(at, row, strict=True))
        parts.append(f'<polyline class="curve {kind}" points="{points}"><title>{escape(name)}</title></polyline>')
        parts.append(f'<circle class="{kind}" cx="{x(at[-1]):.1f}" cy="{y(row[-1]):.1f}" r="3"/>')
    parts += [
        _text(left, bottom + 18, f"{first:g}", "middle"),
        _text(right, bottom + 18, f"{unit} {last:g}", "end"),
    ]
    return _svg(bottom + 26, parts, title)


def _mark(mark: Mark, x: Callable[[float], float], top: float, bottom: float) -> str:
    place, kind, tooltip = mark
    begin = bottom - 5 if kind == "push" else top  # short lines for pushes, because there are many
    line = f'<line class="{kind}" x1="{x(place):.1f}" x2="{x(place):.1f}" y1="{begin}" y2="{bottom}"'
    return f"{line}><title>{escape(tooltip)}</title></line>" if tooltip else f"{line}/>"


def _thinned(at: Sequence[float], rows: Sequence[Series]) -> tuple[Sequence[float], Sequence[Series]]:
    """Returns about `POINTS` points at most: neighbours are replaced by their mean. The last point is kept."""
    size = -(-len(at) // POINTS)
    if size <= 1:
        return at, rows

    def thin(row: Sequence[float]) -> list[float]:
        parts = [row[first : first + size] for first in range(0, len(row) - 1, size)]
        return [sum(part) / len(part) for part in parts] + [row[-1]]

    return thin(at), [(name, kind, thin(row)) for name, kind, row in rows]


def lanes(timeline: Timeline, kinds: Sequence[str]) -> str:
    """Returns a chart with a row per worker and a bar per unit of work, coloured by kind, over minutes.

    Bars of one kind are merged if the gap is below a thousandth of the axis. The axis begins at `timeline.first`,
    because earlier work is not recorded.
    """
    left, right, line, first = 92.0, WIDE - 30.0, 26.0, timeline.first
    length = max(timeline.seconds - first, 1.0)
    ticks = [tick for tick in nice_ticks(first / 60, (first + length) / 60) if first <= 60 * tick <= first + length]
    height = line * len(timeline.workers) + 34

    def x(seconds: float) -> float:
        return left + (right - left) * (seconds - first) / length

    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{x(60 * tick):.1f}" x2="{x(60 * tick):.1f}" y1="4" y2="{height - 26:.1f}"/>'
        )
        parts.append(_text(x(60 * tick), height - 10, f"{tick:g}" + (" min" if tick == ticks[-1] else ""), "middle"))
    for index, worker in enumerate(timeline.workers):
        y = 4 + line * index
        parts.append(_text(left - 10, y + line / 2 + 4, worker, "end", "label"))
        for bar in _joined([bar for bar in timeline.bars if bar.worker == worker], length / 1000):
            parts.append(
                f'<rect class="part{kinds.index(bar.kind)}" x="{x(bar.start):.2f}" y="{y + 4:.1f}" '
                f'width="{max(x(bar.end) - x(bar.start), 0.4):.2f}" height="{line - 8:.1f}">'
                f"<title>{escape(worker)}: {escape(bar.kind)}, {bar.end - bar.start:.1f} s</title></rect>"
            )
    return _svg(height, parts, "units of work by worker", WIDE)


def _joined(bars: Sequence[Bar], gap: float) -> list[Bar]:
    joined: list[Bar] = []
    for bar in bars:
        last = joined[-1] if joined else None
        if last is not None and last.kind == bar.kind and bar.start - last.end < gap:
            joined[-1] = replace(last, end=max(last.end, bar.end))
        else:
            joined.append(bar)
    return joined


def nice_ticks(low: float, high: float) -> list[float]:
    """Returns about `TICKS` round numbers that enclose [low, high]; always at least two."""
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-9):
        pad = max(abs(high) * 0.1, 1e-6)
        low, high = low - pad, high + pad
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], title: str, width: int = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
