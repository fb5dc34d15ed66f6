"""Charts inside pages, as a browser reads them."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from dare_core.reports.page_charts import Column, bars, clock, steps

HOSTILE = '"><script>alert(1)</script>& $x^2$ style="fill: #0f8a5f" 日本'


def texts(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter("text")]


def widths(root: ElementTree.Element, colour: str) -> list[float]:
    outlines = [path.attrib["d"] for path in root.iter("path") if path.attrib["style"] == f"fill: var(--{colour})"]
    corners = [[float(x) for x in re.findall(r"[ML] (\S+)", outline)] for outline in outlines]
    return [max(xs) - min(xs) for xs in corners]


def test_what_is_written_into_a_chart_stays_text() -> None:
    column = Column(HOSTILE, [1, 2], [HOSTILE, "2"], ["dare", "plain"], (1.5, HOSTILE))
    root = ElementTree.fromstring(bars(HOSTILE, [HOSTILE, "b"], [column]))
    assert {element.tag for element in root.iter()} == {"svg", "text", "title", "path"}
    assert root.attrib["aria-label"].startswith(f"{HOSTILE}. {HOSTILE}: {HOSTILE} {HOSTILE}")
    assert texts(root).count(HOSTILE) == 3
    assert [title.text for title in root.iter("title")] == [HOSTILE, "b"]
    [short] = [text for text in texts(root) if text.endswith("…")]
    assert HOSTILE.startswith(short[:-1])


def test_control_characters_and_line_ends_do_not_break_a_chart() -> None:
    chart = bars("t", ["a\x00\x01\nb"], [Column("", [1], ["\x02"], ["dare"])])
    assert "a   b<title>a   b</title></text>" in chart


def test_a_chart_takes_its_colours_and_its_font_from_the_page() -> None:
    chart = bars("t", ["a"], [Column("c", [1], ["1"], ["lost"], (1, "line"))]) + steps("t", "u", 1, [1, 2], (1, "m"))
    assert {"var(--lost)", "var(--dare)", "var(--ink)", "var(--soft)", "var(--line)"} <= set(
        re.findall('var[^;"]+', chart)
    )
    assert "#" not in chart
    assert "font-family" not in chart
    assert "http" not in chart
    assert "url(" not in chart
    assert " id=" not in chart


def test_bars_are_in_proportion_and_none_is_invisible_but_of_zero() -> None:
    column = Column("", [1000, 500, 1, 0], ["", "", "", ""], ["dare"] * 4)
    long, half, least, none = widths(ElementTree.fromstring(bars("t", list("abcd"), [column])), "dare")
    assert long == pytest.approx(2 * half, rel=0.01)
    assert least >= 1
    assert none == 0


@pytest.mark.parametrize("values", [[0.0], [3.0, 0.0, 250.0], [1e6] * 60])
def test_a_rate_over_time_stays_inside_its_chart(values: Sequence[float]) -> None:
    root = ElementTree.fromstring(steps("t", "tokens per second", 0.5, values, (2.0, "plain")))
    corners = [
        tuple(map(float, corner))
        for path in root.iter("path")
        for corner in re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])
    ]
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in corners)
    assert {"tokens per second", "plain", "0", "0 s"} <= set(texts(root))


def test_the_same_figures_make_the_same_chart() -> None:
    column = Column("c", [1, 2], ["1", "2"], ["dare"] * 2)
    assert bars("t", ["a", "b"], [column]) == bars("t", ["a", "b"], [column])
    assert steps("t", "u", 1, [1, 2], None) == steps("t", "u", 1, [1, 2], None)


@pytest.mark.parametrize(("seconds", "said"), [(0.25, "0.25 s"), (99, "99 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_said_in_a_fitting_unit(seconds: float, said: str) -> None:
    assert clock(seconds) == said
