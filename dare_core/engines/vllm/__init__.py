"""The engine's interface over vLLM: our pools are its proposer, our verification decides what of a draft passes.

vLLM lives in an environment of its own, in a process that :mod:`~dare_core.engines.vllm.client` starts and asks in JSON
lines. ``server``, ``launch``, ``plugin``, ``proposer``, ``costs`` and ``worker`` run there; ``engines``, ``options``
and ``client`` run here. Not below ``decoding``: that package loads Numba, which must not happen in vLLM's process
before its worker has started.
"""
