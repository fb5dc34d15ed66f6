"""How long a run takes in which nothing changed: ``dare pipeline run`` on MovieLens, every text there already.

The texts are placeholders: what they say makes no difference to a run that writes none.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any

import pyarrow as pa

from dare_core import models
from dare_core.config.settings import Settings, load_settings
from dare_core.embedding.encoder import Encoder
from dare_core.errors import DareError
from dare_core.knowledge import shards
from dare_core.models import formats
from dare_core.schemas import KINDS, KNOWLEDGE, KNOWLEDGE_EMBEDDING
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.stages import group, order, plan, pull
from dare_core.stages.rendering import render
from dare_core.stages.request import RunRequest
from dare_core.warehouse.connection import connect
from dare_core.warehouse.knowledge import load_knowledge
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import serving

_DOMAIN = "movies"


def bench_no_change(settings: Settings) -> dict[str, Any]:
    """Prepare the domain in ``settings.data_dir``, then run the pipeline as a process of its own and watch it.

    Args:
        settings: with a data folder, or a warehouse URL, that is used for nothing else.

    Returns:
        ``no_change_entities`` seen, ``no_change_s`` from the process's start to its end with Java's and the embedded
        server's, ``no_change_model_calls`` (models, encoders, tokenizers loaded) and ``no_change_planned``.

    Raises:
        DareError: the run failed; ends with what it said.
    """
    _prepare(settings)
    kept = settings.model_dump(mode="json", exclude_defaults=True)
    if settings.warehouse_url is not None:
        kept["warehouse_url"] = settings.warehouse_url.get_secret_value()
    program = f"from {__name__} import watched_run; watched_run()"
    environment = os.environ | {"DARE_BENCH_SETTINGS": json.dumps(kept)}
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    seconds = time.monotonic() - started
    if ended.returncode:
        raise DareError(f"the run without a change ended with status {ended.returncode}:\n{ended.stderr}")
    watched = json.loads(ended.stdout.splitlines()[-1])
    return {f"no_change_{name}": value for name, value in watched.items()} | {"no_change_s": round(seconds, 1)}


def _prepare(settings: Settings) -> None:
    """Everything that a first run does, but for the writing."""
    with serving(settings) as url:
        engine = connect(url)
        upgrade(engine)
        import_tables(engine, read_movielens())
        request = RunRequest(run_id="filled", domain=_DOMAIN)
        pull.run(settings, request)
        group.run(settings, request)
        plan.run(settings, request)
        run_dir = settings.run_dir(request.run_id)
        planned = shards.read_plan(run_dir)
        render(settings, request, planned, planned.shards)
        wrote = {
            **vars(planned.decoding), "text": "", "token_ids": [], "text_hash": "", "finish_reason": "length",
            "framework": planned.framework, "pool_version": None, "run_id": request.run_id, "prompt_tokens": 0,
            "new_tokens": 0, "steps": 0, "drafted": 0, "accepted": 0, "relaxed": 0, "seconds": 0.0,
            "available_at": datetime.now(UTC),
        }  # fmt: skip
        for shard in planned.shards:
            rows = [{**row, **wrote} for row in shards.read_requests(run_dir, shard.name).to_pylist()]
            load_knowledge(engine, pa.Table.from_pylist(rows, KNOWLEDGE), KNOWLEDGE_EMBEDDING.empty_table())
        engine.dispose()


def watched_run() -> None:
    """The program of the watched process: prints, as JSON, what a run saw, planned and loaded."""
    settings = load_settings(**json.loads(os.environ["DARE_BENCH_SETTINGS"]))
    loads: list[str] = []

    def watch(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def watched(*arguments: Any) -> Any:
            loads.append(function.__qualname__)
            return function(*arguments)

        return watched

    models.load_model = watch(models.load_model)
    models.load_tokenizer = watch(models.load_tokenizer)
    formats.load_tokenizer = models.load_tokenizer  # type: ignore[attr-defined]
    Encoder.load = watch(Encoder.load)  # type: ignore[method-assign]
    request = RunRequest(run_id="unchanged", domain=_DOMAIN, kinds=KINDS)
    seen: dict[str, int] = {}

    def note(stage: str, result: Any) -> None:
        if stage == "plan":
            seen.update({kind: funnel["seen"] for kind, funnel in result["funnel"].items()})

    summary = order.run(settings, request, on_stage=note)
    print(json.dumps({"entities": sum(seen.values()), "planned": summary["planned"], "model_calls": len(loads)}))
