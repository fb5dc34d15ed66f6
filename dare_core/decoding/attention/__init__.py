"""Tree attention over a packed batch: one signature (:mod:`.backends`), a file for each backend that has it.

Models call it through transformers' attention interface (:mod:`.interface`) while a batch is :func:`served <serving>`.
"""

from dare_core.decoding.attention.backends import holds_prefixes
from dare_core.decoding.attention.interface import NAME, NO_WINDOW, current, forward, prepare, serving

__all__ = ["NAME", "NO_WINDOW", "current", "forward", "holds_prefixes", "prepare", "serving"]
