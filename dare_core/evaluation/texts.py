"""The arms' texts: written by the platform's own engine, kept by request id, so that none is written twice.

<storage>/evaluation/<domain>/texts/<request ids' hash>.parquet    some texts, each of schema _TEXT
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dare_core import models
from dare_core.config.domains import Domain
from dare_core.config.settings import Settings, Verification
from dare_core.engines.precision import INT8, model_precision, settings_at
from dare_core.errors import ModelError, SettingError
from dare_core.evaluation.service import Entity
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.requests import Decoding, Prompt, fit_prompt, request_id
from dare_core.knowledge.writer import Throughput, Writer
from dare_core.schemas import KINDS, STATISTICS, TOKENS
from dare_core.storage.atomic import storing, write_atomically
from dare_core.storage.locations import files_in, read_bytes
from dare_core.storage.run_files import write_table

#: Tokens of a text at most: fewer than the installation's texts have, since an evaluation writes each several times.
MAX_NEW_TOKENS: Final = 64
_DAY: Final = 24 * 3600.0

_TEXT: Final = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("request_id", "kind", "entity_id", "group_name")),
        *(pa.field(name, pa.string(), nullable=False) for name in ("prompt", "text")),
        pa.field("token_ids", TOKENS, nullable=False),
        *STATISTICS,
    ]
)

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Arm:
    """One way to write the texts; ``label`` is for the reader.

    Attributes:
        precision: None is the model's own, as ``dtype`` says.
    """

    name: str
    label: str
    verification: Verification
    top_k: int = 2
    min_prob: float = 0.1
    precision: str | None = None


STRICT: Final = Arm("strict", "strict", "strict")
#: What the gate decides upon, so it has the defaults of the paper.
RELAXED: Final = Arm("relaxed", "relaxed (2, 0.1)", "relaxed")
STRICT_INT8: Final = Arm("int8", "strict, int8", "strict", precision=INT8)
WRITTEN_ARMS: Final = (STRICT, RELAXED, STRICT_INT8)


@dataclass(frozen=True)
class Texts:
    """What there is of every arm: rows of schema ``_TEXT`` in the order of the entities, by the arm's name.

    Attributes:
        generated: what had to be written now; what was there is not counted.
    """

    by_arm: Mapping[str, list[dict[str, Any]]]
    generated: Throughput


def write_texts(
    settings: Settings,
    domain: Domain,
    entities: Sequence[Entity],
    arms: Sequence[Arm],
    on_progress: OnProgress = lambda arm, done, wanted: None,
) -> Texts:
    """Every arm's text of every entity; those that are kept are read, the others written.

    Raises:
        ModelError: a text could not be written, or not in an arm's precision.
        InputError: a prompt does not fit the model's context.
        SettingError: a server is to write them.
    """
    if settings.engine == "endpoint":
        raise SettingError(
            "an evaluation compares strict, relaxed and int8 texts, which DARE_ENGINE=endpoint cannot write; evaluate "
            "with DARE_ENGINE=transformers or vllm"
        )
    desk = _Desk(settings, domain, entities)
    generated = Throughput()
    by_arm = {arm.name: desk.texts_of(arm, generated, on_progress) for arm in arms}
    return Texts(by_arm, generated)


def kept_texts(settings: Settings, domain: Domain, entities: Sequence[Entity]) -> Mapping[str, list[dict[str, Any]]]:
    """The texts of the arms that are kept whole, by the arm's name; nothing is written."""
    desk = _Desk(settings, domain, entities)
    found = {arm.name: desk.kept(arm) for arm in WRITTEN_ARMS}
    return {name: texts for name, texts in found.items() if len(texts) == len(entities)}


class _Desk:
    """Prompts of the entities, and the texts that are kept."""

    def __init__(self, settings: Settings, domain: Domain, entities: Sequence[Entity]) -> None:
        self._settings = settings.model_copy(update={"max_new_tokens": MAX_NEW_TOKENS})
        self._domain = domain
        self._entities = entities
        self._tokenizer = models.load_tokenizer(settings)
        self._format = models.prompt_format(settings)
        encoder = ChatEncoder(self._tokenizer)
        room = self._format.context_length - MAX_NEW_TOKENS
        self._prompts = [fit_prompt(domain, one.kind, one.attributes, encoder, room) for one in entities]
        self._folder = settings.evaluation_dir(domain.name)
        self._kept: dict[str, dict[str, Any]] = {}
        self._read_kept()

    def _read_kept(self) -> None:
        """Read the texts. A file with one that is wanted is written again, once a day: `maintain` removes old ones."""
        young = time.time() - min(1, self._settings.keep_evaluation_days / 2) * _DAY
        wanted = {name for arm in WRITTEN_ARMS for name in self._request_ids(arm)}
        for part in files_in(self._folder):
            if part.path.suffix != ".parquet":
                continue
            content = read_bytes(part.path)
            rows = pq.read_table(pa.BufferReader(content), schema=_TEXT).to_pylist()
            found = {row["request_id"]: row for row in rows}
            if wanted & found.keys() and part.written < young:
                with storing(part.path):
                    write_atomically(part.path, content, durable=False)
            self._kept |= found

    def texts_of(self, arm: Arm, generated: Throughput, on_progress: OnProgress) -> list[dict[str, Any]]:
        """An arm's texts, in the order of the entities."""
        if len(self.kept(arm)) < len(self._entities):
            self._write(arm, generated, on_progress)
        return self.kept(arm)

    def kept(self, arm: Arm) -> list[dict[str, Any]]:
        """Of an arm's texts, those that are there."""
        return [self._kept[name] for name in self._request_ids(arm) if name in self._kept]

    def _request_ids(self, arm: Arm) -> list[str]:
        decoding = Decoding(
            self._settings.model,
            self._format.tokenizer_hash,
            arm.verification,
            arm.top_k,
            arm.min_prob,
            MAX_NEW_TOKENS,
            self._precision(arm),
        )
        return [
            request_id(self._domain.name, one.kind, one.entity_id, prompt.token_ids, decoding, epoch=0)
            for one, prompt in zip(self._entities, self._prompts, strict=True)
        ]

    def _precision(self, arm: Arm) -> str:
        return arm.precision or model_precision(self._settings)

    def _write(self, arm: Arm, generated: Throughput, on_progress: OnProgress) -> None:
        decided = {"verification": arm.verification, "top_k": arm.top_k, "min_prob": arm.min_prob}
        settings = settings_at(self._settings, self._precision(arm)).model_copy(update=decided)
        writer = Writer(settings, self._tokenizer)
        wanted = list(zip(self._request_ids(arm), self._entities, self._prompts, strict=True))
        missing = {name: (one, prompt) for name, one, prompt in wanted if name not in self._kept}
        for kind in KINDS:
            of_kind = {name: pair for name, pair in missing.items() if pair[0].kind == kind}
            if of_kind:
                self._write_kind(writer, of_kind, generated, lambda done: on_progress(arm.label, done, len(missing)))
        generated.seconds += writer.seconds
        generated.load_seconds += writer.load_seconds

    def _write_kind(
        self,
        writer: Writer,
        missing: Mapping[str, tuple[Entity, Prompt]],
        generated: Throughput,
        on_progress: Callable[[int], None],
    ) -> None:
        from dare_core.decoding import Request

        requests = [
            Request(name, one.group, prompt.token_ids, MAX_NEW_TOKENS) for name, (one, prompt) in missing.items()
        ]
        longest = max(len(request.prompt_token_ids) for request in requests) + MAX_NEW_TOKENS
        unsaved: list[dict[str, Any]] = []
        due = time.monotonic() + self._settings.checkpoint_seconds
        for result in writer.write(requests, None, longest, len(requests)):
            entity, prompt = missing[result.id]
            if result.error is not None:
                raise ModelError(f"the text of {entity.kind} {entity.entity_id} could not be written: {result.error}")
            generated.add(result, entity.group)
            unsaved.append(
                {
                    "request_id": result.id,
                    "kind": entity.kind,
                    "entity_id": entity.entity_id,
                    "group_name": entity.group,
                    "prompt": prompt.text,
                    "text": writer.text(result),
                    "token_ids": result.token_ids,
                    **vars(result.statistics),
                }
            )
            if time.monotonic() >= due:
                self._save(unsaved)
                unsaved = []
                due = time.monotonic() + self._settings.checkpoint_seconds
                on_progress(sum(name in self._kept for name in missing))
        self._save(unsaved)

    def _save(self, rows: Iterable[dict[str, Any]]) -> None:
        found = {row["request_id"]: row for row in rows}
        if found:
            name = hashlib.sha256("".join(found).encode()).hexdigest()[:16]
            write_table(self._folder / f"{name}.parquet", pa.Table.from_pylist(list(found.values()), _TEXT))
            self._kept |= found
