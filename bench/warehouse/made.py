"""Texts and vectors made up of MovieLens' films, as many as wanted."""

from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.warehouse.scratch import Scratch
from dare_core import schemas
from dare_core.embedding.encoder import Encoder
from dare_core.schemas import Kind
from dare_core.sources.movielens import read_movielens

#: The data that the texts saw, and when they were written.
BEGIN: Final = datetime(2020, 1, 1, tzinfo=UTC)
_NOISE: Final = 0.02  # in each dimension; a film's own values are 0.05 on average


class Made:
    """Texts and vectors, from the films."""

    def __init__(self, scratch: Scratch, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        films = [f"{row['title']}, {', '.join(row['genres'])}" for row in read_movielens()["items"].to_pylist()]
        encoder = Encoder.load(scratch.settings)
        self._encoder = encoder.name
        self._films = encoder.encode(films).flatten().to_numpy().reshape(len(films), -1)
        picked = self._random.integers(len(films), size=(4000, 16))
        #: About 700 characters each, as the pipeline's are.
        self._texts = pa.array(
            ["Who likes this film also likes " + "; ".join(films[at] for at in row) for row in picked]
        )

    def texts(self, rows: int, domain: str, kind: Kind, **others: Any) -> pa.Table:
        """Rows of schema KNOWLEDGE, of entities 0, 1, ..., or of what ``others`` say by column."""
        ids = pc.cast(pa.array(np.arange(rows)), pa.string())
        texts = self._texts.take(pa.array(self._random.integers(len(self._texts), size=rows)))
        tokens = pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32) * 160),
            pa.array(self._random.integers(49_152, size=rows * 160, dtype=np.int32)),
        )
        constant = {
            "domain": domain, "kind": kind, "group_name": "1990s", "dropped_history": 0, "epoch": 0,
            "data_as_of": BEGIN, "text_hash": "0" * 32, "finish_reason": "stop", "framework": "kar",
            "model": "made up", "tokenizer_hash": "0" * 32, "verification": "relaxed", "top_k": 2, "min_prob": 0.1,
            "max_new_tokens": 160, "pool_version": None, "run_id": "bench", "available_at": BEGIN,
            "prompt_tokens": 160, "new_tokens": 160, "steps": 60, "drafted": 400, "accepted": 100, "relaxed": 5,
            "seconds": 2.0,
        }  # fmt: skip
        columns: dict[str, Any] = {
            "request_id": pc.binary_join_element_wise(f"{domain}-{kind}", ids, "-"),
            "entity_id": ids,
            "prompt": texts,
            "prompt_token_ids": tokens,
            "text": texts,
            "token_ids": tokens,
        } | others
        return pa.table(
            [
                columns[field.name]
                if field.name in columns
                else pa.repeat(pa.scalar(constant[field.name], field.type), rows)
                for field in schemas.KNOWLEDGE
            ],
            schema=schemas.KNOWLEDGE,
        )

    def vectors(self, texts: pa.Table) -> pa.Table:
        """A unit vector for each text, in schema KNOWLEDGE_EMBEDDING."""
        rows, width = len(texts), self._films.shape[1]
        pairs = self._random.integers(len(self._films), size=(2, rows))
        share = self._random.random((rows, 1), np.float32)
        values = share * self._films[pairs[0]] + (1 - share) * self._films[pairs[1]]
        values += self._random.standard_normal((rows, width), np.float32) * np.float32(_NOISE)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
        named = (pa.repeat(name, rows) for name in (self._encoder, "answer"))
        return pa.table([texts["request_id"], *named, embedding], schema=schemas.knowledge_embedding(width))
