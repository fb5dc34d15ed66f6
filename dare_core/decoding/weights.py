"""Linear layers whose weights lie in the order that the processor reads them in.

A decoding step sends few rows through a layer, so that its time is that of the weights' way from memory. Packed in
panels they are read once, in order (``kernels/linear.h``); stored as bfloat16 or int8 they are half or a quarter as
long, and more of them are multiplied at once. Where the kernels cannot be compiled, oneDNN's packed arrangement serves
(docs/benchmarks.md compares).
"""

import weakref
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dare_core.decoding import kernels

#: How linear layers calculate: in the model's type, or in a narrower one (``kernels/linear.h``).
Storage = Literal["model", "bfloat16", "int8"]

#: Rows that oneDNN's arrangement is made for; it serves any number.
_ROWS: Final = 32
_INT8_MAX: Final = 127


class PanelLinear(nn.Module):
    """``nn.Linear`` in float32 for inference on a CPU, by our own kernels.

    Args:
        linears: layers of the same inputs, whose outputs are put behind each other.
        storage: how the weights are stored.

    Attributes:
        layer: what the kernels take.
    """

    def __init__(self, linears: Sequence[nn.Linear], storage: Storage) -> None:
        super().__init__()
        loaded = kernels.load()
        assert loaded is not None
        self._kernel = loaded.linear
        weight = torch.cat([linear.weight.detach() for linear in linears])
        outputs, inputs = weight.shape
        bias = scales = shifts = None
        if any(linear.bias is not None for linear in linears):
            bias = torch.cat([torch.zeros(x.out_features) if x.bias is None else x.bias.detach() for x in linears])
        group = 1
        if storage == "int8":
            group = kernels.QUAD
        elif storage == "bfloat16":
            weight, group = weight.to(torch.bfloat16), loaded.bf16_group
        padding = (0, -inputs % group, 0, -outputs % loaded.panel)
        panels = functional.pad(weight, padding).view(-1, loaded.panel, inputs + padding[1])
        if storage == "int8":
            panels, scales, shifts = _quantised(panels)
        weight = panels.view(*panels.shape[:2], -1, group).transpose(1, 2).contiguous()
        self._kept = weight, scales, shifts, bias  # for as long as the kernels are given their addresses
        weakref.finalize(self, kernels.settle).atexit = False
        self._out = torch.empty(0)
        self.layer = kernels.Linear(
            weight.data_ptr(),
            *(None if part is None else part.data_ptr() for part in (scales, shifts, bias)),
            inputs,
            outputs,
            kernels.STORAGES.index(str(weight.dtype).removeprefix("torch.")),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``, valid until the next call.

        Logits are tens of megabytes a step: fresh memory would cost the system as much time as verification takes.
        """
        hidden = hidden.contiguous()
        rows = hidden.numel() // self.layer.inputs
        if self._out.numel() < rows * self.layer.outputs:
            self._out = hidden.new_empty(rows * self.layer.outputs)
        out = self._out[: rows * self.layer.outputs].view(*hidden.shape[:-1], self.layer.outputs)
        if rows:  # a step that only reads prompts asks for no logits
            self._kernel(self.layer, hidden.data_ptr(), out.data_ptr(), rows)
        return out


def _quantised(panels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights ``[panels, panel, inputs]`` as int8, each output's block of inputs in units of its own.

    Returns:
        The weights; their units, float32, and what a block's products are off by where the rows are stored as 128 more
        than they are, int32, both ``[panels, blocks, panel]``.
    """
    most = torch.finfo(panels.dtype).tiny
    blocks = torch.split(panels, kernels.BLOCK, dim=2)
    units = [(block.abs().amax(2) / _INT8_MAX).clamp_min(most) for block in blocks]
    rounded = [(block / unit[:, :, None]).round().to(torch.int8) for block, unit in zip(blocks, units, strict=True)]
    shifts = [-128 * block.sum(2, dtype=torch.int32) for block in rounded]
    return torch.cat(rounded, 2), torch.stack(units, 1).contiguous(), torch.stack(shifts, 1).contiguous()


class PackedLinear(nn.Module):
    """``nn.Linear`` for inference on a CPU, in fp32 or bf16, by oneDNN. Holds the weight in its packed arrangement."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # The operators that torch.compile itself emits for frozen weights.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self._weight, self.bias, "none", [], "")
        return out


def pack_weights(model: nn.Module, storage: Storage = "model") -> None:
    """Replace the model's linear layers by packed ones, where they lie on a CPU that has the kernels for their type."""
    for name, child in list(model.named_children()):
        packed = _packed(child, storage) if type(child) is nn.Linear else None
        if packed is None:
            pack_weights(child, storage)
        else:
            setattr(model, name, packed)


def _packed(linear: nn.Linear, storage: Storage) -> nn.Module | None:
    weight = linear.weight
    if weight.device.type != "cpu":
        return None
    if weight.dtype == torch.float32 and kernels.load():
        return PanelLinear([linear], storage)
    if not torch.backends.mkldnn.is_available() or weight.dtype not in (torch.float32, torch.bfloat16):  # type: ignore[no-untyped-call]
        return None
    try:
        return PackedLinear(linear)
    except RuntimeError:  # some processors lack the instructions for bfloat16
        return None
