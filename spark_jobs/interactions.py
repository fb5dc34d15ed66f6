"""What users did with items: checked, counted, and as the histories that prompts show."""

from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import Window as Over
from pyspark.sql import functions as sf

from dare_core.errors import SourceError
from spark_jobs.column_values import column
from spark_jobs.postgres_source import Timeless, TimeWindow
from spark_jobs.source_tables import SourceTables
from spark_jobs.window import Window, time_of

_FIRST_FEW: Final = 3
#: Fewer new interactions than these say nothing of the tables when all of them are dropped.
_TELLING: Final = 10


@dataclass(frozen=True)
class Interactions:
    """The domain's interactions, as a pull of users sees them.

    Attributes:
        tables: that hold them.
        window: of the users.
        users: column ``entity_id`` of all there are.
        items: column ``entity_id`` of all there are, ``updated_at``.
    """

    tables: SourceTables
    window: Window
    users: DataFrame
    items: DataFrame

    def check_times(self) -> None:
        """Every interaction must have a time: one without would be lost for good.

        Raises:
            SourceError: names some that have none.
        """
        spec = self.tables.domain.source.interactions
        key = [column(spec.user).cast("string").alias("user"), column(spec.item).cast("string").alias("item")]
        frame = self.tables.read("interactions", [spec.user, spec.item, spec.time], Timeless(spec.time))
        timeless = frame.where(time_of(spec.time).isNull()).select(*key)
        if pairs := [f"{row['user']!r} and {row['item']!r}" for row in timeless.take(_FIRST_FEW)]:
            problem = f"{spec.time} is empty, or no time, for user and item {', '.join(pairs)}, …"
            raise self.tables.error("interactions", problem)

    def count(self) -> dict[str, int]:
        """By an action of its own, since what runs beside a frame depends on the plan that Spark makes of it.

        Returns:
            ``new_interactions``, since the watermark; of these, ``dropped_interactions``, whose user or item is in no
            table; and ``later_interactions``, after ``as_of``: many of them tell of times in another unit or zone.

        Raises:
            SourceError: so many of the new ones are dropped that the tables' ids cannot be the same.
        """
        users = self.users.select("entity_id", sf.lit(True).alias("of_user"))
        items = self.items.select(sf.col("entity_id").alias("item_id"), sf.lit(True).alias("of_item"))
        found = (
            self._read().where(self.window.recent(sf.col("time")))
            .join(users, "entity_id", "left")
            .join(items, "item_id", "left")
            .agg(
                sf.count("*").alias("new"),
                sf.count_if(sf.col("of_user").isNull() | sf.col("of_item").isNull()).alias("dropped"),
                sf.count_if(sf.col("of_user").isNull()).alias("users"),
                sf.count_if(sf.col("of_item").isNull()).alias("items"),
                sf.any_value(sf.when(sf.col("of_user").isNull(), sf.col("entity_id")), True).alias("user"),
                sf.any_value(sf.when(sf.col("of_item").isNull(), sf.col("item_id")), True).alias("item"),
            )
            .first()
        )  # fmt: skip
        assert found is not None  # of an empty frame too
        fail = self.tables.domain.quality.source.dropped_interactions.fail
        if fail is not None and found["new"] >= _TELLING and found["dropped"] >= fail * found["new"]:
            raise self._strangers(found.asDict())
        time = self.tables.domain.source.interactions.time
        times = self.tables.read("interactions", [time], TimeWindow(time, self.window.as_of, None))
        return {
            "new_interactions": found["new"],
            "dropped_interactions": found["dropped"],
            "later_interactions": times.where(~self.window.happened(time_of(time))).count(),
        }

    def acted(self) -> DataFrame:
        """Column ``entity_id`` of users who met an item since the watermark."""
        return (
            self._read()
            .where(self.window.recent(sf.col("time")))
            .join(self._items(), "item_id", "left_semi")
            .select("entity_id")
        )

    def met(self, items: DataFrame) -> DataFrame:
        """Column ``entity_id`` of users who ever met one of the items (``entity_id``)."""
        wanted = items.select(sf.col("entity_id").alias("item_id"))
        return self._read(whole=True).join(wanted, "item_id", "left_semi").select("entity_id")

    def hidden(self, users: DataFrame) -> int:
        """How many interactions of these users no history shows, since their item changed after ``as_of``."""
        if self.window.as_read:
            return 0
        changed = self._items().where(~self.window.seen(sf.col("updated_at")))
        events = self._read(whole=True).join(changed, "item_id", "left_semi")
        count: int = events.join(users, "entity_id", "left_semi").count()
        return count

    def histories(self, users: DataFrame, items: DataFrame, longest: int) -> DataFrame:
        """What the prompts of users (``entity_id``) show of what they did.

        Args:
            users: whose histories; each once.
            items: columns ``entity_id``, ``updated_at`` and ``details``.
            longest: entries of a history at most.

        Returns:
            columns ``entity_id``, ``history`` (the newest entries, oldest first, without items that changed after
            ``as_of``), ``newest`` (the last event, or change of an item that is shown) and ``events``.
        """
        met = items.select(
            sf.col("entity_id").alias("item_id"), sf.col("updated_at").alias("item_changed"), sf.col("details")
        )
        value = self.tables.domain.source.interactions.value
        events = self._read(whole=True, value=value).join(users.select("entity_id"), "entity_id", "left_semi")
        events = events.join(met, "item_id")
        details = sf.col("details").withField("value", sf.col("value")).withField("time", sf.col("time"))
        shown = self.window.seen(sf.col("item_changed"))
        events = events.withColumn("entry", details).withColumn("shown", shown)
        of_user = Over.partitionBy("entity_id")
        backwards = of_user.orderBy(
            *[sf.col(name).desc() for name in ("shown", "time", "item_id")], sf.col("value").cast("string").desc()
        )
        counted = events.select(
            "*",
            sf.count("*").over(of_user).alias("events"),
            sf.max("time").over(of_user).alias("last"),
            sf.row_number().over(backwards).alias("age"),
        )
        by_age = sf.sort_array(sf.collect_list(_where_shown(sf.struct("age", "entry"))), asc=False)
        return (
            counted.where(sf.col("age") <= longest)
            .groupBy("entity_id")
            .agg(
                sf.transform(by_age, lambda aged: aged["entry"]).alias("history"),
                sf.greatest(sf.max("last"), sf.max(_where_shown(sf.col("item_changed")))).alias("newest"),
                sf.max("events").alias("events"),
            )
        )

    def _read(self, whole: bool = False, value: str | None = None) -> DataFrame:
        """Columns ``entity_id``, ``item_id`` and ``time`` up to ``as_of``, and ``value``, where its column is named.

        Since around the watermark; ``whole``: since the first one.
        """
        spec = self.tables.domain.source.interactions
        window = self.window.of_events(spec.time, whole)
        wanted = [spec.user, spec.item, spec.time, *([value] if value else [])]
        events = self.tables.read("interactions", list(dict.fromkeys(wanted)), window).select(
            column(spec.user).cast("string").alias("entity_id"),
            column(spec.item).cast("string").alias("item_id"),
            time_of(spec.time).alias("time"),
            *([column(value).alias("value")] if value else []),
        )
        return events.where(self.window.happened(sf.col("time")))

    def _items(self) -> DataFrame:
        return self.items.select(sf.col("entity_id").alias("item_id"), "updated_at")

    def _strangers(self, found: dict[str, object]) -> SourceError:
        source = self.tables.domain.source
        sides = []
        for section, known, column_name in (
            ("users", self.users, source.interactions.user),
            ("items", self.items, source.interactions.item),
        ):
            if found[section]:
                there = [repr(row["entity_id"]) for row in known.select("entity_id").take(1)]
                holds = f"{getattr(source, section).id} there is like {there[0]}" if there else "it is empty"
                sides.append(
                    f"{found[section]} name no row of {section}: {column_name} is like {found[section[:-1]]!r}, {holds}"
                )
        return self.tables.error(
            "interactions",
            f"{found['dropped']} of {found['new']} new rows are of users or items that are in no table; "
            f"{'; '.join(sides)}; mend the ids, or set quality.source.dropped_interactions",
        )


def _where_shown(values: Column) -> Column:
    return sf.when(sf.col("shown"), values)
