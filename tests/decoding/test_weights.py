import copy

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from dare_core.decoding import kernels
from dare_core.decoding.weights import PackedLinear, PanelLinear, Storage, _packed, pack_weights

with_kernels = pytest.mark.skipif(kernels.load() is None, reason="no C++ compiler")


@with_kernels
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 80), (7, 5), (300, 33), (1, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_panels_compute_what_the_layers_did_side_by_side(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(1)
    linears = [nn.Linear(inputs, outputs, bias=bias), nn.Linear(inputs, 3, bias=False)]
    with torch.inference_mode():
        panels = PanelLinear(linears, "model")
        for rows in (0, 1, 2, 5, 6, 7, 12, 13, 33, 200):
            hidden = torch.randn(1, rows, inputs)
            expected = torch.cat([linear(hidden) for linear in linears], -1)
            torch.testing.assert_close(panels(hidden), expected, rtol=1e-4, atol=1e-5)


@with_kernels
@pytest.mark.parametrize(("storage", "most"), [("bfloat16", 2**-8), ("int8", 1 / 127)])
@pytest.mark.parametrize("rows", [1, 9, 40])
def test_narrow_weights_are_off_by_their_rounding_and_no_more(storage: Storage, most: float, rows: int) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(300, 70)
    hidden = torch.randn(rows, 300)
    with torch.inference_mode():
        off = (PanelLinear([linear], storage)(hidden) - linear(hidden)).abs()
        # Each weight is off by half a unit of its output's largest at most.
        allowed = hidden.abs().sum(1, keepdim=True) * linear.weight.abs().amax(1) * most / 2
    assert (off <= allowed + 1e-4).all()
    assert off.max() > 0


@with_kernels
def test_an_output_whose_weights_are_all_zero_stays_zero_as_int8() -> None:
    linear = nn.Linear(8, 4, bias=False)
    nn.init.zeros_(linear.weight)
    assert PanelLinear([linear], "int8")(torch.ones(1, 8)).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_computes_what_the_layer_did(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(48, 80, bias=bias, dtype=dtype)
    if dtype == torch.bfloat16 and _packed(linear, "model") is None:
        pytest.skip("oneDNN packs no bfloat16 on this processor")
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
