"""The report's charts are well-formed, stay inside their frame, and handle constant data."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from deploy.results import charts
from deploy.run_dir.timeline import Bar, Timeline


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 25, 50, 75, 100]),
        (0.1, 0.93, [0, 0.25, 0.5, 0.75, 1.0]),
        (-3, 4, [-4, -2, 0, 2, 4]),
        (48.2, 51.9, [48, 49, 50, 51, 52]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert charts.nice_ticks(low, high) == expected


@pytest.mark.parametrize("value", [0.0, 5.0, -0.0001])
def test_ticks_around_one_value(value):
    ticks = charts.nice_ticks(value, value)
    assert len(ticks) >= 2
    assert ticks[0] <= value <= ticks[-1]


def circles(svg: str) -> list[tuple[float, float]]:
    return [
        (float(node.attrib["cx"]), float(node.attrib["cy"]))
        for node in ElementTree.fromstring(svg)
        if node.tag == "circle"
    ]


def test_dots_lie_in_the_order_of_their_means():
    svg = charts.dots(
        [
            ("a < b", {"mean": 40, "low": 38, "high": 42}, {"mean": 50, "low": 48, "high": 52}),
            ("c", {"mean": 60, "low": 58, "high": 62}, {"mean": 45, "low": 43, "high": 47}),
        ]
    )
    first, second, third, fourth = circles(svg)
    assert first[0] < second[0] < third[0]
    assert fourth[0] < third[0]
    assert first[1] < second[1] < third[1] < fourth[1]
    assert "a &lt; b" in svg


def test_a_curve_has_its_points_and_marks():
    root = ElementTree.fromstring(charts.curve("loss", [1, 2, 3], [0.5, 0.4, 0.1], marks=[2]))
    (line,) = [node for node in root if node.tag == "polyline"]
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[0][1] < points[1][1] < points[2][1]  # falling values go down the page
    (mark,) = [node for node in root if node.attrib.get("class") == "mark"]
    assert float(mark.attrib["x1"]) == points[1][0]


def test_a_curve_of_one_step_is_drawn():
    assert len(circles(charts.curve("loss", [1], [0.0]))) == 1


def test_a_common_axis_begins_at_nought_and_has_marks_of_several_kinds():
    marks = [(2.0, "push", "push after step 4"), (5.0, "alarm", "a < b")]
    rows = [("loss", "aligned", [0.5, 0.25]), ("other", "base", [0.5, 1.0])]
    root = ElementTree.fromstring(charts.series("loss", [1.0, 5.0], rows, marks, "step", until=10.0))
    by_class = {node.attrib["class"]: node for node in root if node.tag == "line"}
    assert float(by_class["push"].attrib["x1"]) == pytest.approx(52 + (388 - 52) * 0.2)
    assert float(by_class["alarm"].attrib["x1"]) == pytest.approx(52 + (388 - 52) * 0.5)
    assert float(by_class["push"].attrib["y1"]) > float(by_class["alarm"].attrib["y1"])  # short ones, at the bottom
    assert [node.text for node in by_class["alarm"]] == ["a < b"]
    assert [node.text for node in root if node.tag == "text"][-2:] == ["0", "step 10"]


def test_many_points_are_drawn_as_means_of_neighbours():
    values = [float(step % 2) for step in range(3001)]
    root = ElementTree.fromstring(charts.curve("loss", range(3001), values))
    (line,) = [node for node in root if node.tag == "polyline"]
    points = line.attrib["points"].split()
    assert 250 < len(points) <= charts.POINTS
    assert [point.split(",")[0] for point in (points[0], points[-1])] != ["52.0", "52.0"]
    heights = {point.split(",")[1] for point in points[1:-2]}
    assert len(heights) <= 2  # the mean of 11 neighbours, five or six of them 1


def test_lanes_put_work_where_and_when_it_was_done():
    bars = (
        Bar("sampler-0", "sampling", 0.0, 60.0),
        Bar("learner-0", "learning", 60.0, 90.0),
        Bar("sampler-0", "sampling", 60.01, 120.0),  # drawn as one with the first
        Bar("sampler-0", "loading", 120.0, 121.0),
    )
    root = ElementTree.fromstring(charts.lanes(Timeline(bars, (), 121.0), ["sampling", "learning", "loading"]))
    drawn = [node for node in root if node.tag.endswith("rect")]
    assert [node.attrib["class"] for node in drawn] == ["part0", "part2", "part1"]
    first, last, learning = ((float(node.attrib["x"]), float(node.attrib["width"])) for node in drawn)
    assert first[0] + first[1] == pytest.approx(last[0], abs=0.1)
    assert learning[0] == pytest.approx(first[0] + first[1] / 2, abs=0.1)  # after half of two minutes
    assert float(drawn[2].attrib["y"]) > float(drawn[0].attrib["y"])


def test_a_long_curve_is_thinned_and_keeps_its_end():
    steps = list(range(1, 100_001))
    (line,) = [node for node in ElementTree.fromstring(charts.curve("Loss", steps, steps)) if node.tag.endswith("line")
               and "points" in node.attrib]  # fmt: skip
    points = line.attrib["points"].split()
    assert len(points) == charts.POINTS + 1
    assert points[-1].split(",")[0] == f"{charts.WIDTH - 12:.1f}"


def test_lanes_begin_where_the_work_is_known():
    bars = (Bar("sampler-0", "sampling", 6000.0, 6060.0), Bar("sampler-0", "sampling", 6060.0 + 6, 6120.0))
    svg = ElementTree.fromstring(charts.lanes(Timeline(bars, (), 6120.0, since=1.0), ["sampling"]))
    first, second = [node for node in svg if node.tag == "rect"]
    assert float(first.attrib["x"]) == 92.0
    assert float(second.attrib["x"]) + float(second.attrib["width"]) == pytest.approx(charts.WIDE - 30, abs=0.1)
