"""A change of encoder, on a real database: both widths are kept, one is served."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core import schemas
from dare_core.errors import SettingError, WarehouseError
from dare_core.features.history import read_features
from dare_core.warehouse import encoders
from dare_core.warehouse.encoders import StoredEncoder
from dare_core.warehouse.entities import upsert_entities
from dare_core.warehouse.knowledge import load_knowledge
from dare_core.warehouse.texts_to_embed import texts_without
from dare_core.warehouse.vectors import index_vectors, load_vectors

Rows = Callable[..., pa.Table]
_IDS = ["r0", "r1", "r2", "r3"]


def _wide(request_ids: list[str], encoder: str = "wide", width: int = 768) -> pa.Table:
    """Vectors in another order than the usual ones': r0's nearest is the last, not r1."""
    values = np.zeros((len(request_ids), width), np.float32)
    for row, request in enumerate(request_ids):
        angle = {"r0": 0.0, "r3": 0.1}.get(request, 1.0 + row / 10)
        values[row, :2] = np.cos(angle), np.sin(angle)
    vectors = pa.FixedSizeListArray.from_arrays(values.ravel(), width)
    return pa.table(
        [request_ids, [encoder] * len(request_ids), ["answer"] * len(request_ids), vectors],
        schema=schemas.knowledge_embedding(width),
    )


@pytest.fixture
def loaded(engine: Engine, entity_rows: Rows, knowledge_rows: Rows, embedding_rows: Rows) -> Engine:
    """Four items, by encoder minilm; the last one's first text was replaced."""
    upsert_entities(engine, entity_rows([{"entity_id": request[1]} for request in _IDS]))
    load_knowledge(engine, knowledge_rows([{"request_id": "old", "entity_id": "3"}]), embedding_rows(["old"]))
    rows = [{"request_id": request, "entity_id": request[1], "epoch": 1} for request in _IDS]
    load_knowledge(engine, knowledge_rows(rows), embedding_rows(_IDS))
    return engine


def _nearest(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.exec_driver_sql("SELECT item FROM features.similar_items('0', 3)").scalars())


def _served(engine: Engine) -> set[tuple[str, int]]:
    with engine.connect() as connection:
        query = "SELECT DISTINCT encoder, vector_dims(embedding) FROM features.item"
        return {(row[0], row[1]) for row in connection.exec_driver_sql(query)}


def test_both_encoders_are_kept_until_the_switch_and_what_is_served_changes_at_once(
    loaded: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    assert encoders.to_embed_with(loaded, "minilm") == ["minilm"]
    encoders.add(loaded, "wide", 768)
    encoders.add(loaded, "wide", 768)
    assert encoders.stored(loaded) == [StoredEncoder("minilm", 384, True), StoredEncoder("wide", 768, False)]
    assert encoders.to_embed_with(loaded, "minilm") == encoders.to_embed_with(loaded, "wide") == ["minilm", "wide"]
    with pytest.raises(WarehouseError, match=r"5 texts have no vector of wide; run `dare warehouse add-encoder wide`"):
        encoders.switch(loaded, "wide")
    found = [text.request_id for texts in texts_without(loaded, "wide") for text in texts]
    assert sorted(found) == ["old", *_IDS], "replaced texts are joined point in time, too"
    assert load_vectors(loaded, _wide(found)) == 5
    assert load_vectors(loaded, _wide(found)) == 0
    assert index_vectors(loaded) == 1
    assert _nearest(loaded) == ["1", "2", "3"]
    assert _served(loaded) == {("minilm", 384)}

    late = knowledge_rows([{"request_id": "r1b", "entity_id": "1", "epoch": 2}])
    load_knowledge(loaded, late, embedding_rows(["r1b"]), _wide(["r1b"]))
    encoders.switch(loaded, "wide")
    assert _nearest(loaded)[0] == "3"
    assert _served(loaded) == {("wide", 768)}
    assert read_features(loaded, "movies", "item").schema.field("embedding").type.list_size == 768

    encoders.switch(loaded, "minilm")
    assert _served(loaded) == {("minilm", 384)}, "and back"
    encoders.switch(loaded, "wide")
    encoders.drop(loaded, "minilm")
    assert encoders.stored(loaded) == [StoredEncoder("wide", 768, True)]
    assert _nearest(loaded)[0] == "3"


def test_mistakes_with_encoders_are_answered(loaded: Engine) -> None:
    with pytest.raises(SettingError, match=r"is 'other', and the warehouse has vectors of minilm; run"):
        encoders.to_embed_with(loaded, "other")
    with pytest.raises(WarehouseError, match="no vectors of other; it has those of minilm"):
        encoders.switch(loaded, "other")
    with pytest.raises(WarehouseError, match="minilm is in force"):
        encoders.drop(loaded, "minilm")
    with pytest.raises(WarehouseError, match="has vectors of minilm in another width than 768"):
        encoders.add(loaded, "minilm", 768)
    with pytest.raises(WarehouseError, match="width 5000 cannot be indexed"):
        encoders.add(loaded, "huge", 5000)


def test_before_the_first_load_the_setting_decides(engine: Engine) -> None:
    assert encoders.to_embed_with(engine, "any") == ["any"]
    encoders.add(engine, "any", 16)
    assert encoders.stored(engine) == [StoredEncoder("any", 16, True)]
