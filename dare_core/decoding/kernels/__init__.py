"""Kernels of our own for CPUs, in C++: linear layers over few rows, attention of trees, verification, whole layers.

They are compiled for the processor at hand on first use. Callers ask :func:`load` each time; where it returns None,
torch's own kernels serve.
"""

from dare_core.decoding.kernels.library import (
    BLOCK,
    QUAD,
    STORAGES,
    Attention,
    Batch,
    Layer,
    Linear,
    Rows,
    load,
    set_threads,
    settle,
)

__all__ = [
    "BLOCK",
    "QUAD",
    "STORAGES",
    "Attention",
    "Batch",
    "Layer",
    "Linear",
    "Rows",
    "load",
    "set_threads",
    "settle",
]
