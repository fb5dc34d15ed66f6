"""``dare bench decode`` at toy size, without peers of other environments."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import contenders, llamacpp
from bench.cli import app
from bench.decode import bench_decode
from bench.decode_prompts import Plan
from bench.project import project
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from tests.support.tiny_model import save_tiny_model

PLAN = Plan(prompts=8, pool_texts=12, max_new_tokens=6, batch_sizes=(1, 16), repeats=1)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(contenders, "VENV", tmp_path / "no vLLM here")
    monkeypatch.setattr(llamacpp, "VENV", tmp_path / "no llama.cpp here")
    return Settings(data_dir=tmp_path, model=str(save_tiny_model(tmp_path / "model")))


def test_a_run_measures_every_contender_and_checks_the_texts(settings: Settings) -> None:
    said: list[str] = []
    result = json.loads(json.dumps(bench_decode(settings, PLAN, said.append)))
    speeds = result["tokens_per_second"]
    ours = {f"{name}_b{size}" for name in contenders.OURS for size in (1, 16)}
    assert len(ours) == 18
    assert ours | {"generate_b1", "generate_b16", "prompt_lookup_b1", "fp32_cold_b16"} <= set(speeds)
    assert all(min(runs) > 0 for runs in result["runs"].values())
    ratio = speeds["fp32_relaxed_b16"] / speeds["fp32_undrafted_b16"]
    assert result["fp32_relaxed_over_undrafted_b16"] == pytest.approx(ratio, rel=0.01)
    assert result["fp32_relaxed_over_undrafted_b4"] is None
    assert result["fp32_vs_vllm_b1"] is None
    assert any("make vllm-env" in line for line in said)
    assert any("make bench-llamacpp" in line for line in said)
    assert result["strict_wrong"] == 0
    assert result["int8_strict_wrong"] is not None
    assert min(result[name] for name in ("busy_ratio", "two_engines_ratio", "idle_cost", "cold_over_undrafted_b16")) > 0
    assert result["overhead_ms_b16"] > 0
    assert sum(result["time_shares"]["fp32_relaxed_b16"].values()) == pytest.approx(1, abs=0.001)
    assert result["processor"] and result["date"] and "torch" in result["versions"]
    assert project(settings.data_dir / "bench" / "record", None)["assumptions"]["launches_per_layer"] > 10


def test_contenders_are_chosen_and_what_they_do_not_tell_is_null(settings: Settings) -> None:
    said: list[str] = []
    plan = Plan(8, 12, 6, (1,), 2, contenders=("fp32_strict", "fp32_undrafted", "generate"))
    result = bench_decode(settings, plan, said.append)
    made = {name: len(runs) for name, runs in result["runs"].items()}
    assert made == {"fp32_strict_b1": 2, "fp32_undrafted_b1": 2, "generate_b1": 1}
    assert result["best_over_undrafted_b1"] > 0
    untold = ("fp32_vs_vllm_b1", "busy_ratio", "cold_over_undrafted_b16", "int8_strict_wrong", "overhead_ms_b16")
    assert {result[name] for name in untold} == {None}
    assert any("writing a pool" in line for line in said)
    again: list[str] = []
    bench_decode(settings, plan, again.append)
    assert not any("writing a pool" in line for line in again)


def test_an_unknown_contender_is_named_with_those_there_are(settings: Settings) -> None:
    with pytest.raises(InputError, match=r"called fp64_strict; there are fp32_undrafted"):
        bench_decode(settings, Plan(contenders=("fp64_strict",)))


def test_the_command_line_chooses_contenders_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def measure(settings: Settings, plan: Plan, on_progress: object) -> dict[str, object]:
        plans.append(plan)
        return {"tokens_per_second": {}, "tokens_per_step": {}}

    monkeypatch.setattr("bench.decode.bench_decode", measure)
    chosen = ["--contenders", "fp32_strict", "--contenders", "vllm_suffix", "--batches", "4", "--json"]
    assert CliRunner().invoke(app, ["decode", *chosen]).exit_code == 0
    assert (plans[0].contenders, plans[0].batch_sizes) == (("fp32_strict", "vllm_suffix"), (4,))
    assert CliRunner().invoke(app, ["decode", "--json"]).exit_code == 0
    assert plans[1] == Plan()


def test_one_sequence_writes_sixteen_prompts_and_batches_two_rounds() -> None:
    assert [Plan().prompts_at(size) for size in (1, 4, 16, 32)] == [16, 16, 32, 64]


def test_more_texts_than_there_are_items_are_refused(settings: Settings) -> None:
    with pytest.raises(InputError, match="exceed the"):
        bench_decode(settings, Plan(pool_texts=100_000))
