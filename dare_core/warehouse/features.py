"""Features, counted: which entities have valid knowledge and a vector."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, text


@dataclass(frozen=True)
class Coverage:
    """What there is of one kind's features.

    Attributes:
        entities: that are there.
        covered: entities with valid knowledge and a vector.
    """

    entities: int
    covered: int


def count_loaded(engine: Engine, encoder: str, request_ids: Sequence[str]) -> int:
    """How many of some requests have a text in the warehouse, with a vector of an encoder."""
    query = text("""
        SELECT count(*) FROM knowledge.knowledge AS k JOIN knowledge.knowledge_embedding USING (request_id, domain)
        WHERE k.request_id = ANY(:ids) AND encoder = :encoder
    """)
    with engine.connect() as connection:
        return int(connection.execute(query, {"ids": list(request_ids), "encoder": encoder}).scalar_one())


def coverage(engine: Engine, domain: str, kind: str, encoder: str) -> Coverage:
    """Count the features of one kind."""
    query = text("""
        SELECT
            (SELECT count(*) FROM knowledge.entity
                WHERE domain = :domain AND kind = :kind AND deleted_at IS NULL),
            (SELECT count(*) FROM knowledge.knowledge AS k
                JOIN knowledge.knowledge_embedding AS v USING (request_id, domain)
                JOIN knowledge.entity AS e
                    ON e.domain = :domain AND e.kind = :kind AND e.entity_id = k.entity_id
                WHERE k.domain = :domain AND k.kind = :kind AND encoder = :encoder
                    AND k.valid_to IS NULL AND e.deleted_at IS NULL)
    """)
    bound = {"domain": domain, "kind": kind, "encoder": encoder}
    with engine.connect() as connection:
        return Coverage(*connection.execute(query, bound).one())
