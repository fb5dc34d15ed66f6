"""The compiled kernels as Python sees them: the structures that they take, and the functions.

The structures mirror those in the C++ sources, field by field.
"""

import ctypes
import logging
import math
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

from dare_core.decoding.kernels.build import built
from dare_core.errors import SettingError
from dare_core.storage.processors import processors

log = logging.getLogger(__name__)

#: Set to ``0`` to do without.
_SWITCH: Final = "DARE_KERNELS"
#: Microseconds that a waiting thread looks for work before it sleeps; ``active``: it never sleeps.
_SPIN: Final = "DARE_THREAD_SPIN"
_DEFAULT_SPIN: Final = 50.0

#: How weights are stored, by the number that the kernels know it by.
STORAGES: Final = ("float32", "bfloat16", "int8")


#: Of int8 weights, inputs that have a scale in common.
BLOCK: Final = 128
#: Of int8 weights, inputs that lie side by side.
QUAD: Final = 4


class Linear(ctypes.Structure):
    """Weights ``[panels, inputs / group, panel, group]``; bias ``[outputs]`` float32, or null.

    Of int8 weights: scales float32 and shifts int32 ``[panels, blocks, panel]``; else null.
    """

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("shifts", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("storage", ctypes.c_int64),
    )


class Attention(ctypes.Structure):
    """One layer's attention: a window of so many positions, the row's own included; a soft cap of 0 is none."""

    _fields_ = (
        ("layer", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


class Batch(ctypes.Structure):
    """A step's rows and the cache that they are written to; see ``batch.PackedBatch``."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("n_sequences", ctypes.c_int64),
        ("n_tasks", ctypes.c_int64),
        ("slots", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("sequences", ctypes.c_void_p),
        ("stretches", ctypes.c_void_p),
        ("tasks", ctypes.c_void_p),
        ("parents", ctypes.c_void_p),
        ("depths", ctypes.c_void_p),
    )


class Rows(ctypes.Structure):
    """``[heads, rows, dim]`` float32 of any strides but the last."""

    _fields_ = (("at", ctypes.c_void_p), ("head_stride", ctypes.c_int64), ("row_stride", ctypes.c_int64))


class Layer(ctypes.Structure):
    """A pre-norm decoder layer; see ``layers.FusedLayer``."""

    _fields_ = (
        ("attention", Attention),
        ("input_norm", ctypes.c_void_p),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("output_norm", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
        ("activation", ctypes.c_int64),
        ("query_key_value", Linear),
        ("output", Linear),
        ("gate", Linear),
        ("up", Linear),
        ("down", Linear),
    )


class Kernels:
    """The loaded library. Its functions raise :class:`MemoryError` where memory is short.

    Attributes:
        panel: output features that lie side by side in packed weights.
        lanes: a head's width, and a fused layer's inner one, are multiples of it.
        bf16_group: of bfloat16 weights, inputs that lie side by side: two where the processor multiplies pairs.
        threads: ``(count)``: how many threads may take part in a call, this one included.
        spin: ``(seconds)``: that a waiting thread looks for work before it sleeps.
        settle: ``()``: waits for threads that still look at weights or cache after a call.
        linear: ``(Linear, x [rows, inputs], y [rows, outputs], rows)``.
        attention: ``(Attention, Batch, query, key, value: Rows, out [rows, heads, dim])``; writes the cache too.
        layers: ``(Layers, n, Batch, x [rows, hidden], cosines, sines [rows, rotary], rotary, y [rows, hidden])``.
        peaks: ``(logits [rows, width], rows, width, peaks [rows] float32, places [rows] int32)``: of each row the
            largest and where it stands first; NaN where the row holds one.
        compare: ``(logits, width, rows [n] int64, values [n], peaks [n], n, above [n] int32, log_sums [n])``: in each
            of some rows, how many logits are above a value, and the logarithm of the sum of e to the power of all.
    """

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        self.panel = int(loaded.dare_panel())
        self.lanes = int(loaded.dare_lanes())
        self.bf16_group = int(loaded.dare_bf16_group())
        self.threads = loaded.dare_threads
        self.threads.argtypes, self.threads.restype = [ctypes.c_int], None
        self.spin = loaded.dare_spin
        self.spin.argtypes, self.spin.restype = [ctypes.c_double], None
        self.settle = loaded.dare_settle
        self.settle.argtypes, self.settle.restype = [], None
        self.linear, self.attention, self.layers = loaded.dare_linear, loaded.dare_attention, loaded.dare_layers
        pointer, number = ctypes.c_void_p, ctypes.c_long
        self.linear.argtypes = [ctypes.POINTER(Linear), pointer, pointer, number]
        self.attention.argtypes = [ctypes.POINTER(kind) for kind in (Attention, Batch, Rows, Rows, Rows)] + [pointer]
        self.layers.argtypes = [ctypes.POINTER(Layer), number, ctypes.POINTER(Batch), *[pointer] * 3, number, pointer]
        self.peaks = loaded.dare_peaks
        self.peaks.argtypes = [pointer, number, number, pointer, pointer]
        self.compare = loaded.dare_compare
        self.compare.argtypes = [pointer, number, pointer, pointer, pointer, number, pointer, pointer]
        for function in (self.linear, self.attention, self.layers, self.peaks, self.compare):
            function.restype = ctypes.c_int
            function.errcheck = _check


def _check(status: Any, *_: object) -> Any:
    if status:
        raise MemoryError("the kernels need more memory than there is")
    return status


@cache
def load() -> Kernels | None:
    """The kernels, compiled if they are not yet; None where they cannot be.

    Raises:
        SettingError: ``DARE_THREAD_SPIN`` is no number of microseconds.
    """
    spin = _spin_seconds(os.environ.get(_SPIN, ""))
    if os.environ.get(_SWITCH) == "0":
        return None
    try:
        loaded = Kernels(built())
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        log.warning("no compiled kernels, decoding runs on torch's own, which is slower: %s", reason)
        return None
    loaded.threads(processors())
    loaded.spin(spin)
    return loaded


def _spin_seconds(said: str) -> float:
    if said == "active":
        return math.inf
    try:
        microseconds = float(said or _DEFAULT_SPIN)
    except ValueError:
        microseconds = math.nan
    if not 0 <= microseconds < math.inf:
        raise SettingError(f"{_SPIN} is {said!r}; set it to microseconds, 0 or more, or to `active`")
    return microseconds * 1e-6


def settle() -> None:
    """To be called before weights or a cache are freed: a thread that was left behind may still look at them."""
    if loaded := load():
        loaded.settle()


def set_threads(count: int) -> None:
    """Have up to ``count`` threads take part in a call, this one included."""
    if loaded := load():
        loaded.threads(count)
