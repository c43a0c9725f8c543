"""Charts: well-formed, the same for the same figures, and with every point where it belongs."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import plots
from svg import Axis, Line, chart

_SVG = "{http://www.w3.org/2000/svg}"


def _circles(text: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(text)
    return [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in root.iter(f"{_SVG}circle")]


_POSITIVE = st.floats(0.001, 1e9)


@settings(max_examples=200, deadline=None)
@given(
    points=st.lists(st.tuples(_POSITIVE, _POSITIVE), min_size=1, max_size=8),
    logarithmic=st.tuples(st.booleans(), st.booleans()),
)
def test_every_point_lies_in_the_frame_and_higher_values_lie_higher(
    points: list[tuple[float, float]], logarithmic: tuple[bool, bool]
) -> None:
    text = chart("t", Axis("x", logarithmic[0]), Axis("y", logarithmic[1]), [Line("l", points)])
    places = _circles(text)
    assert len(places) == len(points)
    for x, y in places:
        assert 76 <= x <= 530
        assert 44 <= y <= 348
    for (_, value), (_, place) in zip(points, places, strict=True):
        for (_, other), (_, other_place) in zip(points, places, strict=True):
            assert value <= other or place <= other_place


def test_names_are_escaped() -> None:
    text = chart('a <b> & "c"', Axis("x & y"), Axis("z"), [Line("<l>", [(1, 1), (2, 2)])])
    root = ElementTree.fromstring(text)
    assert root.find(f"{_SVG}title").text == 'a <b> & "c"'  # type: ignore[union-attr]


def test_a_logarithmic_axis_refuses_what_it_cannot_show() -> None:
    with pytest.raises(ValueError, match="logarithmic"):
        chart("t", Axis("x"), Axis("y", logarithmic=True), [Line("l", [(1, 0)])])
    with pytest.raises(ValueError, match="nothing to draw"):
        chart("t", Axis("x"), Axis("y"), [Line("l", [])])


def test_no_two_lines_look_alike() -> None:
    lines = [Line(f"l{number}", [(1, number), (2, number)]) for number in range(9)]
    root = ElementTree.fromstring(chart("t", Axis("x"), Axis("y"), lines[:8]))
    paths = [one.attrib for one in root.iter(f"{_SVG}path") if one.attrib.get("stroke-width") == "2"]
    looks = {(one["stroke"], one.get("stroke-dasharray", "")) for one in paths}
    assert len(looks) == 8
    with pytest.raises(ValueError, match="9 lines, and marks for 8"):
        chart("t", Axis("x"), Axis("y"), lines)


def _samples() -> plots.Samples:
    def one(clients: int, factor: float) -> dict[str, float]:
        return {"per_second": factor * clients**0.7, **{f"{p:g}": p * factor / 100 for p in plots._PERCENTILES}}

    return {
        column: {str(n): [one(n, factor), one(n, factor * 1.5)] for n in plots._CLIENTS}
        for factor, column in enumerate(plots._COLUMNS, start=1)
    }


def test_the_plots_are_the_same_for_the_same_samples_and_show_each_column() -> None:
    drawn = plots.draw(_samples())
    assert drawn == plots.draw(_samples())
    assert set(drawn) == {"bench-throughput.svg", "bench-latency.svg", "bench-percentiles.svg"}
    for name, text in drawn.items():
        points = len(plots._PERCENTILES) if name == "bench-percentiles.svg" else len(plots._CLIENTS)
        assert len(_circles(text)) == len(plots._COLUMNS) * points
        for column in plots._COLUMNS:
            assert plots.COLUMNS[column].title in text


def test_a_time_line_shows_the_intervals_in_which_something_was_answered() -> None:
    text = plots.draw_stall(
        {"etcd-slow": [(0.1, 2.0), (2.2, 2000.0)], "adr-slow": [(0.1, 1.0), (0.2, 1.5), (2.2, 3.0)]}
    )
    assert len(_circles(text)) == 5
    assert ">etcd<" in text and ">RaftKV, ring on tmpfs<" in text


def test_the_cost_of_a_flush_has_a_line_for_each_percentile_and_column() -> None:
    costs = {
        column: {str(ms): {f"{p:g}": factor * (ms + p) for p in plots._FLUSH_PERCENTILES} for ms in plots._FLUSH_MS}
        for factor, column in enumerate(plots._SLOW_COLUMNS, start=1)
    }
    text = plots.draw_flushes(costs)
    assert len(_circles(text)) == len(plots._SLOW_COLUMNS) * len(plots._FLUSH_PERCENTILES) * len(plots._FLUSH_MS)
    for column in plots._SLOW_COLUMNS:
        assert f"{plots._short(column)}, 99%" in text
