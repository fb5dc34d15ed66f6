"""The probe of plain decoding that a kind's first shard takes beside its texts."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from dare_core import models
from dare_core.knowledge import shards
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.probe import Probe, read_probe
from dare_core.knowledge.requests import Decoding, request_id
from dare_core.knowledge.shards import Plan
from dare_core.knowledge.worker import work_off
from dare_core.settings import Settings
from tests.tiny_model import save_tiny_model

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
    written = shards.write_shards(settings.run_dir("run"), "item", rows, 2, None)
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


def test_a_run_too_short_for_a_probe_and_one_that_wants_none_have_none(tmp_path: Path, model: Path) -> None:
    assert probes(tmp_path / "short", model, 1e-6) == [None, None]
    assert probes(tmp_path / "none", model, 0.0) == [None, None]
