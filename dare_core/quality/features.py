"""Great Expectations over what is about to become features, and over the warehouse after it did.

Of every part of a run: each text has its vector, vectors have length 1. Of the sums over its parts, before a load:
neither length, norm nor likeness has moved away from the last runs'. After it: every text of the run is in the
warehouse, and how many entities have features.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dare_core.config.domains import Bound, FeatureQuality
from dare_core.quality import data_docs
from dare_core.quality.findings import Finding, bounded, judge
from dare_core.storage.locations import Location

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from great_expectations.expectations.expectation import Expectation

#: How far from 1 a stored vector's length may be: rounding of 384 single-precision numbers, and no more.
_NORM_TOLERANCE: Final = 1e-3
_EMBEDDED, _ONCE, _UNIT = "without a vector", "with several vectors", "not of length 1"
#: What must hold of every text, as :class:`FeatureSums` counts where it does not, and as findings say it.
_CRITICAL: Final = {
    _EMBEDDED: "{kind} texts without a vector",
    _ONCE: "{kind} texts with several vectors",
    _UNIT: "{kind} vectors that are not of length 1",
}


@dataclass(frozen=True)
class FeatureProfile:
    """What drift is measured by: means over a run's texts of one kind.

    Attributes:
        texts: how many.
        characters: of a text.
        norm: of a vector.
        likeness: the length of the mean vector: 1 where all texts say the same, towards 0 the more they differ.
    """

    texts: int
    characters: float
    norm: float
    likeness: float


@dataclass(frozen=True)
class FeatureSums:
    """Sums over texts of one kind that passed.

    Attributes:
        texts: how many.
        characters: of all.
        norm: of their vectors by the encoder in force.
        vector: the sum of these, as long as one of them; empty where there is none.
        unmet: what must hold of each text and vector, and of how many it does not.
    """

    texts: int = 0
    characters: int = 0
    norm: float = 0.0
    vector: tuple[float, ...] = ()
    unmet: Mapping[str, int] = field(default_factory=dict)

    def plus(self, other: "FeatureSums") -> "FeatureSums":
        """The sums over both."""
        vector = np.add(self.vector or 0.0, other.vector or 0.0)
        return FeatureSums(
            texts=self.texts + other.texts,
            characters=self.characters + other.characters,
            norm=self.norm + other.norm,
            vector=tuple(np.atleast_1d(vector).tolist()) if self.vector or other.vector else (),
            unmet=dict(Counter(self.unmet) + Counter(other.unmet)),
        )

    @property
    def profile(self) -> FeatureProfile | None:
        """What drift is measured by; None where there are no texts, or some lack a vector."""
        if not self.texts or self.unmet.get(_EMBEDDED):
            return None
        return FeatureProfile(
            texts=self.texts,
            characters=self.characters / self.texts,
            norm=self.norm / self.texts,
            likeness=float(np.linalg.norm(self.vector)) / self.texts,
        )


def measure(knowledge: pa.Table, embeddings: pa.Table) -> FeatureSums:
    """Check the texts of a part against their vectors, and sum up; schemas ``KNOWLEDGE``, ``KNOWLEDGE_EMBEDDING``."""
    if not len(knowledge):
        return FeatureSums()
    frame, vectors = _frame(knowledge, embeddings)
    results = data_docs.check_part("features", frame, _vector_rules(), ("request_id",)).results
    unmet = {
        result.expectation_config.meta["rule"]: int(result.result.get("unexpected_count", len(frame)))
        for result in results
        if not result.success
    }
    return FeatureSums(
        texts=len(knowledge),
        characters=int(pc.sum(pc.utf8_length(knowledge["text"])).as_py()),
        norm=float(frame["norm"].sum()),
        vector=tuple(vectors.sum(axis=0).tolist()),
        unmet=unmet,
    )


def together(profiles: Sequence[FeatureProfile]) -> FeatureProfile | None:
    """The mean of several runs' profiles, each as much as it has texts; None of none."""
    weights = [profile.texts for profile in profiles]
    if not sum(weights):
        return None
    names = ("characters", "norm", "likeness")
    means = (float(np.average([getattr(each, name) for each in profiles], weights=weights)) for name in names)
    return FeatureProfile(sum(weights), *means)


def check_features(
    sums: Mapping[str, FeatureSums],
    earlier: Mapping[str, FeatureProfile | None],
    bounds: FeatureQuality,
    docs_dir: Location,
    run_id: str,
) -> list[Finding]:
    """Check what is to be loaded, and write the result as Data Docs.

    Critical are a text without a vector or with several, and a vector that is not of length 1.

    Args:
        sums: over the run's texts, by kind.
        earlier: what drift is measured against, by kind; of a kind without, none is.
        bounds: of the domain.
        docs_dir: where the HTML goes.
        run_id: whose texts they are.
    """
    import pandas as pd

    findings: list[Finding] = []
    for kind, of_kind in sums.items():
        profile = of_kind.profile or FeatureProfile(of_kind.texts, np.nan, np.nan, np.nan)
        unmet = {rule: of_kind.unmet.get(rule, 0) for rule in _CRITICAL}
        frame = pd.DataFrame([{"kind": kind, **vars(profile), **unmet}])
        rules = _feature_rules(kind, of_kind.profile, earlier.get(kind), bounds)
        findings += judge(f"features_{kind}", frame, rules, docs_dir, run_id, ("kind",))
    return findings


def check_coverage(
    coverage: Sequence[Mapping[str, Any]], bounds: FeatureQuality, docs_dir: Location, run_id: str
) -> list[Finding]:
    """Check the warehouse after a load.

    Args:
        coverage: a row per kind: ``kind``; ``loaded``, the share of the run's texts that are there with a vector;
            ``coverage``, the share of entities with valid knowledge and a vector.
        bounds: of the domain.
        docs_dir: where the HTML goes.
        run_id: that was loaded.
    """
    data_docs.import_great_expectations()
    import great_expectations.expectations as gxe
    import pandas as pd

    rules = [
        *bounded(
            "share of the run's texts that are in the warehouse with a vector",
            Bound(fail=1),
            lambda bound, **how: gxe.ExpectColumnValuesToBeBetween(column="loaded", min_value=bound, **how),
        ),
        *bounded(
            "share of entities with features",
            bounds.coverage,
            lambda bound, **how: gxe.ExpectColumnValuesToBeBetween(column="coverage", min_value=bound, **how),
        ),
    ]
    return judge("coverage", pd.DataFrame(coverage), rules, docs_dir, run_id, ("kind", "coverage"))


def _frame(knowledge: pa.Table, embeddings: pa.Table) -> "tuple[pd.DataFrame, np.ndarray[Any, Any]]":
    """A row for every pair of text and vector, ``request_id`` and ``norm``; and the vectors ``[pairs, width]`` float64.

    A text without a vector has a row without norm.
    """
    texts = knowledge.select(["request_id"]).to_pandas()
    width = embeddings.schema.field("embedding").type.list_size
    vectors = embeddings["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    rows = embeddings.select(["request_id"]).to_pandas()
    rows["vector"] = np.arange(len(vectors))
    frame = texts.merge(rows, on="request_id", how="left")
    there = frame["vector"].notna()
    of_texts = vectors[frame.loc[there, "vector"].astype(int)].astype(np.float64)
    frame.loc[there, "norm"] = np.linalg.norm(of_texts, axis=1)
    return frame[["request_id", "norm"]] if there.any() else frame.assign(norm=np.nan), of_texts


def _vector_rules() -> "list[Expectation]":
    data_docs.import_great_expectations()
    import great_expectations.expectations as gxe

    unit = {"min_value": 1 - _NORM_TOLERANCE, "max_value": 1 + _NORM_TOLERANCE}
    return [
        gxe.ExpectColumnValuesToNotBeNull(column="norm", meta={"rule": _EMBEDDED}),
        gxe.ExpectColumnValuesToBeUnique(column="request_id", meta={"rule": _ONCE}),
        gxe.ExpectColumnValuesToBeBetween(column="norm", **unit, meta={"rule": _UNIT}),
    ]


def _feature_rules(
    kind: str, now: FeatureProfile | None, earlier: FeatureProfile | None, bounds: FeatureQuality
) -> "list[Expectation]":
    data_docs.import_great_expectations()
    import great_expectations.expectations as gxe

    rules: list[Expectation] = [
        gxe.ExpectColumnMaxToBeBetween(
            column=rule, min_value=0, max_value=0, severity="critical", meta={"rule": said.format(kind=kind)}
        )
        for rule, said in _CRITICAL.items()
    ]
    if now is None or earlier is None or min(now.texts, earlier.texts) < bounds.drift_min_texts:
        return rules
    for column, bound in (
        ("characters", bounds.length_drift),
        ("norm", bounds.norm_drift),
        ("likeness", bounds.likeness_drift),
    ):
        before = getattr(earlier, column)
        rules += bounded(
            f"mean {column} of {kind} texts",
            bound,
            lambda share, column=column, before=before, **how: gxe.ExpectColumnMeanToBeBetween(
                column=column, min_value=before * (1 - share), max_value=before * (1 + share), **how
            ),
        )
    return rules
