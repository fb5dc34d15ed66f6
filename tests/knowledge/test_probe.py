"""The probe of plain decoding that a kind's first shard takes beside its texts."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.decoding import Request
from dare_core.knowledge import probe as probe_module
from dare_core.knowledge import shards
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.probe import Probe, read_probe
from dare_core.knowledge.requests import Decoding, request_id
from dare_core.knowledge.shards import Plan
from dare_core.knowledge.worker import work_off
from dare_core.schemas import REQUEST
from tests.support.tiny_model import save_tiny_model

NEW_TOKENS = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def two_shards(settings: Settings) -> Plan:
    """A run over four items, two a shard."""
    tokenizer = models.load_tokenizer(settings)
    decoding = Decoding(settings.model, models.tokenizer_hash(tokenizer), "strict", 2, 0.1, NEW_TOKENS)
    rows = []
    for title in ("Alien", "Fargo", "Heat", "Ran"):
        ids = ChatEncoder(tokenizer).encode(title)
        rows.append(
            {
                "request_id": request_id("movies", "item", title, ids, decoding, 0),
                "domain": "movies",
                "kind": "item",
                "entity_id": title,
                "group_name": "Drama",
                "prompt": title,
                "prompt_token_ids": ids,
                "dropped_history": 0,
                "epoch": 0,
                "data_as_of": datetime(1998, 1, 1, tzinfo=UTC),
            }
        )
    written = shards.write_shards(
        settings.run_dir("run"), "item", pa.Table.from_pylist(rows, REQUEST).to_batches(), 2, None
    )
    return Plan(
        run_id="run",
        domain="movies",
        framework="kar",
        decoding=decoding,
        started_at=datetime.now(UTC),
        shards=written,
        funnel={},
        estimate=Estimate(tokens=0, seconds=None, cost=None, tokens_per_second=None, basis=""),
    )


def probes(tmp_path: Path, model: Path, share: float) -> list[Probe | None]:
    """The probes of both shards."""
    settings = Settings(data_dir=tmp_path, model=str(model), verification="strict", batch_size=4, probe_share=share)
    plan = two_shards(settings)
    work_off(settings, plan, plan.shards)
    return [read_probe(settings.run_dir("run") / "staged" / shard.name) for shard in plan.shards]


def test_the_first_shard_of_a_kind_is_probed_with_as_many_texts_at_once(tmp_path: Path, model: Path) -> None:
    first, second = probes(tmp_path, model, 1.0)
    assert second is None
    assert first is not None
    assert first.sequences == 2
    assert 0 < first.tokens <= 2 * NEW_TOKENS
    assert first.plain_seconds == pytest.approx(first.tokens / first.plain_tokens_per_second)
    assert first.steps >= 4


class PlainEngine:
    """Two prompts are read in steps of three seconds, of which the second brings tokens of both; then a step is one."""

    def __init__(self) -> None:
        self.now, self._steps = 0.0, 0
        self.facts, self.busy = models.ModelFacts(frozenset(), 1024), True

    def open(self, *_: object, **__: object) -> "PlainEngine":
        return self

    def add(self, requests: list[Request]) -> None:
        assert [request.id for request in requests] == ["0", "1"]

    def step(self, on_tokens: Callable[[str, list[int]], None]) -> None:
        self._steps += 1
        self.now += 3.0 if self._steps <= 2 else 1.0
        for name in ("0", "1")[: self._steps]:
            on_tokens(name, [0])


def test_what_reading_the_prompts_takes_is_counted_for_plain_decoding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PlainEngine()
    monkeypatch.setattr(probe_module, "time", SimpleNamespace(perf_counter=lambda: engine.now))
    requests = [Request(str(number), "", [1, 2], 8) for number in range(4)]
    settings = Settings(batch_size=2, probe_share=0.5)
    measured = probe_module.probe(settings, engine, requests, tokens=100, seconds=40.0)  # type: ignore[arg-type]
    assert measured is not None
    assert measured.steps == 14
    # Half a second a token; six for two prompts and three tokens, so 4.5 for the prompts, and nine for all four.
    assert measured.plain_seconds == pytest.approx(100 * 0.5 + 9)


def test_a_run_too_short_for_a_probe_and_one_that_wants_none_have_none(tmp_path: Path, model: Path) -> None:
    assert probes(tmp_path / "short", model, 1e-6) == [None, None]
    assert probes(tmp_path / "none", model, 0.0) == [None, None]
