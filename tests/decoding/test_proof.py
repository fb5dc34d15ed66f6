"""Which models are taken: those whose packed logits are their own eager attention's."""

import pytest
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from dare_core.decoding import attention
from dare_core.decoding.kv_cache import CacheShape
from dare_core.decoding.proof import prove
from dare_core.errors import ModelError
from tests.decoding.conftest import CONFIGS, SMALL

EVEN = {name: value for name, value in SMALL.items() if name != "head_dim"}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK = {
    **EVEN, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
}  # fmt: skip

REFUSED = {
    "sinks": (transformers.GptOssConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2), "asks for s_aux"),
    "a mask of its own": (transformers.DogeConfig(**EVEN), "asks for attention_mask"),
    "two attentions a layer": (transformers.DiffLlamaConfig(**EVEN), "off by .* where 0.002 is allowed"),
    "windows of the cache alone": (transformers.GraniteConfig(**EVEN, sliding_window=12), "layer 0 is 12 .* told none"),
    "windows of the mask alone": (
        transformers.PhimoeConfig(**EVEN, num_local_experts=4, sliding_window=12),
        "layer 0 is 12 .* told none",
    ),
    "narrower values": (transformers.DeepseekV3Config(**DEEPSEEK, v_head_dim=12), "queries 16, keys 16, values 12"),
    "other heads than said": (transformers.DeepseekV3Config(**DEEPSEEK, v_head_dim=16), "4 heads of keys, 16 wide"),
}  # fmt: skip
TAKEN = {
    "experts": transformers.Qwen3MoeConfig(**SMALL, **EXPERTS),
    "experts and windows": transformers.MixtralConfig(**EVEN, num_local_experts=4, sliding_window=12),
    "windows as long as the longest text": transformers.PhimoeConfig(**EVEN, num_local_experts=4, sliding_window=256),
    "learned positions": transformers.GPT2Config(
        vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=2, eos_token_id=1
    ),
}


def model_of(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(11)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_whose_packed_logits_would_be_wrong_is_refused_by_name(what: str) -> None:
    config, differs = REFUSED[what]
    model = model_of(config)
    with pytest.raises(ModelError, match=rf"(?s){type(model).__name__}.*{differs}.*another model, or DARE_ENGINE=vllm"):
        prove(model, CacheShape.of(model))


@pytest.mark.parametrize("what", TAKEN)
def test_other_families_are_taken(what: str) -> None:
    model = model_of(TAKEN[what])
    prove(model, CacheShape.of(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_held_to_a_tolerance_of_their_own(dtype: torch.dtype) -> None:
    model = model_of(CONFIGS["gemma2, soft-capping and alternating windows"], dtype)
    prove(model, CacheShape.of(model))


def test_a_proof_leaves_weights_and_windows_as_they_were() -> None:
    model = model_of(CONFIGS["mistral, sliding window"])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    prove(model, CacheShape.of(model))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.config.sliding_window == 12
    windows = {module.sliding_window for module in model.modules() if hasattr(module, "sliding_window")}
    assert windows <= {12}
    assert model.config._attn_implementation == attention.NAME


def test_a_layer_that_looks_at_other_rows_of_the_batch_is_found_out() -> None:
    model = model_of(CONFIGS["llama"])
    feed = model.model.layers[1].mlp
    whole = feed.forward
    feed.forward = lambda hidden: whole(hidden) + hidden.mean(1, keepdim=True)
    with pytest.raises(ModelError, match="not those of its eager attention"):
        prove(model, CacheShape.of(model))


def test_a_model_that_fails_on_packed_rows_says_so_in_one_line() -> None:
    model = model_of(CONFIGS["llama"])

    def failing(hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shape '[1, 20, 64]' is invalid\nfor input of size 1664")

    model.model.layers[0].mlp.forward = failing
    with pytest.raises(
        ModelError, match=r"LlamaForCausalLM cannot be decoded.*\(RuntimeError: shape '\[1, 20, 64\]' is"
    ):
        prove(model, CacheShape.of(model))


def test_memory_that_runs_out_is_no_verdict_on_the_model() -> None:
    model = model_of(CONFIGS["llama"])

    def scarce(hidden: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    model.model.layers[0].mlp.forward = scarce
    with pytest.raises(torch.OutOfMemoryError):
        prove(model, CacheShape.of(model))
