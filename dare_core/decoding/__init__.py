"""Retrieval-based speculative decoding (paper section 4). Token ids in, token ids out.

Knows models, not tokenizers, users, items or pools: drafts come in through :class:`dare_core.drafts.Drafter`.
"""

from dare_core.decoding.config import EngineConfig
from dare_core.decoding.engine import Engine
from dare_core.decoding.requests import OnTokens, Request, Result, Statistics
from dare_core.decoding.text_engine import TextEngine
from dare_core.decoding.verification import Rule

__all__ = ["Engine", "EngineConfig", "OnTokens", "Request", "Result", "Rule", "Statistics", "TextEngine"]
