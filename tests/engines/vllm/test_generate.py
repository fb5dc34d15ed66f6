"""A generation worker with vLLM: chosen by a setting, started beside this process."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers

from dare_core import models
from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.decoding import EngineConfig, Request, Rule
from dare_core.engines.vllm.engines import VllmEngines
from dare_core.knowledge.probe import probe
from dare_core.knowledge.prompt_file import generate
from tests.support.tiny_model import save_tiny_model

pytestmark = pytest.mark.vllm


@pytest.fixture
def vllm_settings(settings: Settings, tmp_path: Path) -> Settings:
    """A tiny model with a tokenizer, and heads of a size that vLLM's CPU build knows."""
    if not settings.vllm_python.exists():
        pytest.skip(f"vLLM's environment {settings.vllm_python} is not installed (make vllm-env)")
    folder = save_tiny_model(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, initializer_range=0.4,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    changes = {"model": str(folder), "engine": "vllm", "batch_size": 2, "cache_gib": 0.25, "verification": "strict"}
    # What Numba compiles once may serve all tests.
    (settings.data_dir / "vllm").mkdir(parents=True)
    (PROJECT_DIR / ".dare" / "vllm" / "compiled").mkdir(parents=True, exist_ok=True)
    (settings.data_dir / "vllm" / "compiled").symlink_to(PROJECT_DIR / ".dare" / "vllm" / "compiled")
    return settings.model_copy(update=changes)


def test_a_prompt_file_is_written_alike_by_either_engine(vllm_settings: Settings, tmp_path: Path) -> None:
    lines = [{"id": title, "group": "Drama", "prompt": f"What is {title}?"} for title in ("Alien", "Fargo", "Heat")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    texts = {}
    for engine in ("transformers", "vllm"):
        chosen = vllm_settings.model_copy(update={"engine": engine, "max_new_tokens": 24})
        summary = generate(chosen, tmp_path / "prompts.jsonl", tmp_path / f"{engine}.parquet")
        assert (summary["texts"], summary["failed"]) == (3, 0)
        assert summary["seconds"] > 0
        texts[engine] = pq.read_table(tmp_path / f"{engine}.parquet")["token_ids"].to_pylist()
    assert texts["vllm"] == texts["transformers"]


def test_plain_decoding_is_probed_and_longer_texts_start_vllm_anew(vllm_settings: Settings) -> None:
    engines = VllmEngines(vllm_settings)
    assert engines.facts == models.model_facts(vllm_settings)
    asked = [Request(str(number), "g", [3, 4, 5 + number], 8) for number in range(2)]
    measured = probe(vllm_settings.model_copy(update={"probe_share": 1.0}), engines, asked, tokens=100, seconds=600)
    assert measured is not None
    assert measured.sequences == 2
    assert measured.plain_tokens_per_second > 0
    config = EngineConfig(2, engines.facts.context_length, Rule("strict"), frozenset())
    engine = engines.open(config, None)
    [result] = engine.generate([Request("long", "g", [3] * 480, 32)])  # to the end of what the model was made for
    assert result.error is None
    assert len(result.token_ids) == 32
