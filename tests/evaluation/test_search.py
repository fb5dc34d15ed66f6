"""``dare evaluate --search`` on a made-up source, with made-up texts and vectors."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from dare_core.config.domains import Domain, Form
from dare_core.config.settings import Settings
from dare_core.evaluation import arms, search, texts
from dare_core.evaluation.inputs import Vectors
from dare_core.evaluation.run import Ground
from dare_core.evaluation.service import Entity
from dare_core.evaluation.source import SourceRows

from .conftest import random_rows
from .test_inputs import vectors_of


@pytest.fixture
def searched(soon: Domain, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A search over some rows. In the form attributes+answer an item's vector says whether it is liked."""

    @contextmanager
    def no_warehouse(settings: Settings) -> Iterator[tuple[None, None]]:
        yield None, None

    def write(
        settings: Settings, domain: Domain, entities: Sequence[Entity], of: Sequence[texts.Arm], on_progress: Any
    ) -> Any:
        assert of == (texts.STRICT,)
        return SimpleNamespace(by_arm={"strict": []})

    def vectors(
        settings: Settings, domain: Domain, form: Form, entities: Sequence[Entity], by_arm: Mapping[str, Any]
    ) -> dict[str, Vectors]:
        made = dict(vectors_of([replace(one, attributes={}) for one in entities]))
        if form == "attributes+answer":
            items = [one for one in entities if one.kind == "item"]
            made["item"] = np.zeros_like(made["item"])
            made["item"][np.arange(len(items)), [int(one.entity_id[1:]) % 2 for one in items]] = 1
        return {"strict": made}

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})  # processes take longer to start than to train
    monkeypatch.setattr(search, "open_warehouse", no_warehouse)
    monkeypatch.setattr(search, "load_domain", lambda settings, name: soon)
    monkeypatch.setattr(texts, "write_texts", write)
    monkeypatch.setattr(arms, "arm_vectors", vectors)

    def run(rows: SourceRows) -> dict[str, Any]:
        monkeypatch.setattr(search, "read_source", lambda engine, domain: rows)
        return search.search(Settings(), "movies", seeds=1)

    return run


def liked_by_number(count: int) -> SourceRows:
    """Even users like items of even numbers, the others those of odd ones."""
    rows = random_rows(8, count)
    told = [
        one._replace(value=5.0 if (int(one.item[1:]) - int(one.user[1:])) % 2 == 0 else 1.0)
        for one in rows.interactions
    ]
    return replace(rows, interactions=told)


def test_the_best_comes_first_and_the_tests_are_never_looked_at(searched: Any, soon: Domain) -> None:
    rows = liked_by_number(800)
    found = searched(rows)
    candidates = found["candidates"]
    assert {one["form"] for one in candidates} == set(get_args(Form))
    assert len({(one["form"], *one["training"].values()) for one in candidates}) == len(candidates) == 12
    aucs = [one["auc"] for one in candidates]
    assert aucs == sorted(aucs, reverse=True)
    assert candidates[0]["form"] == "attributes+answer"
    best = candidates[0]["training"]
    assert found["lines"] == [
        "[knowledge]",
        'embedded = "attributes+answer"',
        "[evaluation.training]",
        f"learning_rate = {best['learning_rate']}",
        f"dropout = {best['dropout']}",
    ]

    first = Ground.of(soon, rows).splits[0].test.start
    planted = [one if n < first else one._replace(value=6 - one.value) for n, one in enumerate(rows.interactions)]
    assert searched(replace(rows, interactions=planted)) == found
