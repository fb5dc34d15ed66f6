"""Charts as a browser reads them."""

from xml.etree import ElementTree

import pytest

from dare_core.reports.svg import Column, bars, clock, steps

HOSTILE = '"><script>alert(1)</script>&'


def test_what_is_written_into_a_chart_stays_text() -> None:
    chart = bars(HOSTILE, [HOSTILE, "b"], [Column(HOSTILE, [1, 2], [HOSTILE, "2"], ["dare", "plain"], (1.5, HOSTILE))])
    root = ElementTree.fromstring(chart)
    assert {element.tag for element in root.iter()} <= {"svg", "text", "title", "rect", "line"}
    assert root.attrib["aria-label"].startswith(f"{HOSTILE}. {HOSTILE}: {HOSTILE} {HOSTILE}")


def test_bars_are_in_proportion_and_none_is_invisible_but_of_zero() -> None:
    root = ElementTree.fromstring(
        bars("t", list("abcd"), [Column("", [1000, 500, 1, 0], ["", "", "", ""], ["dare"] * 4)])
    )
    widths = [float(rect.attrib["width"]) for rect in root.iter("rect")]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)
    assert widths[2] >= 1
    assert widths[3] == 0


@pytest.mark.parametrize("values", [[0.0], [3.0, 0.0, 250.0], [1e6] * 60])
def test_a_rate_over_time_stays_inside_its_chart(values: list[float]) -> None:
    root = ElementTree.fromstring(steps("t", "tokens per second", 0.5, values, (2.0, "plain")))
    [area] = root.iter("polygon")
    corners = [tuple(map(float, corner.split(","))) for corner in area.attrib["points"].split()]
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in corners)


def test_the_same_figures_make_the_same_chart() -> None:
    assert steps("t", "u", 1, [1, 2], None) == steps("t", "u", 1, [1, 2], None)


@pytest.mark.parametrize(("seconds", "said"), [(0.25, "0.25 s"), (99, "99 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_said_in_a_fitting_unit(seconds: float, said: str) -> None:
    assert clock(seconds) == said
