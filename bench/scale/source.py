"""The shop that the bench writes about, and the night in which one in a hundred changes."""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import text

from dare_core.config.settings import Settings
from dare_core.sources.importer import import_tables
from dare_core.sources.shop import stream_shop
from dare_core.warehouse.connection import connected, transaction
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import serving

DOMAIN: Final = "shop"
#: Items and interactions of a user.
USERS_PER_ITEM: Final = 5
INTERACTIONS_PER_USER: Final = 10
#: One in so many users and items changes.
CHANGED: Final = 100
_SEED: Final = 20


def fill(settings: Settings, users: int) -> dict[str, int]:
    """Make the warehouse's tables and the shop.

    Returns:
        Rows by table, and ``buyers``: customers who bought something, since nothing is written about the others.
    """
    with serving(settings) as url, connected(url) as engine:
        upgrade(engine)
        shop = stream_shop(
            max(1, users // USERS_PER_ITEM), users, INTERACTIONS_PER_USER * users, _SEED, datetime.now(UTC)
        )
        counts = import_tables(engine, shop)
        with engine.connect() as connection:
            buyers = text("SELECT count(DISTINCT customer_id) FROM source.shop_purchases")
            counts["buyers"] = connection.execute(buyers).scalar_one()
    return counts


def change(settings: Settings) -> dict[str, int]:
    """Other prices for one in a hundred items; for as many users another region, and ten things bought.

    Returns:
        ``items`` and ``users`` that changed.
    """
    with serving(settings) as url, connected(url) as engine, transaction(engine) as cursor:
        ids: dict[str, Any] = {"of": CHANGED, "each": INTERACTIONS_PER_USER}
        items = cursor.execute(
            """
                UPDATE source.shop_products SET updated_at = clock_timestamp(), price_band =
                    CASE price_band WHEN 'budget' THEN 'mid-range' WHEN 'mid-range' THEN 'premium' ELSE 'budget' END
                WHERE mod(substr(product_id, 2)::bigint, %(of)s) = 0
                """,
            ids,
        ).rowcount
        users = cursor.execute(
            """
                UPDATE source.shop_customers SET updated_at = clock_timestamp(), region =
                    CASE region WHEN 'north' THEN 'south' ELSE 'north' END
                WHERE mod(substr(customer_id, 2)::bigint, %(of)s) = 0
                """,
            ids,
        ).rowcount
        cursor.execute(
            """
                INSERT INTO source.shop_purchases (purchase_id, customer_id, product_id, quantity, purchased_at)
                SELECT last.id + row_number() OVER (), c.customer_id,
                    'p' || mod(substr(c.customer_id, 2)::bigint * 7 + nth * 31, there.products), 1, clock_timestamp()
                FROM source.shop_customers AS c, generate_series(1, %(each)s) AS nth,
                    (SELECT max(purchase_id) AS id FROM source.shop_purchases) AS last,
                    (SELECT count(*) AS products FROM source.shop_products) AS there
                WHERE mod(substr(c.customer_id, 2)::bigint, %(of)s) = 0
                """,
            ids,
        )
    return {"items": items, "users": users}
