"""The made-up shop: what it holds, and how a day passes in it."""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sqlalchemy import Engine, text

from dare_core.errors import SourceError
from dare_core.sources.importer import import_tables
from dare_core.sources.shop import advance, make_shop, stream_shop

UNTIL = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def shop() -> dict[str, pa.Table]:
    return make_shop(300, 400, 7, UNTIL)


def contents(engine: Engine) -> dict[str, list[str]]:
    with engine.connect() as connection:
        return {
            name: list(connection.execute(text(f"SELECT t::text FROM source.shop_{name} AS t ORDER BY 1")).scalars())
            for name in ("products", "customers", "purchases")
        }


def test_a_shop_has_the_size_that_was_asked_for_and_follows_from_its_seed(shop: dict[str, pa.Table]) -> None:
    assert (len(shop["shop_products"]), len(shop["shop_customers"])) == (300, 400)
    assert make_shop(300, 400, 7, UNTIL) == shop
    assert make_shop(300, 400, 8, UNTIL) != shop
    small = make_shop(1, 1, 0, UNTIL)
    assert set(small["shop_purchases"]["product_id"].to_pylist()) == {"p0"}


def test_nothing_happens_before_its_customer_came_or_after_the_end(shop: dict[str, pa.Table]) -> None:
    came = dict(zip(*(shop["shop_customers"][name].to_pylist() for name in ("customer_id", "updated_at")), strict=True))
    for row in shop["shop_purchases"].to_pylist():
        assert came[row["customer_id"]] <= row["purchased_at"] <= UNTIL
    assert pc.max(shop["shop_products"]["updated_at"]).as_py() <= UNTIL
    assert len(set(shop["shop_products"]["title"].to_pylist())) == 300


def test_customers_have_tastes(shop: dict[str, pa.Table]) -> None:
    category = dict(zip(*(shop["shop_products"][name].to_pylist() for name in ("product_id", "category")), strict=True))
    bought: dict[str, Counter[str]] = defaultdict(Counter)
    for row in shop["shop_purchases"].to_pylist():
        bought[row["customer_id"]][category[row["product_id"]]] += 1
    everybody = Counter[str]()
    for counts in bought.values():
        everybody += counts

    def top_three(counts: Counter[str]) -> float:
        return sum(count for _, count in counts.most_common(3)) / counts.total()

    many = [counts for counts in bought.values() if counts.total() >= 15]
    assert sum(map(top_three, many)) / len(many) > top_three(everybody) + 0.15


def test_a_shop_that_is_streamed_follows_from_its_seed_and_is_skewed() -> None:
    def made(seed: int) -> dict[str, pa.Table]:
        return {name: rows.read_all() for name, rows in stream_shop(2_000, 10_000, 60_000, seed, UNTIL).items()}

    streamed = made(7)
    assert [len(table) for table in streamed.values()] == [2_000, 10_000, 60_000]
    assert made(7) == streamed
    assert made(8)["shop_purchases"] != streamed["shop_purchases"]
    purchases = streamed["shop_purchases"]
    assert purchases["purchase_id"].to_pylist() == list(range(1, 60_001))
    assert pc.min_max(purchases["purchased_at"]).as_py()["max"] < UNTIL
    assert pc.all(pc.less_equal(purchases["purchased_at"][:-1], purchases["purchased_at"][1:])).as_py()
    for column, known, share in (("customer_id", "shop_customers", 0.25), ("product_id", "shop_products", 0.45)):
        counts = pc.value_counts(purchases[column]).field("counts").sort("descending").to_pylist()
        assert set(purchases[column].to_pylist()) <= set(streamed[known][column].to_pylist())
        assert sum(counts[: len(streamed[known]) // 50]) > share * 60_000, "a fiftieth of them makes most of the sales"
    assert pc.max(streamed["shop_customers"]["updated_at"]).as_py() < purchases["purchased_at"][0].as_py()


def test_a_day_brings_purchases_changes_and_deletions_dated_at_its_end(
    engine: Engine, shop: dict[str, pa.Table]
) -> None:
    import_tables(engine, shop)
    before = contents(engine)
    now = UNTIL + timedelta(days=1)
    summary = advance(engine, 1, now)
    after = contents(engine)
    assert all(summary.values())
    for name, made, gone in (
        ("products", "new_products", "deleted_products"),
        ("customers", "new_customers", "deleted_customers"),
    ):
        assert len(after[name]) == len(before[name]) + summary[made] - summary[gone]
    assert len(after["purchases"]) == len(before["purchases"]) + summary["purchases"]
    with engine.connect() as connection:
        [newest, changed] = connection.execute(
            text(
                "SELECT max(purchased_at), (SELECT count(*) FROM source.shop_products WHERE updated_at > :until) "
                "FROM source.shop_purchases"
            ),
            {"until": UNTIL},
        ).one()
    assert now - timedelta(minutes=1) <= newest <= now
    assert changed == summary["new_products"] + summary["changed_products"]


def test_the_same_day_passes_alike_in_equal_shops(engine: Engine, shop: dict[str, pa.Table]) -> None:
    days = []
    for _ in range(2):
        import_tables(engine, shop)
        advance(engine, 2, UNTIL + timedelta(days=1))
        days.append(contents(engine))
    assert days[0] == days[1]


def test_without_a_shop_no_day_passes(engine: Engine) -> None:
    with pytest.raises(SourceError, match="run `dare source import --domain shop`"):
        advance(engine, 1)
