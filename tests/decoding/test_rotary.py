import pytest
import torch
import transformers

from dare_core.decoding import Engine, EngineConfig, Request, Rule
from dare_core.decoding.rotary import rotary_limit
from tests.decoding.conftest import CONFIGS, SMALL
from tests.decoding.reference import greedy

LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [40.0] * 8,
        "original_max_position_embeddings": 48, "factor": 4.0}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(("scaling", "positions", "limit"), [(LONG, 256, 48), (DYNAMIC, 48, 48)])
def test_a_short_text_is_rotated_alike_beside_a_long_request(scaling: dict, positions: int, limit: int) -> None:  # type: ignore[type-arg]
    torch.manual_seed(11)
    config = transformers.LlamaConfig(**SMALL | {"max_position_embeddings": positions}, rope_parameters=scaling)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    short, long = list(range(3, 13)), list(range(3, 83))
    expected = greedy(model, short, limit - 10)
    engine = Engine(model, None, EngineConfig(2, 128, Rule("strict"), frozenset({1})))
    asked = [
        Request("short", "", short, limit - 10),
        Request("long", "", long, 20),
        Request("over", "", short, limit - 9),
    ]
    results = {result.id: result for result in engine.generate(asked)}
    assert results["short"].token_ids == expected
    for refused in ("long", "over"):
        assert f"the engine's length of {limit}, beyond which this model's rotary scaling" in str(
            results[refused].error
        )


def test_scaling_that_is_the_same_at_every_length_sets_no_limit() -> None:
    for scaling in (
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "default"},
    ):
        full = {"rope_theta": 10000.0, "original_max_position_embeddings": 64, **scaling}
        assert rotary_limit(transformers.LlamaConfig(**SMALL, rope_parameters=full)) is None
    assert rotary_limit(transformers.GPT2Config()) is None
    assert all(rotary_limit(config) is None for config in CONFIGS.values())


def test_scaling_of_one_kind_of_layers_limits_the_model() -> None:
    config = CONFIGS["gemma3, two rotary bases and alternating windows"].__class__(
        **SMALL,
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": LONG},
    )
    assert rotary_limit(config) == 48
