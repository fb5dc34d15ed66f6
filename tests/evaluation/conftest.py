"""A small source, and a domain that writes about its users soon."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from dare_core.config.domains import Domain, Evaluation, load_domain
from dare_core.config.settings import load_settings
from dare_core.evaluation.source import Interaction, SourceRows

START = datetime(2020, 1, 1, tzinfo=UTC)
USERS, ITEMS = 8, 20


def hour(number: float) -> datetime:
    """So many hours after the tables' rows came."""
    return START + timedelta(hours=number)


@pytest.fixture(scope="session")
def movies() -> Domain:
    """As it is shipped."""
    return load_domain(load_settings(), "movies")


@pytest.fixture(scope="session")
def soon(movies: Domain) -> Domain:
    """Users are written about after 5 films, and again after 10 more; a prompt shows 4."""
    evaluation = Evaluation(positive_from=4, first_events=5, min_new_events=10)
    knowledge = movies.knowledge.model_copy(update={"max_history": 4})
    return movies.model_copy(update={"evaluation": evaluation, "knowledge": knowledge})


def source_rows(interactions: Sequence[Interaction], users: int = USERS, items: int = ITEMS) -> SourceRows:
    """Tables of so many users and items, all there from the first day."""
    return SourceRows(
        items={
            f"i{n}": {"item_id": f"i{n}", "title": f"Film {n}", "release_year": 1990 + n % 5, "genres": ["Drama"],
                      "updated_at": START}
            for n in range(items)
        },
        users={
            f"u{n}": {"user_id": f"u{n}", "age": 20 + n, "gender": "F", "occupation": "writer", "updated_at": START}
            for n in range(users)
        },
        interactions=sorted(interactions),
    )  # fmt: skip


def random_rows(seed: int, count: int = 400, at_once: int = 1) -> SourceRows:
    """Interactions of 8 users with 20 items, so many of them each hour."""
    random = np.random.default_rng(seed)
    return source_rows(
        [
            Interaction(
                hour(1 + n // at_once),
                f"u{random.integers(USERS)}",
                f"i{random.integers(ITEMS)}",
                float(random.integers(1, 6)),
            )
            for n in range(count)
        ]
    )


@pytest.fixture
def rows() -> SourceRows:
    """400 interactions of 8 users with 20 items, one an hour."""
    return random_rows(0)


def unit_vectors(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    """``[count, width]`` float32 of length 1."""
    made = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)
