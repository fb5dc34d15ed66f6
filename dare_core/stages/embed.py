"""Vectors of texts, from each encoder that the warehouse keeps vectors of, in the form that the texts' domain says."""

import json
import shutil
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
from dare_core.schemas import KNOWLEDGE, Kind, knowledge_embedding
from dare_core.stages.ownership import owned
from dare_core.stages.request import RunRequest
from dare_core.stages.weighing import weigh
from dare_core.storage import run_files
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


@owned
def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Embed the texts that passed, with each encoder that the warehouse keeps vectors of.

    Where other valid texts of the domain have vectors in another form than its file says, that is under ``warnings``.
    """
    run_dir = settings.run_dir(request.run_id)
    passed = run_files.read_table(run_dir / "validated.parquet", KNOWLEDGE)
    with open_warehouse(settings) as (_, engine):
        embeddings = vectors(settings, engine, passed) if len(passed) else []
        others = _in_another_form(settings, engine, request.domain, passed)
    folder = run_dir / "embeddings"
    shutil.rmtree(folder, ignore_errors=True)
    for number, table in enumerate(embeddings):
        run_files.write_table(folder / f"{number}.parquet", table)
    warnings = weigh(settings, request, "vectors", others, f"the vectors of {request.domain}")
    return {"embedded": sum(map(len, embeddings)), "warnings": warnings}


def vectors(settings: Settings, engine: Engine, knowledge: pa.Table) -> list[pa.Table]:
    """Vectors of texts, a table for each encoder that the warehouse keeps; that of the encoder in force comes first.

    Attributes and histories are those that the warehouse has now, of a history what the text's prompt could see. Of an
    entity that the warehouse does not have, the text alone is embedded, in form ``answer``.

    Raises:
        SettingError: a text's domain is not configured; see also
            :func:`dare_core.warehouse.encoders.to_embed_with`.
    """
    names = encoders.to_embed_with(engine, settings.encoder)
    columns = ("request_id", "domain", "kind", "entity_id", "text", "data_as_of")
    texts = [TextToEmbed(**row) for row in knowledge.select(columns).to_pylist()]
    passages = _passages(settings, engine, texts)
    return [_encoded(_load(settings, name), texts, passages) for name in names]


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


def _in_another_form(settings: Settings, engine: Engine, domain: str, passed: pa.Table) -> list[Finding]:
    """What there is to say of valid texts that the run does not replace."""
    form = load_domain(settings, domain).knowledge.embedded
    replaced = list(zip(passed["kind"].to_pylist(), passed["entity_id"].to_pylist(), strict=True))
    in_force = [encoder.name for encoder in encoders.stored(engine) if encoder.in_force]
    count = sum(count_in_another_form(engine, domain, name, form, replaced) for name in in_force)
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
