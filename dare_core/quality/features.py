"""Great Expectations over what is about to become features, and over the warehouse after it did.

Before a load: every text has its vector, vectors have length 1, and neither length, norm nor likeness has moved away
from the last runs'. After it: every text of the run is in the warehouse, and how many entities have features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from dare_core.config.domains import Bound, FeatureQuality
from dare_core.quality import data_docs
from dare_core.quality.findings import Finding, bounded, judge

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from great_expectations.expectations.expectation import Expectation

#: How far from 1 a stored vector's length may be: rounding of 384 single-precision numbers, and no more.
_NORM_TOLERANCE: Final = 1e-3


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


def profile(knowledge: pa.Table, embeddings: pa.Table) -> dict[str, FeatureProfile]:
    """The profile of each kind that has vectors; schemas ``KNOWLEDGE`` and ``KNOWLEDGE_EMBEDDING``."""
    return {
        kind: FeatureProfile(
            texts=len(frame),
            characters=float(frame["characters"].mean()),
            norm=float(frame["norm"].mean()),
            likeness=float(frame["likeness"].mean()),
        )
        for kind, frame in _frames(knowledge, embeddings).items()
        if len(frame) and not frame["norm"].isna().any()
    }


def together(profiles: Sequence[FeatureProfile]) -> FeatureProfile | None:
    """The mean of several runs' profiles, each as much as it has texts; None of none."""
    weights = [profile.texts for profile in profiles]
    if not sum(weights):
        return None
    names = ("characters", "norm", "likeness")
    means = (float(np.average([getattr(each, name) for each in profiles], weights=weights)) for name in names)
    return FeatureProfile(sum(weights), *means)


def check_features(
    knowledge: pa.Table,
    embeddings: pa.Table,
    earlier: Mapping[str, FeatureProfile | None],
    bounds: FeatureQuality,
    docs_dir: Path,
    run_id: str,
) -> list[Finding]:
    """Check texts and vectors that are to be loaded, and write the result as Data Docs.

    Critical are a text without a vector or with several, and a vector that is not of length 1.

    Args:
        knowledge: the texts, in schema ``KNOWLEDGE``.
        embeddings: their vectors, in schema ``KNOWLEDGE_EMBEDDING``.
        earlier: what drift is measured against, by kind; of a kind without, none is.
        bounds: of the domain.
        docs_dir: where the HTML goes.
        run_id: whose texts they are.
    """
    findings: list[Finding] = []
    for kind, frame in _frames(knowledge, embeddings).items():
        rules = _feature_rules(frame, kind, earlier.get(kind), bounds)
        findings += judge(f"features_{kind}", frame, rules, docs_dir, run_id, ("request_id",))
    return findings


def check_coverage(
    coverage: Sequence[Mapping[str, Any]], bounds: FeatureQuality, docs_dir: Path, run_id: str
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


def _frames(knowledge: pa.Table, embeddings: pa.Table) -> "dict[str, pd.DataFrame]":
    """By kind, a row for every pair of text and vector: ``request_id``, ``characters``, ``norm``, ``likeness``.

    ``likeness`` is how far a vector reaches in the direction of their mean, so that its mean is the mean's length. A
    text without a vector has a row without norm and likeness.
    """
    import pandas as pd

    texts = knowledge.select(["request_id", "kind", "text"]).to_pandas()
    texts["characters"] = texts.pop("text").str.len()
    width = embeddings.schema.field("embedding").type.list_size
    vectors = embeddings["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    rows = pd.DataFrame({"request_id": embeddings["request_id"].to_pandas(), "vector": np.arange(len(vectors))})
    joined = texts.merge(rows, on="request_id", how="left")
    frames = {}
    for kind, frame in joined.groupby("kind", sort=True):
        there = frame["vector"].notna()
        of_kind = vectors[frame.loc[there, "vector"].astype(int)].astype(np.float64)
        mean = of_kind.mean(axis=0) if len(of_kind) else np.zeros(width)
        measured = frame[["request_id", "characters"]].copy()
        measured.loc[there, "norm"] = np.linalg.norm(of_kind, axis=1)
        measured.loc[there, "likeness"] = of_kind @ mean / (np.linalg.norm(mean) or 1.0)
        frames[str(kind)] = measured.reset_index(drop=True)
    return frames


def _feature_rules(
    frame: "pd.DataFrame", kind: str, earlier: FeatureProfile | None, bounds: FeatureQuality
) -> "list[Expectation]":
    data_docs.import_great_expectations()
    import great_expectations.expectations as gxe

    critical: dict[str, Any] = {"severity": "critical"}
    unit = {"min_value": 1 - _NORM_TOLERANCE, "max_value": 1 + _NORM_TOLERANCE}
    rules: list[Expectation] = [
        gxe.ExpectColumnValuesToNotBeNull(column="norm", meta={"rule": f"every {kind} text has a vector"}, **critical),
        gxe.ExpectColumnValuesToBeUnique(column="request_id", meta={"rule": f"one vector per {kind} text"}, **critical),
        gxe.ExpectColumnValuesToBeBetween(
            column="norm", **unit, meta={"rule": f"{kind} vectors of length 1"}, **critical
        ),
    ]
    if earlier is None or min(len(frame), earlier.texts) < bounds.drift_min_texts:
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
