import copy

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from dare_core.decoding.weights import PackedLinear, pack_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_computes_what_the_layer_did(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(48, 80, bias=bias, dtype=dtype)
    with torch.inference_mode():
        for rows in (1, 2, 7, 33, 200):
            hidden = torch.randn(1, rows, 48, dtype=dtype)
            expected = linear(hidden)
            got = PackedLinear(linear)(hidden)
            assert got.shape == expected.shape
            torch.testing.assert_close(got, expected)


def test_all_linear_layers_of_a_model_are_packed_and_it_says_the_same(tiny_model: PreTrainedModel) -> None:
    plain = type(tiny_model)._from_config(tiny_model.config, attn_implementation="eager").eval()
    model = copy.deepcopy(plain)
    pack_weights(model)
    assert not any(type(module) is nn.Linear for module in model.modules())
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)


def test_layers_of_a_type_without_kernels_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64))
    pack_weights(model)
    assert type(model[0]) is nn.Linear
