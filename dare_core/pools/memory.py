"""What compiled code needs of memory and Python has no words for: arrays at addresses, and fetching ahead of time."""

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


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
