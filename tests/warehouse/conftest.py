"""Rows in the shape that the pipeline hands to the warehouse."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dare_core import schemas

_MOMENT = datetime(1998, 1, 1, tzinfo=UTC)


def _entities(rows: Sequence[dict[str, Any]]) -> pa.Table:
    usual = {
        "domain": "movies",
        "kind": "item",
        "group_name": "Drama",
        "attributes": '{"title": "Heat"}',
        "data_as_of": _MOMENT,
        "events": 1,
    }
    return pa.Table.from_pylist([{**usual, **row} for row in rows], schemas.ENTITY)


def _knowledge(rows: Sequence[dict[str, Any]]) -> pa.Table:
    usual = {
        "domain": "movies", "kind": "item", "group_name": "Drama", "prompt": "What is it?", "prompt_token_ids": [1, 2],
        "dropped_history": 0, "epoch": 0, "data_as_of": _MOMENT, "text": "A film.",
        "token_ids": [5, 6, 7], "text_hash": "h",
        "finish_reason": "stop", "framework": "kar", "model": "m", "tokenizer_hash": "t", "verification": "relaxed",
        "top_k": 2, "min_prob": 0.1, "max_new_tokens": 96, "pool_version": None, "run_id": "run-1",
        "available_at": datetime(2026, 1, 1, tzinfo=UTC), "prompt_tokens": 2, "new_tokens": 30, "steps": 10,
        "drafted": 40,
        "accepted": 20, "relaxed": 3, "seconds": 1.5,
    }  # fmt: skip
    return pa.Table.from_pylist([{**usual, **row} for row in rows], schemas.KNOWLEDGE)


def _embeddings(request_ids: Sequence[str]) -> pa.Table:
    """Unit vectors in a half circle, in the order of the ids: neighbours in the list are neighbours in space."""
    angles = np.linspace(0, np.pi / 2, max(len(request_ids), 2))[: len(request_ids)]
    vectors = np.zeros((len(request_ids), schemas.EMBEDDING_WIDTH), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    return pa.table(
        [
            list(request_ids),
            ["minilm"] * len(request_ids),
            pa.FixedSizeListArray.from_arrays(vectors.ravel(), schemas.EMBEDDING_WIDTH),
        ],
        schema=schemas.KNOWLEDGE_EMBEDDING,
    )


@pytest.fixture
def entity_rows() -> Callable[[Sequence[dict[str, Any]]], pa.Table]:
    """Rows of ENTITY; what a row leaves out has a usual value."""
    return _entities


@pytest.fixture
def knowledge_rows() -> Callable[[Sequence[dict[str, Any]]], pa.Table]:
    """Rows of KNOWLEDGE; what a row leaves out has a usual value."""
    return _knowledge


@pytest.fixture
def embedding_rows() -> Callable[[Sequence[str]], pa.Table]:
    """Rows of KNOWLEDGE_EMBEDDING, one per request."""
    return _embeddings
