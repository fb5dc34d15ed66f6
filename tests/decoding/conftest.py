import pytest
import torch
import transformers
from transformers import PreTrainedModel

from dare_core.decoding import kernels

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.4,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SMALL),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "qwen3": transformers.Qwen3Config(**SMALL),
    "mistral, sliding window": transformers.MistralConfig(**SMALL, sliding_window=12),
    "gemma": transformers.GemmaConfig(**SMALL),
    "gemma2, soft-capping and alternating windows": transformers.Gemma2Config(
        **SMALL, sliding_window=12, query_pre_attn_scalar=16
    ),
    "gemma3, two rotary bases and alternating windows": transformers.Gemma3TextConfig(
        **SMALL,
        sliding_window=12,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3, one projection for queries, keys and values": transformers.Phi3Config(
        **{name: value for name, value in SMALL.items() if name != "head_dim"}
    ),
}


@pytest.fixture(params=CONFIGS, scope="module")
def tiny_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A random model of each architecture, in fp32."""
    torch.manual_seed(11)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tiny_llama() -> PreTrainedModel:
    torch.manual_seed(7)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"], dtype=torch.float32).eval()


@pytest.fixture(params=["our kernels", "torch's kernels"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine computes with: the second is what serves where there is no compiler, and on GPUs."""
    if request.param == "torch's kernels":
        monkeypatch.setattr(kernels, "load", lambda: None)
    elif kernels.load() is None:
        pytest.skip("no C++ compiler")
