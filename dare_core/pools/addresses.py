"""Arrays by address, so that one compiled call can search any number of segments.

Compiled code cannot loop over a Python list of arrays without Python's lock, so the arrays of a pool's segments are
handed over as rows of addresses. Whoever makes the rows keeps the arrays alive for as long as the rows are used.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy.typing import NDArray

from dare_core.pools.index import STRIDE, ContextIndex
from dare_core.storage.machine_code import compiled


@intrinsic
def _to_pointer(_: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@intrinsic
def _prefetch(_: Any, array: Any, k: Any) -> Any:
    """Have the processor fetch the line of ``array[k]``, and go on without waiting for it; any ``k`` is allowed."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        array_type, k_type = signature.args
        begin = context.make_array(array_type)(context, builder, arguments[0]).data
        k = context.cast(builder, arguments[1], k_type, types.int64)
        item = builder.gep(begin, [k])
        byte, number = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        fetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        )
        to_read, keep, data = number(0), number(3), number(1)
        builder.call(fetch, [builder.bitcast(item, byte), to_read, keep, data])
        return context.get_dummy_value()

    return types.none(array, k), generate


#: As compiled code calls them: without the typing context.
pointer: Final[Any] = _to_pointer
prefetch: Final[Any] = _prefetch

#: The arrays of one :class:`~dare_core.pools.index.ContextIndex`.
MAPPED: Final = np.dtype(
    [
        ("tokens", np.uint64),
        ("order", np.uint64),
        ("keys", np.uint64),
        ("length", np.int64),
        ("key_tokens", np.int64),
    ],
    align=True,
)


def rows_of(indexes: Sequence[ContextIndex]) -> NDArray[np.void]:
    """A row of :data:`MAPPED` for each index."""
    rows = np.empty(len(indexes), MAPPED)
    for row, index in zip(rows, indexes, strict=True):
        addresses = (array.ctypes.data for array in (index.tokens, index.order, index.keys))
        row["tokens"], row["order"], row["keys"] = addresses
        row["length"], row["key_tokens"] = len(index.order), index.key_tokens
    return rows


@compiled
def mapped(rows: NDArray[np.void], k: int) -> ContextIndex:
    """The index of a row."""
    row = rows[k]
    n = row.length
    return ContextIndex(
        carray(pointer(row.tokens), (n,), np.int32),
        carray(pointer(row.order), (n,), np.int32),
        carray(pointer(row.keys), ((n + STRIDE - 1) // STRIDE,), np.uint64),
        row.key_tokens,
    )
