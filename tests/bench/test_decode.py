import json
from pathlib import Path

import pytest

from bench import decode
from bench.decode import bench_decode
from bench.decode_prompts import Plan
from bench.project import project
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from tests.support.tiny_model import save_tiny_model


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, model=str(save_tiny_model(tmp_path / "model")))


def test_a_run_measures_every_contender_and_checks_the_texts(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "VENV", tmp_path / "no vLLM here")
    plan = Plan(prompts=8, pool_texts=12, max_new_tokens=6, batch_sizes=(1, 4), repeats=2)
    said: list[str] = []
    result = json.loads(json.dumps(bench_decode(settings, plan, said.append)))
    assert {"generate_b1", "generate_b4", "strict_b4", "relaxed_b1", "undrafted_b4", "bf16_relaxed_b16"} <= set(
        result["tokens_per_second"]
    )
    assert all(len(runs) == 2 and min(runs) > 0 for runs in result["runs"].values())
    ratio = result["tokens_per_second"]["strict_b1"] / result["tokens_per_second"]["generate_b1"]
    assert result["strict_b1_vs_generate"] == pytest.approx(ratio, rel=0.01)
    assert result["strict_worst_vs_vllm"] is None
    assert any("make vllm-env" in line for line in said)
    assert result["strict_wrong"] == 0
    assert result["overhead_ms_b16"] > 0
    assert sum(result["time_shares"]["relaxed_b4"].values()) == pytest.approx(1, abs=0.001)

    again: list[str] = []
    bench_decode(settings, plan, again.append)
    assert any("writing a pool" in line for line in said)
    assert not any("writing a pool" in line for line in again)
    assert project(settings.data_dir / "bench" / "record", None)["projection"] is True


def test_more_texts_than_there_are_items_are_refused(settings: Settings) -> None:
    with pytest.raises(InputError, match="exceed the"):
        bench_decode(settings, Plan(pool_texts=100_000))
