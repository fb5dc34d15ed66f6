"""Attention by torch's own kernels, on any device and in any type: sequences padded to one block, and a mask.

Scaled dot product attention where it can compute what is asked; with a soft cap, which it does not know, written out.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dare_core.decoding import kernels
from dare_core.decoding.batch import PackedBatch


def attend(batch: PackedBatch, asked: kernels.Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """See :class:`~dare_core.decoding.attention.backends.Backend`."""
    heads, kv_heads, softcap = asked.heads, asked.kv_heads, asked.softcap
    batch.write(asked.layer, key, value)
    parts = []
    for group in batch.groups:
        keys, values = batch.read(asked.layer, group)
        queries = group.queries(query, kv_heads)
        mask = group.mask(heads // kv_heads, asked.window, query.dtype)
        if not softcap:
            attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=asked.scale)
        else:
            scores = torch.tanh(queries @ keys.transpose(2, 3) * (asked.scale / softcap)) * softcap + mask
            attended = scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values
        parts.append(group.unpadded(attended, heads))
    if len(parts) == 1:  # then its rows are all rows, in order
        return parts[0].contiguous()
    out = query.new_empty(query.shape[1], heads, value.shape[2])
    for group, part in zip(batch.groups, parts, strict=True):
        out[group.rows] = part
    return out
