"""What users did with items: checked, counted, and as the histories that prompts show."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import Window as Over
from pyspark.sql import functions as sf

from dare_core.errors import SourceError
from dare_core.schemas import Kind
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

    They are read as seldom as may be, a few narrow columns of them, and kept in Spark's cache. Where the source finds a
    window of time by itself, what is new is read, and the whole table only when somebody changed, once. Else the table
    is read once.

    Users and items of millions of interactions cost no task its memory: what is joined is narrow and sorted, which
    spills, and split where one key has most of it (adaptive execution's skewed joins); each partition keeps a user's
    newest few before they meet.

    Attributes:
        tables: that hold them.
        window: of the users.
        keys: by kind, columns ``entity_id`` of all there are and ``updated_at``; of users none for :meth:`of_items`.
    """

    tables: SourceTables
    window: Window
    keys: Mapping[Kind, DataFrame]

    def check_times(self) -> None:
        """Every interaction must have a time: one without would be lost for good.

        Raises:
            SourceError: names some that have none.
        """
        spec = self.tables.domain.source.interactions
        frames = [self._timeless, self._since] if self._is_windowed else [self._all]
        found = [row for frame in frames for row in frame.where(sf.col("time").isNull()).take(_FIRST_FEW)]
        if pairs := [f"{row['entity_id']!r} and {row['item_id']!r}" for row in found[:_FIRST_FEW]]:
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
        users = self.keys["user"].select("entity_id", sf.lit(True).alias("of_user"))
        items = self.keys["item"].select(sf.col("entity_id").alias("item_id"), sf.lit(True).alias("of_item"))
        found = (
            self._recent.join(users, "entity_id", "left")
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
        )
        assert found is not None  # of an empty frame too
        fail = self.tables.domain.quality.source.dropped_interactions.fail
        if fail is not None and found["new"] >= _TELLING and found["dropped"] >= fail * found["new"]:
            raise self._strangers(found.asDict())
        return {
            "new_interactions": found["new"],
            "dropped_interactions": found["dropped"],
            "later_interactions": self._since.where(~self.window.happened(sf.col("time"))).count(),
        }

    def acted(self) -> DataFrame:
        """Column ``entity_id`` of users who met an item since the watermark."""
        return self._recent.join(self._items(), "item_id", "left_semi").select("entity_id")

    def met(self, items: DataFrame) -> DataFrame:
        """Column ``entity_id`` of users who ever met one of the items (``entity_id``)."""
        wanted = items.select(sf.col("entity_id").alias("item_id"))
        return self._whole.join(wanted, "item_id", "left_semi").select("entity_id")

    def of_items(self) -> DataFrame:
        """Columns ``entity_id`` of an item and ``events``, how many there are with it, those of forgotten users too.

        Where users were forgotten, that is a read of its own: nothing else sees what they did.
        """
        spec = self.tables.domain.source.interactions
        met = self._whole
        if self.tables.forgotten_entities["user"]:
            read = self.tables.read(
                "interactions", [spec.item, spec.time], TimeWindow(spec.time, None, self.window.as_of)
            )
            met = read.where(self.window.happened(time_of(spec.time)))
            met = met.select(column(spec.item).cast("string").alias("item_id"))
        return met.groupBy(sf.col("item_id").alias("entity_id")).agg(sf.count("*").alias("events"))

    def hidden(self, users: DataFrame) -> int:
        """How many interactions of these users no history shows, since their item changed after ``as_of``."""
        if self.window.as_read:
            return 0
        changed = self._items().where(~self.window.seen(sf.col("updated_at")))
        events = self._whole.join(changed, "item_id", "left_semi")
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
        events = self._whole
        if self.window.since is not None:  # else they are all users, and whoever is not one goes at the end
            events = events.join(users.select("entity_id"), "entity_id", "left_semi")
        events = events.join(self._items(), "item_id")
        counted = events.groupBy("entity_id").agg(sf.count("*").alias("events"), sf.max("time").alias("last"))
        order = [sf.col(name).desc() for name in ("time", "item_id")] + [sf.col("value").cast("string").desc()]
        backwards = Over.partitionBy("entity_id").orderBy(*order)
        shown = (  # nothing but a rank and its bound, so that Spark bounds the partitions before they meet
            events.where(self.window.seen(sf.col("updated_at")))
            .withColumn("age", sf.row_number().over(backwards))
            .where(sf.col("age") <= longest)
        )
        details = items.select(sf.col("entity_id").alias("item_id"), "details")
        entry = sf.col("details").withField("value", sf.col("value")).withField("time", sf.col("time"))
        by_age = sf.sort_array(sf.collect_list(sf.struct("age", entry.alias("entry"))), asc=False)
        history = sf.transform(by_age, lambda aged: aged["entry"]).alias("history")
        histories = (
            shown.join(details, "item_id").groupBy("entity_id").agg(history, sf.max("updated_at").alias("item_changed"))
        )
        newest = sf.greatest("last", "item_changed").alias("newest")
        return counted.join(histories, "entity_id", "left").select("entity_id", "history", newest, "events")

    @cached_property
    def _is_windowed(self) -> bool:
        """Whether what is new is read by itself."""
        return self.window.since is not None and self.tables.windowed("interactions")

    @cached_property
    def _timeless(self) -> DataFrame:
        """All without a time, as far as the source can tell."""
        return self._read(Timeless(self._time))

    @cached_property
    def _since(self) -> DataFrame:
        """All from around the watermark on, and maybe earlier ones."""
        if not self._is_windowed:
            return self._all
        return self._read(self.window.of_events(self._time)).persist(StorageLevel.MEMORY_AND_DISK)

    @cached_property
    def _recent(self) -> DataFrame:
        """Those since the watermark and up to ``as_of``."""
        time = sf.col("time")
        return self._since.where(self.window.happened(time) & self.window.recent(time))

    @cached_property
    def _whole(self) -> DataFrame:
        """All up to ``as_of``."""
        return self._all.where(self.window.happened(sf.col("time")))

    @cached_property
    def _all(self) -> DataFrame:
        window = TimeWindow(self._time, None, self.window.as_of) if self._is_windowed else None
        return self._read(window).persist(StorageLevel.MEMORY_AND_DISK)

    def _read(self, window: TimeWindow | Timeless | None) -> DataFrame:
        """Columns ``entity_id``, ``item_id``, ``time`` and ``value``."""
        spec = self.tables.domain.source.interactions
        wanted = list(dict.fromkeys([spec.user, spec.item, spec.time, spec.value]))
        return self.tables.read("interactions", wanted, window).select(
            column(spec.user).cast("string").alias("entity_id"),
            column(spec.item).cast("string").alias("item_id"),
            time_of(spec.time).alias("time"),
            column(spec.value).alias("value"),
        )

    @property
    def _time(self) -> str:
        return self.tables.domain.source.interactions.time

    def _items(self) -> DataFrame:
        return self.keys["item"].select(sf.col("entity_id").alias("item_id"), "updated_at")

    def _strangers(self, found: dict[str, object]) -> SourceError:
        source = self.tables.domain.source
        sides = []
        for section, known, column_name in (
            ("users", self.keys["user"], source.interactions.user),
            ("items", self.keys["item"], source.interactions.item),
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
