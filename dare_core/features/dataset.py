"""Interactions with the knowledge vectors that their moment allows, for torch."""

from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dare_core.errors import InputError
from dare_core.features.join import microseconds, vectors_of, versions_at
from dare_core.features.likes import ItemLikeness
from dare_core.schemas import KINDS, Kind

_COLUMNS: Final = ("user_id", "item_id", "event_timestamp", "label")


class InteractionDataset(Dataset[dict[str, Tensor]]):
    """One example per interaction, joined point in time (:mod:`dare_core.features.join`).

    An example holds ``item`` and ``user``, float32 vectors, zero where nothing was known at the moment; ``has_item``
    and ``has_user``, which tell; ``label``, float32; and ``likeness``, float32 ``[FIGURES]``: how alike the item is to
    what the user had liked before, and to what not, of the interactions given; those with a label above 0 are likes
    (:func:`dare_core.features.likeness.likeness`). Every version's vector is in memory once.

    Attributes:
        rows: by kind, the feature row of each interaction, -1 where there is none.
    """

    def __init__(self, interactions: pa.Table, items: pa.Table, users: pa.Table) -> None:
        """Join.

        Args:
            interactions: columns ``user_id``, ``item_id``, ``event_timestamp`` and ``label``.
            items: what ``dare features export`` writes as ``item.parquet``.
            users: and as ``user.parquet``.

        Raises:
            InputError: a column is missing.
        """
        if missing := sorted(set(_COLUMNS) - set(interactions.column_names)):
            raise InputError(f"the interactions have no column {missing[0]}; they need {', '.join(_COLUMNS)}")
        features: dict[Kind, pa.Table] = {"item": items, "user": users}
        self.rows = {
            kind: versions_at(features[kind], kind, interactions[f"{kind}_id"], interactions["event_timestamp"])
            for kind in KINDS
        }
        self._vectors = {kind: torch.from_numpy(vectors_of(features[kind])) for kind in KINDS}
        labels = interactions["label"].to_numpy().astype(np.float32)
        self._labels = torch.from_numpy(labels)
        moments = microseconds(interactions["event_timestamp"], 0)
        before = ItemLikeness(items).before(interactions["user_id"], interactions["item_id"], moments, labels > 0)
        self._likeness = torch.from_numpy(before)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.batch([index]).items()}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """What a DataLoader asks for a batch."""
        batch = self.batch(indices)
        return [{name: values[at] for name, values in batch.items()} for at in range(len(indices))]

    def batch(self, indices: Any) -> dict[str, Tensor]:
        """Examples stacked: each value gets a leading dimension."""
        examples: dict[str, Tensor] = {"label": self._labels[indices], "likeness": self._likeness[indices]}
        for kind in KINDS:
            rows = torch.from_numpy(self.rows[kind][indices])
            known = rows >= 0
            examples[kind] = self._vectors[kind][rows.clamp(min=0)] * known[:, None]
            examples[f"has_{kind}"] = known
        return examples
