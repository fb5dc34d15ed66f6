"""``dare bench scale``: its figures, what is kept where it is stopped, and a small one as it is run."""

import mmap
import os
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from bench.scale.capacity import Worker, capacity
from bench.scale.figures import Size, figures_of
from bench.scale.memory import private_mb
from bench.scale.process import Processes
from bench.scale.run import bench_scale, perform_run
from bench.scale.stand_ins import text_of
from bench.scale.steps import Step, Steps
from dare_core import models
from dare_core.config.settings import Settings, load_settings
from dare_core.errors import DareError, InputError
from dare_core.quality import metrics
from dare_core.stages import pull
from dare_core.stages.request import RunRequest


def run_of(users: int, seconds: float, python: float) -> dict[str, Step]:
    """A run that takes ``seconds`` in all, 20 of them for its plan and 30 for its load."""
    return {
        "pull/0": Step(seconds - 60, mb={"python": 100.0, "driver": 700.0 + users / 1000}),
        "plan/0": Step(20, own_seconds=10, mb={"python": python}, result={"requests": users * 6 // 5}),
        "generate/0": Step(6),
        "generate/1": Step(4, mb={"python": 50.0}),
        "load/0": Step(30, own_seconds=28, index_seconds=8),
    }


def size_of(users: int, first: float, python: float = 200.0) -> Size:
    runs = {"first": run_of(users, first, python), "unchanged": {"pull/0": Step(40.04)}, "nightly": run_of(0, 100, 90)}
    bench = {
        "source/0": Step(5),
        "copy/0": Step(30, own_seconds=12.5),
        "audit/first": Step(result={"loaded": 0, "embedded": 0}),
        "audit/nightly": Step(result={"loaded": 1, "embedded": 2}),
        "disk/0": Step(result={"knowledge": users / 1e4, "runs": users / 1e5}),
    }
    return Size(runs, bench)


def test_figures_follow_from_the_steps_of_three_sizes() -> None:
    sizes = {2_000: size_of(2_000, 200), 10_000: size_of(10_000, 280), 20_000: size_of(20_000, 400, 250.0)}
    figures = figures_of(20_000, sizes)
    assert figures.pop("seconds")["20000"]["first"] == {
        "pull": 340.0, "plan": 20.0, "generate": 10.0, "load": 30.0, "index": 8.0
    }  # fmt: skip
    assert figures == {
        "private_mb_max": 250.0,
        "memory_growth": 1.25,
        "driver_mb_max": 720.0,
        "marginal_time_ratio": 1.2,  # 12 ms a user above 10,000, 10 ms below
        "nightly_ratio": 0.25,
        "no_change_s": 40.0,
        "plan_per_s": 2400,
        "load_vs_copy": 1.6,
        "unaccounted": 9,
    }


def test_what_more_users_take_lies_on_the_line_through_two_sizes() -> None:
    sizes = {2_000: size_of(2_000, 200), 10_000: size_of(10_000, 280), 20_000: size_of(20_000, 400)}
    result = figures_of(20_000, sizes)
    result |= {
        "users": 20_000,
        "vectors_per_second": 50,
        "gigabytes": {str(n): size.bench["disk/0"].result for n, size in sizes.items()},
    }
    found = capacity(result, 1_000_000, Worker(200, 160, 0.5), days=1)
    assert found.entities == 1_200_000
    assert found.worker_hours == pytest.approx(1_200_000 * (0.8 + 0.02) / 3600 + 10 / 3600, abs=0.1)
    assert found.stages_hours == pytest.approx((390 + 980_000 * 0.012) / 3600, abs=0.1)
    assert found.workers == 12
    assert found.database_gb == 100.0
    assert found.files_gb == 10.0


def test_stand_in_texts_follow_from_the_id_and_keep_to_the_rules() -> None:
    texts = [text_of(f"request {number}") for number in range(300)]
    assert len(set(texts)) == 300
    assert text_of("request 7") == texts[7]
    assert max(map(metrics.repeated_ngram_share, texts)) < 0.4
    assert min(metrics.language_share(text, "en") for text in texts) > 0.2
    for attributes in ('{"price_band": "mid-range"}', '{"region": "capital"}'):
        assert min(metrics.own_words(text, attributes, "en") for text in texts) >= 1


def test_memory_is_that_which_no_other_process_shares() -> None:
    before = private_mb(os.getpid())["python"]
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        for _ in range(64):
            held.write(bytes(range(256)) * 4096)
        assert 55 < private_mb(os.getpid())["python"] - before < 90
    assert private_mb(2**22 + 1) == {}


@pytest.fixture
def processes(settings: Settings, tmp_path: Path) -> Processes:
    steps = Steps(tmp_path / "steps.json")
    # No server is started for a URL.
    settings = settings.model_copy(update={"warehouse_url": SecretStr("postgresql://nowhere/nothing")})
    return Processes(settings, settings, steps, tmp_path / "logs", lambda: False, lambda what: None)


def test_a_step_that_was_stopped_is_done_again_and_one_that_ended_is_not(processes: Processes, tmp_path: Path) -> None:
    processes.steps.keep("first/pull/0", Step(seconds=100.0, mb={"python": 5000.0}))
    with pytest.raises(DareError, match=r"(?s)first/pull/0 ended with status.*domain 'nowhere' is not configured"):
        processes.perform("first/pull/0", "dare_core.config.domains:load_domain", "nowhere")
    assert processes.perform("first/pull/0", "dare_core.config.domains:domain_names") == ["movies", "shop"]
    kept = Steps(tmp_path / "steps.json")
    step = kept["first/pull/0"]
    assert step.ended
    assert 100 < step.seconds < 160
    assert step.mb["python"] == 5000.0, "also what a stopped try had counts"
    again = replace(processes, steps=kept)
    assert again.perform("first/pull/0", "nowhere:nothing") == ["movies", "shop"]
    assert list(kept.of("first")) == ["pull/0"]


def test_a_run_follows_the_order_that_the_pipeline_has(processes: Processes) -> None:
    request = RunRequest(run_id="first", domain="shop")
    for stage in ("pull", "group", "plan"):
        processes.steps.keep(f"first/{stage}/0", Step(result={"requests": 0}, ended=True))
    whole = pull.run
    assert list(perform_run(processes, request)) == ["pull", "group", "plan"]
    assert pull.run is whole


def test_users_that_cannot_be_divided_are_refused(settings: Settings) -> None:
    with pytest.raises(InputError, match="205 users"):
        bench_scale(settings, 205)


@pytest.mark.bench
@pytest.mark.integration
def test_of_a_small_shop_everything_is_accounted_for(settings: Settings) -> None:
    settings = settings.model_copy(update={"model": models.locate(load_settings())})  # converted once per checkout
    figures = bench_scale(settings, 400)
    assert figures["unaccounted"] == 0
    assert min(figures[name] for name in ("private_mb_max", "driver_mb_max", "plan_per_s", "load_vs_copy")) > 0
    assert figures["processor"] and figures["date"]
    kept = settings.data_dir / "bench" / "scale"
    assert [path.name for path in kept.iterdir()] == ["result.json"]
