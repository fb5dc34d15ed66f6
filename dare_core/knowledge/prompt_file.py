"""``dare generate``: a JSON-lines file of prompts in, a Parquet file of texts out."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.writer import Throughput, Writer, open_pool
from dare_core.schemas import GENERATED
from dare_core.storage.atomic import require_writable
from dare_core.storage.locations import Location
from dare_core.storage.run_files import write_table

if TYPE_CHECKING:
    from dare_core.decoding import Request, Result


#: Characters of a wrong value that an error shows.
_SHOWN: Final = 200


@dataclass(frozen=True)
class PromptLine:
    """One line of a prompts file."""

    id: str
    group: str
    prompt_token_ids: list[int]
    prompt: str | None = None


def read_prompts(path: Path, encode: Callable[[str], list[int]]) -> list[PromptLine]:
    """Read ``{"id", "group", "prompt"}`` or ``{"id", "group", "prompt_token_ids"}`` lines.

    Args:
        path: the file; blank lines are passed over.
        encode: a message to token ids, chat template applied.

    Raises:
        InputError: the file is missing or empty, or a line is not such an object; names file and line.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    prompts: dict[str, PromptLine] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = _parse(line, encode)
        except (ValueError, InputError) as error:
            raise InputError(f"{path}:{number}: {error}") from None
        if prompt.id in prompts:
            raise InputError(f"{path}:{number}: id {_short(prompt.id)} stands on an earlier line too")
        prompts[prompt.id] = prompt
    if not prompts:
        raise InputError(f"{path}: holds no prompts")
    return list(prompts.values())


def _parse(line: str, encode: Callable[[str], list[int]]) -> PromptLine:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InputError('not an object like {"id": …, "group": …, "prompt": …}')
    for name in ("id", "group"):
        if not isinstance(row.get(name), str):
            raise InputError(f"{name} is {_short(row.get(name))}; a string is needed")
        row[name].encode()  # half of a surrogate pair is no text
    if ("prompt" in row) == ("prompt_token_ids" in row):
        raise InputError("one of prompt and prompt_token_ids is needed, and not both")
    if "prompt" in row:
        if not isinstance(row["prompt"], str):
            raise InputError(f"prompt is {_short(row['prompt'])}; a string is needed")
        row["prompt"].encode()
        return PromptLine(row["id"], row["group"], encode(row["prompt"]), row["prompt"])
    ids = row["prompt_token_ids"]
    if not isinstance(ids, list) or not all(type(token) is int and abs(token) < 2**31 for token in ids):
        raise InputError("prompt_token_ids is not a list of token ids")
    return PromptLine(row["id"], row["group"], ids)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def generate(
    settings: Settings,
    prompts: Path,
    out: Path,
    pool: Location | str | None = None,
    pool_version: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the texts that a prompts file asks for to ``out`` (``schemas.GENERATED``, in input order).

    Args:
        settings: model, verification and sizes.
        prompts: see :func:`read_prompts`.
        out: replaced when all is written; untouched until then.
        pool: root of a pool store to draft from.
        pool_version: a version of it; default: its current one.
        on_progress: told texts done and texts in all.

    Returns:
        The figures of :meth:`dare_core.knowledge.writer.Throughput.summary`.
    """
    require_writable(out)
    read_prompts(prompts, lambda text: [])  # what is wrong with the file is said before the tokenizer is loaded
    tokenizer = models.load_tokenizer(settings)
    lines = read_prompts(prompts, ChatEncoder(tokenizer).encode)
    if settings.engine == "endpoint" and (unworded := [line.id for line in lines if line.prompt is None]):
        raise InputError(
            f"{prompts}: id {_short(unworded[0])} has prompt_token_ids; a server (DARE_ENGINE=endpoint) needs prompt"
        )
    opened = open_pool(settings, pool, tokenizer, pool_version) if pool else None
    writer = Writer(settings, tokenizer)
    requests = _requests(lines, settings)
    longest = max(len(request.prompt_token_ids) + request.max_new_tokens for request in requests)
    groups = {line.id: line.group for line in lines}
    throughput = Throughput()
    results: dict[str, Result] = {}
    for result in writer.write(requests, opened, longest, len(requests)):
        results[result.id] = result
        throughput.add(result, groups[result.id])
        on_progress(len(results), len(lines))
    throughput.seconds, throughput.load_seconds = writer.seconds, writer.load_seconds
    write_table(out, pa.Table.from_pylist([_row(line, results[line.id], writer) for line in lines], GENERATED))
    return throughput.summary()


def _requests(lines: list[PromptLine], settings: Settings) -> "list[Request]":
    from dare_core.decoding import Request

    new = settings.max_new_tokens
    if settings.engine != "endpoint":
        return [Request(line.id, line.group, line.prompt_token_ids, new) for line in lines]
    from dare_core.engines.endpoint.engine import ChatRequest, turns

    return [ChatRequest(line.id, line.group, line.prompt_token_ids, new, turns(line.prompt or "")) for line in lines]


def _row(line: PromptLine, result: "Result", writer: Writer) -> dict[str, Any]:
    return {
        "id": line.id,
        "group": line.group,
        "status": "ok" if result.error is None else "failed",
        "error": result.error,
        "text": writer.text(result),
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "draft_group": result.draft_group,
        **vars(result.statistics),
    }
