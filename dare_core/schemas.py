"""Every table's columns, once.

Spark frames, Parquet files, Great Expectations suites and warehouse tables derive their columns from the Arrow schemas
below. Times are UTC with microseconds. ``group_name`` holds the retrieval-pool group (the word *group* is reserved in
SQL). Fields marked ``nullable=False`` are NOT NULL wherever they are stored.
"""

from typing import Final

import pyarrow as pa

from dare_core.config.kinds import KINDS as KINDS
from dare_core.config.kinds import Kind as Kind

TIME: Final = pa.timestamp("us", tz="UTC")
TOKENS: Final = pa.list_(pa.int32())
#: Characters of an entity's id at most: keys hold ids, and a database bounds the size of a key.
MAX_ID: Final = 512


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _optional(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=True)


#: One user or item, normalised. ``attributes`` is a JSON object; a user's carries ``history``, a list of
#: ``{"title", ..., "value", "time"}`` objects, oldest first. ``events`` counts the interactions of a user, or with an
#: item, of which the history shows the newest. Key: (domain, kind, entity_id).
ENTITY: Final = pa.schema(
    [
        _required("domain", pa.string()),
        _required("kind", pa.string()),
        _required("entity_id", pa.string()),
        _required("group_name", pa.string()),
        _required("attributes", pa.string()),
        _required("data_as_of", TIME),
        _required("events", pa.int64()),
    ]
)

#: What ``spark_jobs/pull.py`` writes: an entity before ``spark_jobs/group.py`` gave it a group.
PULLED: Final = ENTITY.remove(ENTITY.get_field_index("group_name"))

#: What ``spark_jobs/pull.py`` writes of entities that are in the source no more.
GONE: Final = pa.schema([_required("entity_id", pa.string())])

#: What ``spark_jobs/pull.py`` counts of a kind's pulled entities for one rule of ``dare_core.quality.source``: how many
#: there are, how many fail the rule, and ids of a few of these. Key: rule.
SOURCE_FIGURE: Final = pa.schema(
    [
        _required("rule", pa.string()),
        _required("entities", pa.int64()),
        _required("failing", pa.int64()),
        _required("examples", pa.list_(pa.string())),
    ]
)

#: What ``spark_jobs/group.py`` writes: an entity, and the rule that gave it its group
#: (``dare_core.grouping.GroupRule``).
GROUPED: Final = ENTITY.append(_required("group_rule", pa.string()))

#: How far a kind's source tables were pulled: whatever they held up to ``pulled_to`` is among the entities. Key:
#: (domain, kind).
WATERMARK: Final = pa.schema(
    [
        _required("domain", pa.string()),
        _required("kind", pa.string()),
        _required("pulled_to", TIME),
    ]
)

#: What an entity was last asked as, and what of it the prompt could see: nothing is rendered again while these stay the
#: same. ``settings`` identifies all that shapes a prompt and its answer beside the entity; ``content`` and ``profile``
#: the entity's attributes with and without its history. Key: (domain, kind, entity_id).
RENDERING: Final = pa.schema(
    [
        _required("domain", pa.string()),
        _required("kind", pa.string()),
        _required("entity_id", pa.string()),
        _required("request_id", pa.string()),
        _required("settings", pa.string()),
        _required("content", pa.string()),
        _required("profile", pa.string()),
        _required("events", pa.int64()),
    ]
)

#: One row of a shard: an entity that is due. ``attributes`` and ``data_as_of`` are null where they are those that the
#: warehouse has; where it knows something later than a run may see, they are what the entity was.
SHARD: Final = pa.schema(
    [
        _required("domain", pa.string()),
        _required("kind", pa.string()),
        _required("entity_id", pa.string()),
        _optional("attributes", pa.string()),
        _optional("data_as_of", TIME),
    ]
)

#: An entity as its prompt is to show it, and what RENDERING keeps of it. ``earlier``: the warehouse knows something
#: later.
DUE: Final = pa.schema(
    [*ENTITY, _required("content", pa.string()), _required("profile", pa.string()), _required("earlier", pa.bool_())]
)

#: A text to write. ``dropped_history`` counts the history entries that did not fit the context.
REQUEST: Final = pa.schema(
    [
        _required("request_id", pa.string()),
        _required("domain", pa.string()),
        _required("kind", pa.string()),
        _required("entity_id", pa.string()),
        _required("group_name", pa.string()),
        _required("prompt", pa.string()),
        _required("prompt_token_ids", TOKENS),
        _required("dropped_history", pa.int32()),
        _required("epoch", pa.int32()),
        _required("data_as_of", TIME),
    ]
)

#: A request of a run whose texts a server writes, in a shard's file: in its turns too, since the server applies a chat
#: template of its own. ``opening`` is how its answer would begin, which a server cannot be made to continue.
CHAT_REQUEST: Final = pa.schema(
    [*REQUEST, _required("system", pa.string()), _required("message", pa.string()), _required("opening", pa.string())]
)

#: Statistics of one text's decoding (DESIGN.md 13). ``steps`` counts the forward passes that this sequence took part in
#: and that emitted tokens for it; ``drafted`` the tree nodes sent for verification, ``accepted`` those that were
#: emitted, ``relaxed`` the accepted ones that were not the target's argmax. ``seconds`` runs from admission to the end.
#: Of a text that a server wrote, tokens are those that it counts, and all but ``seconds`` is unknown: 0.
STATISTICS: Final = pa.schema(
    [
        _required("prompt_tokens", pa.int32()),
        _required("new_tokens", pa.int32()),
        _required("steps", pa.int32()),
        _required("drafted", pa.int32()),
        _required("accepted", pa.int32()),
        _required("relaxed", pa.int32()),
        _required("seconds", pa.float64()),
    ]
)

#: What ``dare generate`` writes, in input order. ``status`` is ``ok`` or ``failed``; a failed row says why in
#: ``error``. ``draft_group`` is the pool group that the text drafted from: its own, ``*`` for the global pool, or
#: null without a pool.
GENERATED: Final = pa.schema(
    [
        _required("id", pa.string()),
        _required("group", pa.string()),
        _required("status", pa.string()),
        _optional("error", pa.string()),
        _required("text", pa.string()),
        _required("token_ids", TOKENS),
        _optional("finish_reason", pa.string()),
        _optional("draft_group", pa.string()),
        *STATISTICS,
    ]
)

#: A written text, from staged Parquet part to warehouse row. ``available_at`` is when the text was written: the
#: earliest moment at which a model could have been served with it. ``pool_version`` is null where nothing was
#: drafted from a pool.
KNOWLEDGE: Final = pa.schema(
    [
        *REQUEST,
        _required("text", pa.string()),
        _required("token_ids", TOKENS),
        _required("text_hash", pa.string()),
        _required("finish_reason", pa.string()),
        _required("framework", pa.string()),
        _required("model", pa.string()),
        _required("tokenizer_hash", pa.string()),
        _required("verification", pa.string()),
        _required("top_k", pa.int32()),
        _required("min_prob", pa.float64()),
        _required("max_new_tokens", pa.int32()),
        _optional("pool_version", pa.string()),
        _required("run_id", pa.string()),
        _required("available_at", TIME),
        *STATISTICS,
    ]
)

#: A text that must not become a feature. Key: (request_id, rule). ``value`` is what the rule measured.
QUARANTINE: Final = pa.schema(
    [
        _required("request_id", pa.string()),
        _required("rule", pa.string()),
        _required("domain", pa.string()),
        _required("kind", pa.string()),
        _required("entity_id", pa.string()),
        _required("run_id", pa.string()),
        _optional("value", pa.string()),
        _required("text", pa.string()),
        _required("quarantined_at", TIME),
    ]
)

#: A published retrieval pool. ``is_current`` marks the one version of (domain, kind) that new runs draft from.
POOL_VERSION: Final = pa.schema(
    [
        _required("domain", pa.string()),
        _required("kind", pa.string()),
        _required("version", pa.string()),
        _required("location", pa.string()),
        _required("model", pa.string()),
        _required("tokenizer_hash", pa.string()),
        _required("groups", pa.int32()),
        _required("texts", pa.int64()),
        _required("tokens", pa.int64()),
        _required("is_current", pa.bool_()),
        _required("created_at", TIME),
    ]
)

#: A pool version in use; it is kept until its ``holder``, a run, is done. Key: (domain, kind, holder).
POOL_PIN: Final = pa.schema(
    [
        _required("domain", pa.string()),
        _required("kind", pa.string()),
        _required("holder", pa.string()),
        _required("version", pa.string()),
        _required("pinned_at", TIME),
    ]
)

#: The group model in force. Key: (domain, kind).
GROUP_MODEL: Final = pa.schema(
    [
        _required("domain", pa.string()),
        _required("kind", pa.string()),
        _required("version", pa.string()),
        _required("location", pa.string()),
        _required("published_at", TIME),
    ]
)

#: One run of the pipeline. ``state`` is ``planned``, ``failed`` or ``loaded``. ``params``, ``plan`` (what was expected)
#: and ``measured`` (what it took; see ``dare_core.knowledge.costs``) are JSON objects; ``report`` is the path of the
#: run's report.
GENERATION_RUN: Final = pa.schema(
    [
        _required("run_id", pa.string()),
        _required("domain", pa.string()),
        _required("state", pa.string()),
        _required("params", pa.string()),
        _required("model", pa.string()),
        _required("started_at", TIME),
        _optional("finished_at", TIME),
        _required("planned", pa.int64()),
        _optional("generated", pa.int64()),
        _optional("failed", pa.int64()),
        _optional("quarantined", pa.int64()),
        _optional("loaded", pa.int64()),
        _optional("new_tokens", pa.int64()),
        _optional("steps", pa.int64()),
        _optional("seconds", pa.float64()),
        _optional("plan", pa.string()),
        _optional("measured", pa.string()),
        _optional("report", pa.string()),
    ]
)

#: Whose a run is. ``params`` is what it was asked, as in GENERATION_RUN; ``owner`` is null between two stages; after
#: ``expires_at`` the run counts as given up.
RUN_LEASE: Final = pa.schema(
    [
        _required("run_id", pa.string()),
        _required("domain", pa.string()),
        _required("params", pa.string()),
        _optional("owner", pa.string()),
        _required("since", TIME),
        _required("expires_at", TIME),
    ]
)

#: One evaluation. Differences are of AUC, with the ends of their 95% intervals over test users and seeds: ``auc_delta``
#: of relaxed (2, 0.1) minus strict texts, ``auc_gain`` of strict texts minus none, ``int8_auc`` of strict int8 texts
#: minus strict ones. Those of arms that were left out are null. ``result`` is a JSON object with all figures. Key:
#: (domain, evaluated_at).
EVALUATION: Final = pa.schema(
    [
        _required("domain", pa.string()),
        _required("evaluated_at", TIME),
        _required("model", pa.string()),
        _required("entities", pa.int32()),
        _required("seeds", pa.int32()),
        _optional("auc_delta_low", pa.float64()),
        _optional("auc_delta_high", pa.float64()),
        _optional("auc_gain", pa.float64()),
        _optional("auc_gain_low", pa.float64()),
        _optional("auc_gain_high", pa.float64()),
        _required("result", pa.string()),
        _optional("int8_auc_low", pa.float64()),
        _optional("int8_auc_high", pa.float64()),
    ]
)

#: Where a domain's interactions are in the warehouse's database, and which are likes. ``per_second`` is what the time
#: column counts from 1970 on, in a second; null where it holds times. ``none_values`` are values that mean none.
#: Key: domain.
INTERACTION_SOURCE: Final = pa.schema(
    [
        _required("domain", pa.string()),
        _required("db_schema", pa.string()),
        _required("table_name", pa.string()),
        _required("user_column", pa.string()),
        _required("item_column", pa.string()),
        _required("value_column", pa.string()),
        _required("time_column", pa.string()),
        _optional("per_second", pa.int64()),
        _required("positive_from", pa.float64()),
        _required("none_values", pa.list_(pa.float64())),
    ]
)

#: An entity that was forgotten and is never pulled again. ``entity`` is its
#: :func:`dare_core.warehouse.entities.tombstone`. Key: (domain, kind, entity).
FORGOTTEN: Final = pa.schema(
    [
        _required("domain", pa.string()),
        _required("kind", pa.string()),
        _required("entity", pa.string()),
        _required("forgotten_at", TIME),
    ]
)

#: Columns of a retrieval pool's input (``dare pool build --knowledge``); further columns are ignored.
POOL_TEXT: Final = pa.schema([_required("group", pa.string()), _required("token_ids", TOKENS)])

#: What a pool is built of where whom a text is about and when it was written are known: enough to forget and to evict.
POOL_KNOWLEDGE: Final = POOL_TEXT.append(_required("entity_id", pa.string())).append(_required("available_at", TIME))

#: The width of the bundled encoder's vectors; the warehouse takes those of any encoder, each in its own width.
EMBEDDING_WIDTH: Final = 384


def knowledge_embedding(width: int) -> pa.Schema:
    """Texts' vectors of an encoder. Key: (request_id, encoder). ``form`` says what a vector is made of."""
    return pa.schema(
        [
            _required("request_id", pa.string()),
            _required("encoder", pa.string()),
            _required("form", pa.string()),
            _required("embedding", pa.list_(pa.float32(), width)),
        ]
    )


KNOWLEDGE_EMBEDDING: Final = knowledge_embedding(EMBEDDING_WIDTH)
