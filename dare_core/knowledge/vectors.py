"""Vectors of texts, from each encoder that the warehouse keeps vectors of, in the form that the texts' domain says."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
from sqlalchemy import Engine

from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import Settings
from dare_core.embedding.combination import combined
from dare_core.embedding.encoder import Encoder
from dare_core.embedding.forms import Passage, passage
from dare_core.quality.findings import Finding
from dare_core.schemas import Kind, knowledge_embedding
from dare_core.warehouse import encoders, entities
from dare_core.warehouse.session import open_warehouse
from dare_core.warehouse.texts_to_embed import (
    TextToEmbed,
    count_in_another_form,
    texts_in_another_form,
    texts_without,
)
from dare_core.warehouse.vectors import index_vectors, load_vectors, replace_vectors

#: Entities whose attributes are in memory at once.
_ENTITIES_AT_ONCE: Final = 1000


class Embedder:
    """Makes vectors of texts by each encoder that the warehouse keeps vectors of, each loaded once, when it is needed.

    Args:
        settings: in force.
        engine: the warehouse.

    Raises:
        SettingError: see :func:`dare_core.warehouse.encoders.to_embed_with`.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine
        self.names: Final = encoders.to_embed_with(engine, settings.encoder)
        self._loaded: dict[str, Encoder] = {}

    def vectors(self, knowledge: pa.Table) -> list[pa.Table]:
        """Vectors of texts, a table for each encoder; that of the encoder in force comes first.

        Attributes and histories are those that the warehouse has now, of a history what the text's prompt could see.
        Of an entity that the warehouse does not have, the text alone is embedded, in form ``answer``.

        Raises:
            SettingError: a text's domain is not configured.
        """
        columns = ("request_id", "domain", "kind", "entity_id", "text", "data_as_of")
        texts = [TextToEmbed(**row) for row in knowledge.select(columns).to_pylist()]
        passages = _passages(self._settings, self._engine, texts)
        return [_encoded(self._encoder(name), texts, passages) for name in self.names]

    def _encoder(self, name: str) -> Encoder:
        if name not in self._loaded:
            self._loaded[name] = _load(self._settings, name)
        return self._loaded[name]


def vectors(settings: Settings, engine: Engine, knowledge: pa.Table) -> list[pa.Table]:
    """See :meth:`Embedder.vectors`."""
    return Embedder(settings, engine).vectors(knowledge)


def add_encoder(settings: Settings, name: str) -> dict[str, Any]:
    """Have vectors of another encoder beside those in force: of every text now, and of new ones from each run.

    Each is made in the form that the text's vector in force has. Broken off, it goes on where it was. What is served
    stays what it was.

    Returns:
        How many vectors were ``embedded``, and the encoder's ``width``.

    Raises:
        SettingError: the form of a text needs its domain, which is not configured.
    """
    encoder = _load(settings, name)
    count = 0
    with open_warehouse(settings) as (_, engine):
        encoders.add(engine, name, encoder.width)
        for texts in texts_without(engine, name):
            count += load_vectors(engine, _encoded(encoder, texts, _passages(settings, engine, texts)))
        index_vectors(engine)
    return {"encoder": name, "width": encoder.width, "embedded": count}


def reembed(settings: Settings, domain: str) -> dict[str, Any]:
    """Embed a domain's valid texts anew, by every encoder, where their vectors are in another form than its file says.

    A batch is committed at a time: broken off, it goes on where it was, and two at once do no harm. Replaced texts keep
    their vectors: what their entities' attributes were at that time is not known.

    Returns:
        The ``domain``, its ``form``, and how many vectors were ``embedded``.

    Raises:
        SettingError: no such domain is configured.
    """
    form = load_domain(settings, domain).knowledge.embedded
    count = 0
    with open_warehouse(settings) as (_, engine):
        for stored in encoders.stored(engine):
            encoder = None
            for texts in texts_in_another_form(engine, domain, stored.name, form):
                encoder = encoder or _load(settings, stored.name)
                made = _encoded(encoder, texts, _passages(settings, engine, texts))
                count += replace_vectors(engine, domain, made)
    return {"domain": domain, "form": form, "embedded": count}


def in_another_form(settings: Settings, engine: Engine, domain: str) -> list[Finding]:
    """What there is to say of a domain's valid texts whose vectors are in another form than its file says."""
    form = load_domain(settings, domain).knowledge.embedded
    in_force = [encoder.name for encoder in encoders.stored(engine) if encoder.in_force]
    count = sum(count_in_another_form(engine, domain, name, form) for name in in_force)
    if not count:
        return []
    found = (
        f"{count} valid texts have vectors in another form than {form}; run `dare warehouse reembed --domain {domain}`"
    )
    return [Finding("one form of vectors", "warning", found)]


def _load(settings: Settings, name: str) -> Encoder:
    return Encoder.load(settings.model_copy(update={"encoder": name}))


def _passages(settings: Settings, engine: Engine, texts: Sequence[TextToEmbed]) -> list[Passage]:
    """What the vectors of texts are made of, in their order."""
    domains: dict[str, Domain] = {}
    passages: list[Passage] = []
    for start in range(0, len(texts), _ENTITIES_AT_ONCE):
        some = texts[start : start + _ENTITIES_AT_ONCE]
        for name in {text.domain for text in some if text.form != "answer"} - domains.keys():
            domains[name] = load_domain(settings, name)
        forms = [text.form or domains[text.domain].knowledge.embedded for text in some]
        beside = [text for text, form in zip(some, forms, strict=True) if form != "answer"]
        known = _attributes(engine, beside)
        for text, form in zip(some, forms, strict=True):
            if form == "answer":
                passages.append(Passage("answer", (text.text,)))
                continue
            found = known.get((text.domain, text.kind, text.entity_id))
            attributes = None if found is None else json.loads(found)
            domain = domains[text.domain]
            passages.append(passage(domain, text.kind, form, attributes, text.text, text.data_as_of))
    return passages


def _attributes(engine: Engine, texts: Sequence[TextToEmbed]) -> Mapping[tuple[str, Kind, str], str]:
    """The attributes of the entities that texts are about, JSON objects; of those that are gone, none."""
    ids: dict[tuple[str, Kind], list[str]] = defaultdict(list)
    for text in texts:
        ids[text.domain, text.kind].append(text.entity_id)
    return {
        (domain, kind, entity_id): found
        for (domain, kind), of_kind in ids.items()
        for entity_id, found in entities.attributes(engine, domain, kind, of_kind).items()
    }


def _encoded(encoder: Encoder, texts: Sequence[TextToEmbed], passages: Sequence[Passage]) -> pa.Table:
    return pa.table(
        [
            [text.request_id for text in texts],
            pa.repeat(encoder.name, len(texts)),
            [made.form for made in passages],
            combined(encoder, [made.parts for made in passages]),
        ],
        schema=knowledge_embedding(encoder.width),
    )
