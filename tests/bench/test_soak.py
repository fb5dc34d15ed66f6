"""``dare bench soak``: its figures, and a short one as it is run."""

from pathlib import Path

import pytest

from bench.soak.chart import draw_soak
from bench.soak.figures import figures_of, growth
from bench.soak.run import bench_soak
from bench.soak.samples import Sample
from bench.soak.tally import Tally
from dare_core.config.settings import Settings


def test_growth_is_that_of_the_second_half_and_the_last_third() -> None:
    at = [float(second) for second in range(0, 3600, 60)]
    assert growth(at, [100.0] * 60) == {"per_hour": 0.0, "ratio": 1.0}
    assert growth(at, [100.0] * 20 + [150.0] * 40) == {"per_hour": 0.0, "ratio": 1.0}, "warming up is no growth"
    grows = growth(at, [100 + second / 36 for second in at])
    assert grows["per_hour"] == 100.0
    assert grows["ratio"] > 1.2


def test_errors_are_counted_all_and_listed_up_to_a_bound() -> None:
    tally = Tally()
    for number in range(30):
        tally.error("failed_queries", f"no. {number}")
    samples = [Sample(at, {"readers": 1.0}, {"readers": 1}, 50, None, None) for at in (0.0, 5.0, 10.0)]
    figures = figures_of(samples, tally, readers=50)
    assert figures["failed_queries"] == 30
    assert len(figures["errors"]) == 20
    assert figures["errors"][0] == "failed_queries: no. 0"


@pytest.mark.bench
def test_a_short_soak_fails_nothing_and_is_drawn(settings: Settings, tmp_path: Path) -> None:
    result = bench_soak(settings, minutes=1.5, readers=10)
    assert result["errors"] == []
    assert result["failed_queries"] == result["failed_refreshes"] == result["texts_different"] == 0
    assert min(result[name] for name in ("queries", "publications", "versions_followed", "texts_compared")) > 0
    draw_soak(result, tmp_path / "soak.svg")
    assert (tmp_path / "soak.svg").read_text().startswith("<?xml")
