"""The generation worker: works off one shard in staged parts, and goes on where an earlier try stopped."""

import hashlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dare_core import models
from dare_core.errors import ModelError
from dare_core.knowledge import shards
from dare_core.knowledge.probe import write_probe
from dare_core.knowledge.shards import Plan, Shard
from dare_core.knowledge.writer import Writer, open_pool
from dare_core.schemas import QUARANTINE
from dare_core.settings import Settings

if TYPE_CHECKING:
    from dare_core.decoding import Request, Result


def work_off(settings: Settings, plan: Plan, shard: Shard) -> dict[str, Any]:
    """Write all texts of a shard; the manifest's content is returned, and written last.

    Parts of an earlier try are kept; only requests that none of them answers are decoded.

    Raises:
        ModelError: the model now in force is not the one that the run was planned for.
        PoolError: the pinned pool version cannot be opened.
    """
    run_dir = settings.run_dir(plan.run_id)
    staged = run_dir / "staged" / shard.name
    if (manifest := shards.read_manifest(staged)) is not None:
        return manifest
    requests = shards.read_shard(run_dir, shard.name)
    written, failed = shards.read_staged(run_dir, [shard.name])
    answered = {*written["request_id"].to_pylist(), *failed["request_id"].to_pylist()}
    missing = [row for row in requests.to_pylist() if row["request_id"] not in answered]
    summary: dict[str, Any] = {}
    if missing:
        writer = _writer(settings, plan, shard)
        first, staged_seconds = len(list(staged.glob("part-*"))), 0.0
        for number, batch in enumerate(_checkpoints(settings, plan, writer, missing), start=first):
            _stage(staged, number, batch, plan, shard, writer, writer.throughput.seconds - staged_seconds)
            staged_seconds = writer.throughput.seconds
        summary = writer.throughput.summary()
        if shard == next(first for first in plan.shards if first.kind == shard.kind):
            done = writer.throughput
            if (measured := writer.probe(_requests(plan, missing), done.tokens, done.seconds)) is not None:
                write_probe(staged, measured)
    manifest = {"shard": shard.name, "requests": shard.requests, "resumed": len(answered), **summary}
    shards.write_json(staged / "manifest.json", json.dumps(manifest))
    return manifest


def _writer(settings: Settings, plan: Plan, shard: Shard) -> Writer:
    decoding = plan.decoding
    settings = settings.model_copy(
        update={
            "model": decoding.model,
            "verification": decoding.verification,
            "top_k": decoding.top_k,
            "min_prob": decoding.min_prob,
        }
    )
    tokenizer = models.load_tokenizer(settings)
    if (found := models.tokenizer_hash(tokenizer)) != decoding.tokenizer_hash:
        raise ModelError(
            f"model {decoding.model!r} has tokenizer {found} here, but run {plan.run_id} was planned with "
            f"{decoding.tokenizer_hash}; plan the run again"
        )
    root = settings.pool_dir(plan.domain, shard.kind)
    pool = open_pool(root, tokenizer, shard.pool_version) if shard.pool_version else None
    return Writer(settings, tokenizer, pool)


Batch = list[tuple[dict[str, Any], "Result"]]


def _checkpoints(settings: Settings, plan: Plan, writer: Writer, rows: list[dict[str, Any]]) -> Iterator[Batch]:
    """Finished requests in batches, one every ``checkpoint_seconds``."""
    by_id = {row["request_id"]: row for row in rows}
    batch: Batch = []
    due = time.monotonic() + settings.checkpoint_seconds
    for result in writer.write(_requests(plan, rows)):
        batch.append((by_id[result.id], result))
        if time.monotonic() >= due:
            yield batch
            batch, due = [], time.monotonic() + settings.checkpoint_seconds
    if batch:
        yield batch


def _requests(plan: Plan, rows: list[dict[str, Any]]) -> "list[Request]":
    from dare_core.decoding import Request

    length = plan.decoding.max_new_tokens
    return [Request(row["request_id"], row["group_name"], row["prompt_token_ids"], length) for row in rows]


def _stage(staged: Path, number: int, batch: Batch, plan: Plan, shard: Shard, writer: Writer, seconds: float) -> None:
    now = datetime.now(UTC)
    # Parts number the checkpoints, so a failure file without its part never exists and none is overwritten.
    rows = [_knowledge(row, result, plan, shard, writer, now) for row, result in batch if result.error is None]
    shards.write_part(staged, number, rows, seconds)
    failures = [(row, result) for row, result in batch if result.error is not None]
    if failures:
        rows = [
            {
                **{name: row[name] for name in ("request_id", "domain", "kind", "entity_id")},
                "rule": "generation",
                "run_id": plan.run_id,
                "value": result.error,
                "text": "",
                "quarantined_at": now,
            }
            for row, result in failures
        ]
        shards.write_table(staged / f"failed-{number:04d}.parquet", pa.Table.from_pylist(rows, QUARANTINE))


def _knowledge(
    row: dict[str, Any], result: "Result", plan: Plan, shard: Shard, writer: Writer, now: datetime
) -> dict[str, Any]:
    text = writer.text(result)
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
