"""Texts that are in the warehouse and need vectors: of another encoder, or in another form."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Engine, TextClause, text

from dare_core.config.domains import Form
from dare_core.schemas import Kind

_TEXTS_PER_BATCH: Final = 1000

#: Valid vectors of a domain and encoder that could be made in a form and are not: where the entity is gone, no form but
#: ``answer`` can.
_IN_ANOTHER_FORM: Final = """
    FROM knowledge.knowledge_embedding AS e
    JOIN knowledge.knowledge AS k ON k.domain = :domain AND k.request_id = e.request_id
    WHERE e.domain = :domain AND e.encoder = :encoder AND e.is_valid AND e.form <> :form
        AND (:form = 'answer' OR EXISTS (
            SELECT FROM knowledge.entity AS n
            WHERE (n.domain, n.kind, n.entity_id) = (k.domain, k.kind, k.entity_id)
        ))
"""


@dataclass(frozen=True)
class TextToEmbed:
    """A text, and what its vector needs beside it.

    Attributes:
        data_as_of: the newest event that its prompt could see.
        form: of the vector; None: as the domain says.
    """

    request_id: str
    domain: str
    kind: Kind
    entity_id: str
    text: str
    data_as_of: datetime
    form: Form | None = None


def texts_without(engine: Engine, encoder: str) -> Iterator[list[TextToEmbed]]:
    """Batches of texts, replaced ones too, that an encoder has no vector of, each in the form that is served."""
    query = text("""
        SELECT k.request_id, k.domain, k.kind, k.entity_id, k.text, k.data_as_of, (
            SELECT served.form FROM knowledge.knowledge_embedding AS served
            JOIN knowledge.encoder AS c ON c.name = served.encoder AND c.in_force
            WHERE (served.request_id, served.domain) = (k.request_id, k.domain)
        ) AS form
        FROM knowledge.knowledge AS k
        WHERE k.request_id > :after AND NOT EXISTS (
            SELECT FROM knowledge.knowledge_embedding AS e
            WHERE (e.request_id, e.domain, e.encoder) = (k.request_id, k.domain, :encoder)
        )
        ORDER BY k.request_id LIMIT :limit
    """)
    return _batches(engine, query, encoder=encoder)


def texts_in_another_form(engine: Engine, domain: str, encoder: str, form: Form) -> Iterator[list[TextToEmbed]]:
    """Batches of a domain's valid texts whose vectors by an encoder are in another form; to be made in ``form``."""
    query = text(f"""
        SELECT k.request_id, k.domain, k.kind, k.entity_id, k.text, k.data_as_of, CAST(:form AS text) AS form
        {_IN_ANOTHER_FORM} AND e.request_id > :after
        ORDER BY e.request_id LIMIT :limit
    """)
    return _batches(engine, query, domain=domain, encoder=encoder, form=form)


def count_in_another_form(engine: Engine, domain: str, encoder: str, form: Form) -> int:
    """How many valid texts of a domain have vectors in another form."""
    query = text(f"SELECT count(*) {_IN_ANOTHER_FORM}")
    with engine.connect() as connection:
        return int(connection.execute(query, {"domain": domain, "encoder": encoder, "form": form}).scalar_one())


def _batches(engine: Engine, query: TextClause, **bound: Any) -> Iterator[list[TextToEmbed]]:
    """What a query finds behind the request ``:after``, up to ``:limit`` rows at a time; no transaction in between."""
    after = ""
    while True:
        with engine.connect() as connection:
            found = connection.execute(query, {**bound, "after": after, "limit": _TEXTS_PER_BATCH}).mappings()
            texts = [TextToEmbed(**row) for row in found]
        if not texts:
            return
        yield texts
        after = texts[-1].request_id
