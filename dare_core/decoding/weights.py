"""Linear layers whose weights lie in the order that the processor's matrix kernels read them in.

On a CPU ``torch.nn.Linear`` hands oneDNN or MKL a plain matrix, which is arranged anew in every call. Arranged once,
the few rows of a decoding step go through a layer about twice as fast (docs/benchmarks.md).
"""

from typing import Final

import torch
from torch import Tensor, nn

#: Rows that the arrangement is made for; it serves any number.
_ROWS: Final = 32


class PackedLinear(nn.Module):
    """``nn.Linear`` for inference on a CPU, in fp32 or bf16. Holds the weight in its packed arrangement alone."""

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


def pack_weights(model: nn.Module) -> None:
    """Replace the model's linear layers by packed ones, where they lie on a CPU that has the kernels for their type."""
    for name, child in list(model.named_children()):
        if type(child) is nn.Linear and _is_packable(child.weight):
            setattr(model, name, PackedLinear(child))
        else:
            pack_weights(child)


def _is_packable(weight: Tensor) -> bool:
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.device.type != "cpu" or not has_kernels:
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bf16
