from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import load_settings
from dare_core.evaluation.data import Interaction, SourceRows

START = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def movies() -> Domain:
    return load_domain(load_settings(), "movies")


def source_rows(interactions: Sequence[Interaction], users: int, items: int) -> SourceRows:
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


@pytest.fixture
def rows() -> SourceRows:
    """400 interactions of 8 users with 20 items, one an hour."""
    random = np.random.default_rng(0)
    return source_rows(
        [
            Interaction(
                START + timedelta(hours=1 + n),
                f"u{random.integers(8)}",
                f"i{random.integers(20)}",
                float(random.integers(1, 6)),
            )
            for n in range(400)
        ],
        users=8,
        items=20,
    )
