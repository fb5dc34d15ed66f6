"""The generation worker: works off shards in staged parts with one loaded model, and goes on where an earlier try
stopped."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow.compute as pc

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.engines.endpoint import require_consent
from dare_core.engines.precision import settings_at
from dare_core.errors import EndpointError, ModelError
from dare_core.knowledge import shards
from dare_core.knowledge.answers import JsonForm, answer_form, structural_token_ids
from dare_core.knowledge.probe import Probe, write_probe
from dare_core.knowledge.requests import written_as_planned
from dare_core.knowledge.shards import Plan, Shard
from dare_core.knowledge.writer import Throughput, Writer, open_pool
from dare_core.schemas import Kind
from dare_core.storage import run_files
from dare_core.storage.locations import Location

if TYPE_CHECKING:
    from dare_core.decoding import Request, Result


class TextWriter(Protocol):
    """What a worker writes with: :class:`PlannedWriter`, or a stand-in that measures everything around it."""

    @property
    def seconds(self) -> float:
        """See :class:`Writer`."""
        ...

    @property
    def load_seconds(self) -> float:
        """See :class:`Writer`."""
        ...

    def write(
        self, rows: Iterable[dict[str, Any]], kind: Kind, pool_version: str | None, longest: int, sequences: int
    ) -> "Iterator[Result]":
        """Write the texts of REQUEST rows of one kind, drafting from a pinned pool version; see :meth:`Writer.write`.

        Args:
            rows: read as they can be taken in.
            kind: theirs.
            pool_version: None drafts from no pool.
            longest: tokens of a prompt at most.
            sequences: rows there are.
        """
        ...

    def text(self, result: "Result") -> str:
        """A result's text."""
        ...

    def probe(self, rows: Sequence[dict[str, Any]], tokens: int, seconds: float) -> Probe | None:
        """Time plain decoding of some REQUEST rows; see :func:`dare_core.knowledge.probe.probe`."""
        ...


class PlannedWriter:
    """The model, its precision and the pools that a run was planned for.

    Raises:
        ModelError: the model now in force is not the one that the run was planned for, or cannot be had here in the
            precision that it was planned for.
        OutOfMemoryError: the model does not fit into memory.
    """

    def __init__(self, settings: Settings, plan: Plan) -> None:
        decoding = plan.decoding
        try:
            at_precision = settings_at(settings, decoding.precision)
        except ModelError as error:
            raise ModelError(
                f"run {plan.run_id}, planned in {decoding.precision}, cannot be written here: {error}; "
                "plan again with the settings of the machines that write"
            ) from None
        self._settings = written_as_planned(at_precision, plan.run_id, decoding).model_copy(
            update={
                "verification": decoding.verification,
                "top_k": decoding.top_k,
                "min_prob": decoding.min_prob,
            }
        )
        self._plan = plan
        self._tokenizer = models.load_tokenizer(self._settings)
        require_tokenizer(plan, models.tokenizer_hash(self._tokenizer))
        self._writer = Writer(self._settings, self._tokenizer)

    @property
    def seconds(self) -> float:
        """See :class:`Writer`."""
        return self._writer.seconds

    @property
    def load_seconds(self) -> float:
        """See :class:`Writer`."""
        return self._writer.load_seconds

    def write(
        self, rows: Iterable[dict[str, Any]], kind: Kind, pool_version: str | None, longest: int, sequences: int
    ) -> "Iterator[Result]":
        """See :meth:`TextWriter.write`.

        Raises:
            PoolError: the pinned pool version cannot be opened.
            SettingError: see :func:`dare_core.engines.endpoint.require_consent`.
        """
        require_consent(self._settings, [kind])
        root = self._settings.pool_dir(self._plan.domain, kind)
        exactly = self._settings.deterministic
        pool = open_pool(self._settings, root, self._tokenizer, pool_version, exactly) if pool_version else None
        new = self._plan.decoding.max_new_tokens
        form = answer_form(self._plan.framework, kind)
        structural = structural_token_ids(self._tokenizer, form) if form else frozenset[int]()
        results = self._writer.write(self._requests(rows), pool, longest + new, sequences, structural)
        return map(partial(_unbegun, form), results) if form and self._plan.decoding.is_remote else results

    def text(self, result: "Result") -> str:
        """See :meth:`Writer.text`."""
        return self._writer.text(result)

    def probe(self, rows: Sequence[dict[str, Any]], tokens: int, seconds: float) -> Probe | None:
        """See :meth:`TextWriter.probe`."""
        return self._writer.probe(list(self._requests(rows)), tokens, seconds)

    def _requests(self, rows: Iterable[dict[str, Any]]) -> "Iterator[Request]":
        from dare_core.decoding import Request

        new = self._plan.decoding.max_new_tokens
        if not self._plan.decoding.is_remote:
            return (Request(row["request_id"], row["group_name"], row["prompt_token_ids"], new) for row in rows)
        from dare_core.engines.endpoint.engine import ChatRequest, turns

        return (
            ChatRequest(
                row["request_id"], row["group_name"], row["prompt_token_ids"], new, turns(row["message"], row["system"])
            )
            for row in rows
        )


def _unbegun(form: JsonForm, result: "Result") -> "Result":
    """A server's answer begins with what ours continue."""
    from dare_core.engines.endpoint.engine import ChatResult

    return replace(result, text=form.continuation(result.text)) if isinstance(result, ChatResult) else result


def require_tokenizer(plan: Plan, found: str) -> None:
    """Refuse to go on with another tokenizer, by its hash, than a run was planned for.

    Raises:
        ModelError: it is another.
    """
    if found != plan.decoding.tokenizer_hash:
        raise ModelError(
            f"model {plan.decoding.model!r} has tokenizer {found} here, but run {plan.run_id} was planned with "
            f"{plan.decoding.tokenizer_hash}; plan the run again"
        )


def work_off(
    settings: Settings,
    plan: Plan,
    assigned: Sequence[Shard],
    open_writer: Callable[[Settings, Plan], TextWriter] = PlannedWriter,
) -> list[dict[str, Any]]:
    """Write all texts of some shards; each shard's manifest is written when the shard is done.

    Parts of an earlier try are kept; only requests that none of them answers are decoded. The next shard's texts are
    begun while the last ones of a shard are being finished, so that the engine is never short of work.

    Args:
        settings: in force.
        plan: the run's.
        assigned: shards of the plan, rendered.
        open_writer: called once, and only where a text is missing.

    Returns:
        The manifests of the assigned shards, those of earlier tries included.

    Raises:
        ModelError, PoolError, OutOfMemoryError: see :class:`PlannedWriter`.
        EndpointError: the server does not answer; what it had written is staged.
    """
    run_dir = settings.run_dir(plan.run_id)
    folders = [shards.staged_folder(run_dir, shard.name) for shard in assigned]
    begun = [
        _Desk.of(run_dir, shard)
        for shard, folder in zip(assigned, folders, strict=True)
        if shards.read_manifest(folder) is None
    ]
    for desk in begun:
        if not desk.missing:
            desk.close()
    if unfinished := [desk for desk in begun if desk.missing]:
        work = _Work(settings, plan, open_writer(settings, plan))
        for (kind, version), together in groupby(unfinished, lambda desk: (desk.shard.kind, desk.shard.pool_version)):
            desks = list(together)
            work.write(desks, kind, version)
            if desks[0].shard == next(first for first in plan.shards if first.kind == kind):
                work.probe(desks[0])
    return [shards.read_manifest(folder) or {} for folder in folders]


Batch = list[tuple[dict[str, Any], "Result"]]


@dataclass
class _Desk:
    """A shard at work.

    Attributes:
        requests: that there are.
        missing: ids of requests that no staged part answers yet.
        longest: positions of a prompt at most.
        resumed: requests that an earlier try answered.
        parts: number of the next part.
        attempt: names what this try writes.
        batch: results that are not staged yet.
    """

    run_dir: Location
    shard: Shard
    requests: int
    missing: set[str]
    longest: int
    resumed: int
    parts: int
    attempt: str
    throughput: Throughput = field(default_factory=Throughput)
    batch: Batch = field(default_factory=list)

    @classmethod
    def of(cls, run_dir: Location, shard: Shard) -> "_Desk":
        asked, longest = set[str](), 0
        for piece in shards.requests(run_dir, shard.name):
            asked.update(piece["request_id"].to_pylist())
            longest = max(longest, pc.max(pc.list_value_length(piece["prompt_token_ids"])).as_py() or 0)
        answered = shards.answered(run_dir, shard.name)
        return cls(
            run_dir,
            shard,
            requests=len(asked),
            missing=asked - answered,
            longest=longest,
            resumed=len(answered),
            parts=len(list(shards.staged_parts(run_dir, [shard.name]))),
            attempt=run_files.new_attempt(),
        )

    @property
    def folder(self) -> Location:
        """Where its parts go."""
        return shards.staged_folder(self.run_dir, self.shard.name)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The requests that are missing, read as they are taken."""
        for piece in shards.requests(self.run_dir, self.shard.name):
            for row in piece.to_pylist():
                if row["request_id"] in self.missing:
                    yield row

    def take(self, row: dict[str, Any], result: "Result") -> None:
        self.batch.append((row, result))
        self.missing.discard(result.id)
        self.throughput.add(result, row["group_name"])

    def stage(self, plan: Plan, writer: TextWriter, seconds: float) -> None:
        """Write the batch as a part that took the engine ``seconds``."""
        now = datetime.now(UTC)
        texts = [(row, result) for row, result in self.batch if result.error is None]
        rows = [_knowledge(row, result, writer.text(result), plan, self.shard, now) for row, result in texts]
        failures = [_failure(row, result, plan, now) for row, result in self.batch if result.error is not None]
        shards.write_part(self.folder, self.parts, self.attempt, rows, failures, seconds)
        self.throughput.seconds += seconds
        self.parts, self.batch = self.parts + 1, []

    def close(self) -> None:
        """Write the manifest of a shard that nothing is missing of."""
        summary = self.throughput.summary() if self.throughput.texts or self.throughput.failed else {}
        manifest = {"shard": self.shard.name, "requests": self.requests, "resumed": self.resumed, **summary}
        shards.write_manifest(self.folder, self.attempt, manifest)


class _Work:
    """Shards that are written with one writer, in parts every ``checkpoint_seconds``."""

    def __init__(self, settings: Settings, plan: Plan, writer: TextWriter) -> None:
        self._settings = settings
        self._plan = plan
        self._writer = writer
        self._staged_seconds = 0.0
        self._told_load_seconds = 0.0

    def write(self, desks: list[_Desk], kind: Kind, pool_version: str | None) -> None:
        open_rows: dict[str, tuple[_Desk, dict[str, Any]]] = {}

        def rows() -> Iterator[dict[str, Any]]:
            for desk in desks:
                for row in desk.rows():
                    open_rows[row["request_id"]] = desk, row
                    yield row

        longest = max(desk.longest for desk in desks)
        sequences = sum(len(desk.missing) for desk in desks)
        unstaged: dict[str, _Desk] = {}
        due = time.monotonic() + self._settings.checkpoint_seconds
        try:
            for result in self._writer.write(rows(), kind, pool_version, longest, sequences):
                desk, row = open_rows.pop(result.id)
                desk.take(row, result)
                unstaged[desk.shard.name] = desk
                if not desk.missing or time.monotonic() >= due:
                    self._checkpoint(list(unstaged.values()))
                    unstaged.clear()
                    due = time.monotonic() + self._settings.checkpoint_seconds
        except EndpointError:  # what is written is paid for
            if unstaged:
                self._checkpoint(list(unstaged.values()))
            raise

    def probe(self, desk: _Desk) -> None:
        """Time plain decoding beside what a finished shard took, where that time suffices."""
        pieces = shards.requests(desk.run_dir, desk.shard.name)
        rows = list(islice(chain.from_iterable(piece.to_pylist() for piece in pieces), desk.throughput.texts))
        measured = self._writer.probe(rows, desk.throughput.tokens, desk.throughput.seconds)
        if measured is not None:
            write_probe(desk.folder, measured)

    def _checkpoint(self, desks: Sequence[_Desk]) -> None:
        """Stage what is finished; the engine's seconds since the last time are shared out by tokens."""
        seconds = self._writer.seconds - self._staged_seconds
        weights = [sum(result.statistics.new_tokens for _, result in desk.batch) + 1 for desk in desks]
        desks[0].throughput.load_seconds += self._writer.load_seconds - self._told_load_seconds
        for desk, weight in zip(desks, weights, strict=True):
            desk.stage(self._plan, self._writer, seconds * weight / sum(weights))
            if not desk.missing:
                desk.close()
        self._staged_seconds, self._told_load_seconds = self._writer.seconds, self._writer.load_seconds


def _knowledge(
    row: dict[str, Any], result: "Result", text: str, plan: Plan, shard: Shard, now: datetime
) -> dict[str, Any]:
    return {
        **row,
        **vars(plan.decoding),
        **vars(result.statistics),
        "text": text,
        "token_ids": result.token_ids,
        "text_hash": hashlib.sha256(text.encode()).hexdigest(),
        "finish_reason": result.finish_reason,
        "framework": plan.framework,
        "pool_version": shard.pool_version,
        "run_id": plan.run_id,
        "available_at": now,
    }


def _failure(row: dict[str, Any], result: "Result", plan: Plan, now: datetime) -> dict[str, Any]:
    return {
        **{name: row[name] for name in ("request_id", "domain", "kind", "entity_id")},
        "rule": "generation",
        "run_id": plan.run_id,
        "value": result.error,
        "text": "",
        "quarantined_at": now,
    }
