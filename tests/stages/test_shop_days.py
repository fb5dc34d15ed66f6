"""Days pass in the shop: what Spark pulls of them, and what is asked about afterwards."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dare_core.config.settings import Settings
from dare_core.sources.importer import import_tables
from dare_core.sources.shop import advance, make_shop
from dare_core.stages import group, plan, pull
from dare_core.stages.request import RunRequest
from dare_core.warehouse.entities import watermark
from tests.support.tiny_model import save_tiny_model

#: Left out of the domain's file here: fitting factors takes longer than everything else together.
CLUSTERS = "[grouping.users.clusters]"


@pytest.mark.integration
@pytest.mark.timeout(1200)
def test_a_day_in_the_shop_costs_what_it_changed(
    settings: Settings,
    warehouse_url: str,
    engine: Engine,
    submit_here: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = str(save_tiny_model(tmp_path / "tiny"))
    config = tmp_path / "config"
    config.mkdir()
    text_of_domain, clusters, rest = (settings.config_dir / "shop.toml").read_text("utf-8").partition(CLUSTERS)
    assert clusters
    (config / "shop.toml").write_text(text_of_domain + rest[rest.index("[knowledge]") :], "utf-8")
    changes = {"warehouse_url": warehouse_url, "model": model, "max_new_tokens": 16, "config_dir": config}
    settings = Settings.model_validate(settings.model_dump() | changes)

    def refresh(run_id: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        request = RunRequest(run_id=run_id, domain="shop")
        return tuple(stage(settings, request) for stage in (pull.run, group.run, plan.run))  # type: ignore[return-value]

    def count(statement: str) -> int:
        with engine.connect() as connection:
            return int(connection.execute(text(statement)).scalar_one())

    started: list[str] = []
    for stage in (pull, group):
        monkeypatch.setattr(stage, "submit", lambda *given: started.append(given[1]) or submit_here(*given))
    import_tables(engine, make_shop(120, 150, 0, datetime.now(UTC)))
    before = datetime.now(UTC)
    _, grouped, planned = refresh("first")
    assert (grouped["item_changed"], grouped["user_changed"]) == (120, 150)
    assert planned["requests"] == 270
    assert count("SELECT count(DISTINCT group_name) FROM knowledge.entity WHERE kind = 'user'") > 2
    mark = watermark(engine, "shop", "user")
    assert mark is not None and mark >= before

    day = advance(engine, 1)
    pulled, grouped, planned = refresh("second")
    assert grouped["item_deleted"] == pulled["item_gone"] == day["deleted_products"]
    assert grouped["user_deleted"] == day["deleted_customers"]
    assert grouped["item_changed"] == day["new_products"] + day["changed_products"]
    assert grouped["user_changed"] < 60, "the others did nothing since"
    alive = count("SELECT count(*) FROM knowledge.entity WHERE deleted_at IS NULL")
    assert (
        alive == 270 + day["new_products"] + day["new_customers"] - day["deleted_products"] - day["deleted_customers"]
    )
    assert sum(funnel["seen"] for funnel in planned["funnel"].values()) == alive
    miscounted = f"""
        SELECT count(*) FROM knowledge.entity AS e
        WHERE kind = 'user' AND deleted_at IS NULL AND data_as_of >= '{before}' AND events <> (
            SELECT count(*) FROM source.shop_purchases JOIN source.shop_products USING (product_id)
            WHERE customer_id = e.entity_id
        )
    """
    assert count(miscounted) == 0

    started.clear()
    pulled, grouped, planned = refresh("third")
    assert pulled["user"] > 0, "the overlap is read again"
    assert grouped == {"item_changed": 0, "item_deleted": 0, "user_changed": 0, "user_deleted": 0}
    assert started == ["pull"]
