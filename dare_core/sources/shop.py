"""A shop of ours: products, customers and purchases of any size, made from a seed.

Customers have one taste above others, and tastes differ in the categories they buy from, so that customers fall into
clusters. Who somebody is and what a product is follow from the seed and the number alone, so that a day can pass in a
shop that was made long ago.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from sqlalchemy import Engine

from dare_core.errors import SourceError
from dare_core.schemas import TIME
from dare_core.sources.importer import described, described_stream
from dare_core.warehouse.connection import driver_cursor, reason
from dare_core.warehouse.copy import copy_rows

_TASTES: Final = 6
_DAYS: Final = 180  # how far back the first customer came
_MEAN_PURCHASES: Final = 12.0
_BANDS: Final = ("budget", "mid-range", "premium")
_BAND_BOUNDS: Final = (20.0, 80.0)

#: By category: the usual price, and what things are called.
CATEGORIES: Final[dict[str, tuple[float, tuple[str, ...]]]] = {
    "kitchen": (30, ("Chef's Knife", "Cast-Iron Pan", "Mixing Bowl Set", "Espresso Maker", "Spice Rack", "Bread Tin")),
    "outdoor": (70, ("Two-Person Tent", "Sleeping Bag", "Trekking Poles", "Camp Stove", "Headlamp", "Rain Jacket")),
    "electronics": (90, ("Wireless Headphones", "Portable Speaker", "Power Bank", "Webcam", "Smart Plug", "E-Reader")),
    "garden": (25, ("Pruning Shears", "Raised Bed", "Watering Can", "Seed Starter", "Garden Gloves", "Bird Feeder")),
    "sports": (45, ("Yoga Mat", "Kettlebell", "Running Belt", "Resistance Bands", "Foam Roller", "Bike Light")),
    "toys": (22, ("Wooden Train", "Marble Run", "Memory Game", "Building Blocks", "Plush Bear", "Science Kit")),
    "home office": (60, ("Desk Lamp", "Monitor Arm", "Ergonomic Mouse", "Notebook Set", "Footrest", "Cable Organiser")),
    "beauty": (28, ("Face Serum", "Hand Cream", "Beard Oil", "Hair Brush", "Bath Salts", "Sun Lotion")),
    "pets": (24, ("Cat Tree", "Dog Harness", "Slow Feeder", "Chew Toy", "Travel Crate", "Grooming Glove")),
}  # fmt: skip
_BRANDS: Final = (
    "Norvik", "Alder & Finch", "Kestrel", "Moonriver", "Tessera", "Halden", "Brightwell", "Osprey Lane", "Cinder",
    "Juniper", "Quillon", "Saltmarsh", "Verano", "Wildgrain",
)  # fmt: skip
_QUALITIES: Final = (
    "Compact", "Classic", "Ultralight", "Everyday", "Heritage", "Pro", "Eco", "Foldable", "Deluxe", "Quiet", "Starter",
)  # fmt: skip
_REGIONS: Final = ("north", "south", "east", "west", "coast", "capital")
_AGES: Final = ("18-24", "25-34", "35-49", "50-64", "65+")
_MEMBERSHIPS: Final = ("none", "basic", "plus")

#: How much more a taste buys from a category than from the others; tastes share some categories.
_FAVOURITE: Final = 12.0

#: Of a large shop: who comes at place r by activity buys, and what comes there by popularity sells, as r to this power.
_ACTIVITY: Final = -0.8
_POPULARITY: Final = -1.0
_ROWS_AT_ONCE: Final = 50_000

_PRODUCTS: Final = pa.schema(
    [
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("brand", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("price_band", pa.string(), nullable=False),
        pa.field("price", pa.float64(), nullable=False),
        pa.field("updated_at", TIME, nullable=False),
    ]
)
_CUSTOMERS: Final = pa.schema(
    [
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("age_band", pa.string(), nullable=False),
        pa.field("region", pa.string(), nullable=False),
        pa.field("membership", pa.string(), nullable=False),
        pa.field("updated_at", TIME, nullable=False),
    ]
)
_PURCHASES: Final = pa.schema(
    [
        pa.field("purchase_id", pa.int64(), nullable=False),
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("quantity", pa.int32(), nullable=False),
        pa.field("purchased_at", TIME, nullable=False),
    ]
)

#: Of each table: what it is, its key, and columns with an index of their own.
_TABLES: Final = {
    "shop_products": ("products", ["product_id"], ["updated_at"]),
    "shop_customers": ("customers", ["customer_id"], ["updated_at"]),
    "shop_purchases": ("purchases", ["purchase_id"], ["purchased_at"]),
}

_Numbers = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


def make_shop(products: int, customers: int, seed: int, until: datetime) -> dict[str, pa.Table]:
    """The tables ``shop_products``, ``shop_customers`` and ``shop_purchases``, ready to import.

    Args:
        products: how many.
        customers: how many; each came at some moment of the last half year and has bought a dozen things on average.
        seed: of everything.
        until: the moment of the newest row; rows lie before it.
    """
    random = np.random.default_rng(seed)
    numbers, buyers = np.arange(products), np.arange(customers)
    start = _opening(until)
    listed = _moments(random.uniform(-0.5, 0, products), start, until)  # before anybody came
    came = random.uniform(0, 0.95, customers)
    bought = 1 + random.geometric(1 / _MEAN_PURCHASES, customers)
    who = np.repeat(buyers, bought)
    when = came[who] + random.uniform(0, 1, len(who)) * (1 - came[who])
    order = np.argsort(when, kind="stable")
    tables = (
        _products(numbers, listed, seed),
        _customers(buyers, _moments(came, start, until), seed),
        _purchases(random, who[order], numbers, _moments(when[order], start, until), seed, first=1),
    )
    return {name: described(table, *_description(name, seed)) for name, table in zip(_TABLES, tables, strict=True)}


def stream_shop(
    products: int, customers: int, purchases: int, seed: int, until: datetime
) -> dict[str, pa.RecordBatchReader]:
    """The same tables of a shop of any size, ready to import; each is made as it is read, once.

    A few customers and a few products make most of the purchases: Zipf's law, and tastes. Everybody came, and
    everything was listed, before the first purchase. Memory holds a batch of rows, and some 60 bytes for each product
    and customer.

    Args:
        products, customers, purchases: how many.
        seed: of everything.
        until: all rows are older; purchases by half a year at most.
    """
    start = _opening(until)

    def before(numbers: _Numbers) -> pa.Array:
        return _moments((_uniform(numbers, seed, 13) - 1) / 2, start, until)

    sold = _Sales(products, customers, seed)
    tables: tuple[tuple[pa.Schema, int, Callable[[_Numbers], pa.Table]], ...] = (
        (_PRODUCTS, products, lambda numbers: _products(numbers, before(numbers), seed)),
        (_CUSTOMERS, customers, lambda numbers: _customers(numbers, before(numbers), seed)),
        (
            _PURCHASES,
            purchases,
            lambda numbers: sold.rows(numbers, _moments((numbers + 0.5) / purchases, start, until)),
        ),
    )
    return {
        name: described_stream(schema, _batches(count, make), *_description(name, seed))
        for name, (schema, count, make) in zip(_TABLES, tables, strict=True)
    }


def _opening(until: datetime) -> datetime:
    return until - timedelta(days=_DAYS)


def _description(name: str, seed: int) -> tuple[str, list[str], list[str]]:
    what, key, indexes = _TABLES[name]
    return f"{what} of a made-up shop, seed {seed}", key, indexes


def _batches(count: int, make: Callable[[_Numbers], pa.Table]) -> Iterator[pa.RecordBatch]:
    for first in range(0, count, _ROWS_AT_ONCE):
        yield from make(np.arange(first, min(first + _ROWS_AT_ONCE, count))).to_batches()


def tastes(customers: npt.NDArray[np.int64], seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The main and the second taste of customers (numbers as in their ids): what no table of the shop says."""
    main, second = (np.floor(_uniform(customers, seed, salt) * _TASTES).astype(np.int64) for salt in (9, 10))
    return main, second


def favours(taste: npt.NDArray[np.int64], category: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether a taste buys more from a category (by number, in the order of ``CATEGORIES``) than from others."""
    first, second, third = taste, (taste + 1) % len(CATEGORIES), _TASTES + taste // 2
    return np.asarray((category == first) | (category == second) | (category == third))


def advance(engine: Engine, days: int, now: datetime | None = None, schema: str = "source") -> dict[str, int]:
    """Let days pass in an imported shop: purchases, new, changed and withdrawn products, new and leaving customers.

    All of it is dated in the minute before ``now``: what the days brought happens at once.

    Returns:
        ``purchases``, and ``new_``, ``changed_`` and ``deleted_`` products and customers.

    Raises:
        SourceError: the shop was not imported, or nothing of it is left.
    """
    now = now or datetime.now(UTC)
    with engine.begin() as connection, driver_cursor(connection) as cursor:
        try:
            seed = _seed(cursor, schema)
            cursor.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(sql.Identifier(schema, "shop_purchases")))
            return _advance(cursor, schema, seed, days, now)
        except psycopg.Error as error:
            raise SourceError(f"the shop in schema {schema} cannot be changed: {reason(error)}") from error


def _advance(cursor: psycopg.Cursor[Any], schema: str, seed: int, days: int, now: datetime) -> dict[str, int]:
    def table(name: str) -> sql.Identifier:
        return sql.Identifier(schema, f"shop_{name}")

    products, next_product = _ids(cursor, table("products"), "product_id")
    customers, next_customer = _ids(cursor, table("customers"), "customer_id")
    last = sql.SQL("SELECT coalesce(max(purchase_id), 0) FROM {}").format(table("purchases"))
    [purchased] = cursor.execute(last).fetchone() or (0,)
    random = np.random.default_rng([seed, purchased])

    def some(share: float, of: _Numbers) -> int:
        return min(max(1, round(share * days * len(of))), len(of) // 4)

    new_products = np.arange(next_product, next_product + max(1, round(0.01 * days * len(products))))
    new_customers = np.arange(next_customer, next_customer + max(1, round(0.01 * days * len(customers))))
    touched = random.permutation(products)
    gone_products, changed = np.split(touched, [some(0.002, products)])
    changed = changed[: some(0.01, products)]
    leaving = random.permutation(customers)
    gone_customers, moved = np.split(leaving, [some(0.002, customers)])
    moved = moved[: some(0.005, customers)]

    cursor.execute(
        sql.SQL("DELETE FROM {} WHERE product_id = ANY(%s)").format(table("products")),
        [_names("p", gone_products).to_pylist()],
    )
    cursor.execute(
        sql.SQL("DELETE FROM {} WHERE customer_id = ANY(%s)").format(table("customers")),
        [_names("c", gone_customers).to_pylist()],
    )
    offered = np.setdiff1d(np.append(products, new_products), gone_products)
    buyers = np.setdiff1d(np.append(customers, new_customers), gone_customers)
    who = np.sort(np.append(random.choice(buyers, max(1, round(0.1 * days * len(buyers)))), new_customers))
    start = now - timedelta(minutes=1)
    copy_rows(
        cursor, table("products"), _products(new_products, _moments(np.zeros(len(new_products)), start, now), seed)
    )
    copy_rows(
        cursor, table("customers"), _customers(new_customers, _moments(np.zeros(len(new_customers)), start, now), seed)
    )
    moments = _moments(np.linspace(0, 1, len(who)), start, now)
    copy_rows(
        cursor,
        table("purchases"),
        _purchases(random, random.permutation(who), offered, moments, seed, first=purchased + 1),
    )
    for number, factor in zip(changed, random.choice([0.5, 0.8, 1.3, 2.0], len(changed)), strict=True):
        cursor.execute(
            sql.SQL(
                "UPDATE {} SET price = round((price * %s)::numeric, 2), price_band = CASE WHEN price * %s < %s THEN %s "
                "WHEN price * %s < %s THEN %s ELSE %s END, updated_at = %s WHERE product_id = %s"
            ).format(table("products")),
            [
                factor,
                factor,
                _BAND_BOUNDS[0],
                _BANDS[0],
                factor,
                _BAND_BOUNDS[1],
                _BANDS[1],
                _BANDS[2],
                now,
                f"p{number}",
            ],
        )
    for number, region in zip(moved, random.choice(_REGIONS, len(moved)), strict=True):
        cursor.execute(
            sql.SQL("UPDATE {} SET region = %s, updated_at = %s WHERE customer_id = %s").format(table("customers")),
            [str(region), now, f"c{number}"],
        )
    return {
        "purchases": len(who),
        "new_products": len(new_products),
        "changed_products": len(changed),
        "deleted_products": len(gone_products),
        "new_customers": len(new_customers),
        "changed_customers": len(moved),
        "deleted_customers": len(gone_customers),
    }


def _seed(cursor: psycopg.Cursor[Any], schema: str) -> int:
    """The seed that the shop was made from, of its comment."""
    row = cursor.execute(
        "SELECT obj_description(to_regclass(format('%%I.shop_products', %s::text)), 'pg_class')", [schema]
    ).fetchone()
    found = re.search(r"seed (\d+)$", (row and row[0]) or "")
    if found is None:
        raise SourceError(f"there is no shop in schema {schema}; run `dare source import --domain shop`")
    return int(found[1])


def _ids(cursor: psycopg.Cursor[Any], table: sql.Identifier, name: str) -> tuple[_Numbers, int]:
    """The numbers of the rows there are, and the first after them."""
    rows = cursor.execute(
        sql.SQL("SELECT substr({}, 2)::bigint FROM {} ORDER BY 1").format(sql.Identifier(name), table)
    )
    numbers = np.array([number for (number,) in rows], np.int64)
    if not len(numbers):
        raise SourceError(f"{table.as_string(cursor)} is empty; run `dare source import --domain shop`")
    return numbers, int(numbers[-1]) + 1


def _products(numbers: _Numbers, updated_at: pa.Array, seed: int) -> pa.Table:
    kinds = list(CATEGORIES)
    category = _category(numbers, seed)
    brand, quality, noun, price = (_uniform(numbers, seed, salt) for salt in (2, 3, 4, 5))
    usual = np.array([CATEGORIES[kind][0] for kind in kinds])[category]
    prices = np.round(usual * np.exp(1.6 * (price - 0.5)), 2)
    brands = _pick(_BRANDS, brand)
    nouns = [CATEGORIES[kinds[at]][1][int(u * 6)] for at, u in zip(category, noun, strict=True)]
    models = (f"{kinds[at][0].upper()}{number + 100}" for at, number in zip(category, numbers, strict=True))
    parts = zip(brands, _pick(_QUALITIES, quality), nouns, models, strict=True)
    bands = [_BANDS[at] for at in np.digitize(prices, _BAND_BOUNDS)]
    columns = [
        _names("p", numbers),
        [" ".join(part) for part in parts],
        brands,
        [kinds[at] for at in category],
        bands,
        prices,
        updated_at,
    ]
    return pa.table(columns, schema=_PRODUCTS)


def _customers(numbers: _Numbers, updated_at: pa.Array, seed: int) -> pa.Table:
    facts = [
        _pick(values, _uniform(numbers, seed, salt)) for salt, values in enumerate((_AGES, _REGIONS, _MEMBERSHIPS), 6)
    ]
    return pa.table([_names("c", numbers), *facts, updated_at], schema=_CUSTOMERS)


def _purchases(
    random: np.random.Generator, who: _Numbers, products: _Numbers, when: pa.Array, seed: int, first: int
) -> pa.Table:
    """One purchase for each of ``who``, of a product that their taste favours."""
    taste = _taste_shown(who, random.uniform(size=len(who)), seed)
    popularity = 1 / (1 + 20 * _uniform(products, seed, 12)) ** 1.5  # a few things sell much
    chosen = np.empty(len(who), np.int64)
    for number, weights in enumerate(_weights_by_taste(products, popularity, seed)):
        of_taste = taste == number
        chosen[of_taste] = products[_drawn(weights, random.uniform(size=int(of_taste.sum())))]
    quantity = random.choice([1, 2, 3], len(who), p=[0.8, 0.15, 0.05])
    return _purchase_rows(np.arange(first, first + len(who)), who, chosen, quantity, when)


class _Sales:
    """Who buys what in a large shop: each purchase follows from the seed and its number alone."""

    def __init__(self, products: int, customers: int, seed: int) -> None:
        self._seed = seed
        buyers, numbers = np.arange(customers), np.arange(products)
        self._buyers = np.argsort(_uniform(buyers, seed, 14))  # the most active first
        self._activity = np.cumsum((buyers + 1.0) ** _ACTIVITY)
        popularity = np.empty(products)
        popularity[np.argsort(_uniform(numbers, seed, 12))] = (numbers + 1.0) ** _POPULARITY
        self._weights = list(_weights_by_taste(numbers, popularity, seed))

    def rows(self, numbers: _Numbers, when: pa.Array) -> pa.Table:
        """The purchases of these numbers, from 0 on, at these times."""
        who_u, faithful_u, product_u, quantity_u = (_uniform(numbers, self._seed, salt) for salt in (15, 16, 17, 18))
        who = self._buyers[_drawn(self._activity, who_u)]
        taste = _taste_shown(who, faithful_u, self._seed)
        chosen = np.empty(len(numbers), np.int64)
        for number, weights in enumerate(self._weights):
            of_taste = taste == number
            chosen[of_taste] = _drawn(weights, product_u[of_taste])
        return _purchase_rows(numbers + 1, who, chosen, 1 + np.digitize(quantity_u, (0.8, 0.95)), when)


def _taste_shown(who: _Numbers, uniform: _Floats, seed: int) -> _Numbers:
    """Which of their two tastes customers follow in a purchase: mostly the main one, and some more than others."""
    main, second = tastes(who, seed)
    return np.where(uniform < 0.65 + 0.3 * _uniform(who, seed, 11), main, second)


def _weights_by_taste(products: _Numbers, popularity: _Floats, seed: int) -> Iterator[_Floats]:
    """By taste, how likely it is to buy one of the products up to each: cumulated weights."""
    category = _category(products, seed)
    for taste in range(_TASTES):
        favoured = favours(np.full_like(category, taste), category)
        yield np.cumsum(popularity * np.where(favoured, _FAVOURITE, 1.0))


def _drawn(weights: _Floats, uniform: _Floats) -> _Numbers:
    """Places in cumulated weights, drawn by numbers in [0, 1)."""
    places: _Numbers = np.searchsorted(weights, uniform * weights[-1], side="right").clip(max=len(weights) - 1)
    return places


def _purchase_rows(
    numbers: _Numbers, who: _Numbers, products: _Numbers, quantity: _Numbers, when: pa.Array
) -> pa.Table:
    columns = [numbers, _names("c", who), _names("p", products), quantity.astype(np.int32), when]
    return pa.table(columns, schema=_PURCHASES)


def _category(numbers: _Numbers, seed: int) -> _Numbers:
    return np.floor(_uniform(numbers, seed, 1) * len(CATEGORIES)).astype(np.int64)


def _uniform(numbers: _Numbers, seed: int, salt: int) -> _Floats:
    """A number in [0, 1) for each, which seed, salt and number decide (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) + np.uint64(1 + salt) * np.uint64(0x9E3779B97F4A7C15)
        mixed += np.uint64(seed) * np.uint64(0xD1B54A32D192ED03)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)) / float(1 << 53)


def _pick(values: Sequence[str], uniform: _Floats) -> list[str]:
    return [values[at] for at in np.floor(uniform * len(values)).astype(np.int64)]


def _names(prefix: str, numbers: _Numbers) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pc.cast(pa.array(numbers), pa.string()), "")


def _moments(shares: _Floats, start: datetime, end: datetime) -> pa.Array:
    """Times at shares of the way from start to end."""
    first = int(start.timestamp() * 1_000_000)
    width = (end - start) / timedelta(microseconds=1)
    return pa.array(first + (shares * width).astype(np.int64), pa.int64()).cast(TIME)
