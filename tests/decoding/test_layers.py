"""Fused layers answer as the originals do, and models of another form keep theirs."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from dare_core.decoding import Engine, EngineConfig, Request, Rule, kernels
from dare_core.decoding.layers import FusedLayer
from tests.decoding.reference import greedy
from tests.decoding.scripted import Scripted

pytestmark = pytest.mark.skipif(kernels.load() is None, reason="no C++ compiler")

FUSED = {"llama", "qwen2", "qwen3", "mistral", "phi3"}


def taken_over(model: PreTrainedModel, **changes: object) -> PreTrainedModel:
    model = copy.deepcopy(model)
    Engine(model, None, EngineConfig(2, 64, Rule(), frozenset({1}), **changes))  # type: ignore[arg-type]
    return model


def fused(model: PreTrainedModel) -> int:
    return sum(isinstance(layer, FusedLayer) for layer in model.get_decoder().layers)


def test_layers_of_the_common_form_are_fused_and_others_are_left(tiny_model: PreTrainedModel) -> None:
    expected = tiny_model.config.num_hidden_layers if tiny_model.config.model_type in FUSED else 0
    assert fused(taken_over(tiny_model)) == expected


def test_a_layer_that_answers_otherwise_than_it_looks_is_left(tiny_llama: PreTrainedModel) -> None:
    model = copy.deepcopy(tiny_llama)
    layer = model.get_decoder().layers[0]
    forward = layer.mlp.forward
    layer.mlp.forward = lambda hidden: 2 * forward(hidden)
    assert fused(taken_over(model)) == 0


@pytest.mark.parametrize(("storage", "most"), [("bfloat16", 0.05), ("int8", 0.1)])
def test_narrow_weights_write_nearly_the_same_logits(tiny_llama: PreTrainedModel, storage: str, most: float) -> None:
    seen: list[torch.Tensor] = []

    def first_logits(weights: str) -> torch.Tensor:
        model = copy.deepcopy(tiny_llama)
        engine = Engine(model, None, EngineConfig(1, 64, Rule(), frozenset({1}), weights=weights))  # type: ignore[arg-type]
        handle = model.lm_head.register_forward_hook(lambda module, given, out: seen.append(out.clone()))
        list(engine.generate([Request("0", "g", [3, 4, 5, 6], 1)]))
        handle.remove()
        return seen.pop()

    exact, narrow = first_logits("model"), first_logits(storage)
    assert not torch.equal(exact, narrow)
    assert (exact - narrow).norm() / exact.norm() < most


def test_layers_that_torch_compiles_write_greedy_texts_too(tiny_llama: PreTrainedModel) -> None:
    prompt = [3, 4, 5, 6]
    config = EngineConfig(2, 64, Rule(), frozenset({1}), draft_nodes=4, budget="fixed", compile=True)
    drafter = Scripted(lambda group, output, max_nodes: ([5, 6], [-1, 0]))
    [result] = Engine(copy.deepcopy(tiny_llama), drafter, config).generate([Request("0", "g", prompt, 12)])
    assert result.token_ids == greedy(tiny_llama, prompt, 12)


def test_an_engine_on_a_model_that_another_has_taken_over_writes_the_same(tiny_llama: PreTrainedModel) -> None:
    model = copy.deepcopy(tiny_llama)
    config = EngineConfig(2, 64, Rule(), frozenset({1}), draft_nodes=4, budget="fixed")
    drafter = Scripted(lambda group, output, max_nodes: ([5, 6], [-1, 0]))
    texts = [next(iter(Engine(model, drafter, config).generate([Request("0", "g", [3, 4], 12)]))) for _ in range(2)]
    assert texts[0].token_ids == texts[1].token_ids
