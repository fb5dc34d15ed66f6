"""Features, counted: which entities have valid knowledge and a vector."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, text


@dataclass(frozen=True)
class Coverage:
    """What there is of one kind's features.

    Attributes:
        loaded: of some requests, those that are in the warehouse with a vector.
        entities: that are there.
        covered: entities with valid knowledge and a vector.
    """

    loaded: int
    entities: int
    covered: int


def coverage(engine: Engine, domain: str, kind: str, encoder: str, request_ids: Sequence[str]) -> Coverage:
    """Count the features of one kind, and those of some requests."""
    query = text("""
        SELECT
            (SELECT count(*) FROM knowledge.knowledge AS k JOIN knowledge.knowledge_embedding USING (request_id, domain)
                WHERE k.request_id = ANY(:ids) AND encoder = :encoder),
            (SELECT count(*) FROM knowledge.entity
                WHERE domain = :domain AND kind = :kind AND deleted_at IS NULL),
            (SELECT count(*) FROM knowledge.knowledge AS k
                JOIN knowledge.knowledge_embedding AS v USING (request_id, domain)
                JOIN knowledge.entity AS e
                    ON e.domain = :domain AND e.kind = :kind AND e.entity_id = k.entity_id
                WHERE k.domain = :domain AND k.kind = :kind AND encoder = :encoder
                    AND k.valid_to IS NULL AND e.deleted_at IS NULL)
    """)
    bound = {"domain": domain, "kind": kind, "encoder": encoder, "ids": list(request_ids)}
    with engine.connect() as connection:
        return Coverage(*connection.execute(query, bound).one())
