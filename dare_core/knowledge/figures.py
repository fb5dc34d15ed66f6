"""What came of a finished shard, in figures that are summed over a run: nobody reads all of its texts again.

<run>/finished/<shard>/<try>/knowledge.parquet     texts that passed (``schemas.KNOWLEDGE``)
<run>/finished/<shard>/<try>/vectors-0.parquet     their vectors, a file an encoder, that of the one in force first
<run>/finished/<shard>/<try>/quarantine.parquet    why the others did not (``schemas.QUARANTINE``)
<run>/finished/<shard>/<try>/refused.parquet       those of them that were written, whole (``schemas.KNOWLEDGE``)
<run>/finished/<shard>/manifest-<try>.json         figures, written last; the newest counts
"""

from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from dare_core.quality.features import FeatureSums
from dare_core.schemas import Kind
from dare_core.storage import run_files
from dare_core.storage.locations import Location, matching


class Figures(BaseModel):
    """Counts and sums over the texts of one kind.

    Attributes:
        attempt: the try that finished the shard; names the folder of what is loaded.
        judged_by: identifies the rules that the texts were judged by, and how they were embedded.
        requests: texts asked for.
        settled: entities that needed none, by reason.
        texts: that were written.
        failed: requests that could not be served.
        refused: texts that broke a rule, or could not be read as the form that was asked for.
        by_rule: refused texts by the rule that they broke, some by several.
        tokens: of written texts, new ones.
        steps: of decoding.
        seconds: that the engine worked.
        load_seconds: that loading and compiling the model took.
        vectors: made, by all encoders.
        widths: of these, by encoder.
        features: of the texts that passed.
    """

    model_config = ConfigDict(frozen=True)

    shard: str
    attempt: str
    kind: Kind
    judged_by: str
    requests: int
    settled: dict[str, int] = Field(default_factory=dict)
    texts: int = 0
    failed: int = 0
    refused: int = 0
    by_rule: dict[str, int] = Field(default_factory=dict)
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    load_seconds: float = 0.0
    vectors: int = 0
    widths: dict[str, int] = Field(default_factory=dict)
    features: FeatureSums = FeatureSums()

    @property
    def passed(self) -> int:
        """Texts to load."""
        return self.texts - self.refused


def folder(run_dir: Location, shard: str, attempt: str) -> Location:
    """Where a try lays what a finished shard holds."""
    return run_dir / "finished" / shard / attempt


def read_figures(run_dir: Location, shard: str) -> Figures | None:
    """The figures of a shard; None while it is not finished.

    Raises:
        InputError: they are damaged.
    """
    manifests = matching(run_dir / "finished" / shard, "manifest-*.json")
    return run_files.read_json(manifests[-1], Figures, "the shard is not finished") if manifests else None


def finished_files(run_dir: Location, shard: str) -> dict[str, list[Location]]:
    """The files of a finished shard by what they hold: ``passed``, ``refused``, ``vectors``; none before it is."""
    if (found := read_figures(run_dir, shard)) is None:
        return {}
    files = folder(run_dir, shard, found.attempt)
    return {
        "passed": [files / "knowledge.parquet"],
        "refused": [files / "quarantine.parquet"],
        "vectors": matching(files, "vectors-*.parquet"),
    }


def write_figures(run_dir: Location, figures: Figures) -> None:
    """Say that a shard is finished."""
    path = run_dir / "finished" / figures.shard / f"manifest-{figures.attempt}.json"
    run_files.write_json(path, figures.model_dump_json())


def by_kind(figures: Iterable[Figures]) -> dict[Kind, Figures]:
    """The sums, in the order in which kinds come."""
    sums: dict[Kind, Figures] = {}
    for each in figures:
        sums[each.kind] = _add(sums[each.kind], each) if each.kind in sums else each
    return sums


def _add(one: Figures, other: Figures) -> Figures:
    added = ("requests", "texts", "failed", "refused", "tokens", "steps", "seconds", "load_seconds", "vectors")
    return one.model_copy(
        update={
            **{name: getattr(one, name) + getattr(other, name) for name in added},
            "settled": dict(Counter(one.settled) + Counter(other.settled)),
            "by_rule": dict(Counter(one.by_rule) + Counter(other.by_rule)),
            "widths": one.widths | other.widths,
            "features": one.features.plus(other.features),
        }
    )
