"""Vectors of texts, from each encoder that the warehouse keeps vectors of."""

import shutil
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.embedding.encoder import Encoder
from dare_core.schemas import KNOWLEDGE, knowledge_embedding
from dare_core.stages.ownership import owned
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.warehouse import encoders
from dare_core.warehouse.session import open_warehouse
from dare_core.warehouse.vectors import index_vectors, load_vectors


@owned
def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Embed the texts that passed, with each encoder that the warehouse keeps vectors of."""
    run_dir = settings.run_dir(request.run_id)
    passed = run_files.read_table(run_dir / "validated.parquet", KNOWLEDGE)
    with open_warehouse(settings) as (_, engine):
        embeddings = vectors(settings, engine, passed) if len(passed) else []
    folder = run_dir / "embeddings"
    shutil.rmtree(folder, ignore_errors=True)
    for number, table in enumerate(embeddings):
        run_files.write_table(folder / f"{number}.parquet", table)
    return {"embedded": sum(map(len, embeddings))}


def vectors(settings: Settings, engine: Engine, knowledge: pa.Table) -> list[pa.Table]:
    """Vectors of texts, a table for each encoder that the warehouse keeps; that of the encoder in force comes first.

    Raises:
        SettingError: see :func:`dare_core.warehouse.encoders.to_embed_with`.
    """
    return [
        _encoded(
            Encoder.load(settings.model_copy(update={"encoder": name})),
            knowledge["request_id"].to_pylist(),
            knowledge["text"].to_pylist(),
        )
        for name in encoders.to_embed_with(engine, settings.encoder)
    ]


def add_encoder(settings: Settings, name: str) -> dict[str, Any]:
    """Have vectors of another encoder beside those in force: of every text now, and of new ones from each run.

    Broken off, it goes on where it was. What is served stays what it was.

    Returns:
        How many vectors were ``embedded``, and the encoder's ``width``.
    """
    encoder = Encoder.load(settings.model_copy(update={"encoder": name}))
    count = 0
    with open_warehouse(settings) as (_, engine):
        encoders.add(engine, name, encoder.width)
        for request_ids, texts in encoders.texts_without(engine, name):
            count += load_vectors(engine, _encoded(encoder, request_ids, texts))
        index_vectors(engine)
    return {"encoder": name, "width": encoder.width, "embedded": count}


def _encoded(encoder: Encoder, request_ids: Sequence[str], texts: Sequence[str]) -> pa.Table:
    named = (pa.repeat(name, len(texts)) for name in (encoder.name, "answer"))
    columns = [request_ids, *named, encoder.encode(texts)]
    return pa.table(columns, schema=knowledge_embedding(encoder.width))
