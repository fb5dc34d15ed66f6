"""Click models that take knowledge: DIN (arXiv 1706.06978) and DCN-v2 (arXiv 2008.13535), and the hybrid-expert adaptor
of KAR (arXiv 2306.10933, section 3.4) in front of both.

Shapes: b examples, f fields, h history entries, d the width of an embedding, w that of a text's vector, q numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from dare_core.config.domains import ClickModelName
from dare_core.schemas import KINDS, Kind

#: Width of an embedding, and of what the adaptor makes of a text.
WIDTH: Final = 16
_DEEP: Final = (128, 64)
_CROSS_LAYERS: Final = 2
_ATTENTION: Final = 32
_EXPERT: Final = 32
_SHARED_EXPERTS: Final = 1
_DEDICATED_EXPERTS: Final = 1


@dataclass(frozen=True)
class Batch:
    """Examples as tensors.

    Attributes:
        fields: ``[b, f]`` codes; columns USER and ITEM of :mod:`~dare_core.evaluation.examples` come first.
        history: ``[b, h]`` codes of the items liked before, the newest first; 0 where there are fewer.
        item_texts, user_texts: ``[b]``, the text that is seen of item and user, from 1; 0 for none.
        history_texts: ``[b, h]``, those of what was liked.
        numbers: ``[b, q]`` float32, likeness as features.
        labels: ``[b]`` float32.
    """

    fields: Tensor
    history: Tensor
    item_texts: Tensor
    user_texts: Tensor
    history_texts: Tensor
    numbers: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor | slice) -> "Batch":
        """Some of them."""
        return Batch(*(of_all[rows] for of_all in vars(self).values()))


class KnowledgeAdaptor(nn.Module):
    """Texts' vectors to the click model's space: experts that all kinds share and experts of one kind alone, mixed by a
    gate of the kind.

    Args:
        width: of a text's vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shared = nn.ModuleList(_expert(width) for _ in range(_SHARED_EXPERTS))
        self.dedicated = nn.ModuleDict(
            {kind: nn.ModuleList(_expert(width) for _ in range(_DEDICATED_EXPERTS)) for kind in KINDS}
        )
        self.gates = nn.ModuleDict({kind: nn.Linear(width, _SHARED_EXPERTS + _DEDICATED_EXPERTS) for kind in KINDS})

    def forward(self, vectors: Tensor, kind: Kind) -> Tensor:
        """``[m, w]`` to ``[m, WIDTH]``."""
        dedicated = self.dedicated[kind]
        assert isinstance(dedicated, nn.ModuleList)
        gate = torch.softmax(self.gates[kind](vectors), dim=1)  # [m, experts]
        found = torch.stack([expert(vectors) for expert in (*self.shared, *dedicated)], dim=1)  # [m, experts, WIDTH]
        return (gate.unsqueeze(2) * found).sum(1)


class ClickModel(nn.Module):
    """What both models share: embeddings, texts of item, user and history, numbers; subclasses make a logit.

    Args:
        codes: of all fields together.
        fields: of an example.
        numbers: of an example.
        knowledge: ``[m, w]`` float32 by kind, vectors of texts. A learned one stands for what is not there.
        dropout: of what the deep layers read.
    """

    def __init__(
        self, codes: int, fields: int, numbers: int, knowledge: Mapping[Kind, Tensor], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.05)
        width = knowledge[KINDS[0]].shape[1]
        self.adaptor = KnowledgeAdaptor(width)
        self.no_text = nn.ParameterDict({kind: nn.Parameter(torch.zeros(1, width)) for kind in KINDS})
        for kind in KINDS:
            self.register_buffer(f"vectors_{kind}", knowledge[kind], persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.width = (fields + len(KINDS) + 2) * WIDTH + numbers  # the history is pooled: ids and texts

    def forward(self, batch: Batch) -> Tensor:
        """``[b]`` logits of a like."""
        texts = {kind: self._adapted(kind) for kind in KINDS}
        fields = self.embedding(batch.fields)
        item = texts["item"][batch.item_texts]
        target = torch.cat([fields[:, 1], item], dim=1)
        history = torch.cat([self.embedding(batch.history), texts["item"][batch.history_texts]], dim=2)
        pooled = self.pool(target, history, batch.history > 0)
        parts = [fields.flatten(1), pooled, item, texts["user"][batch.user_texts], batch.numbers]
        return self.score(self.dropout(torch.cat(parts, dim=1)))

    def pool(self, target: Tensor, history: Tensor, present: Tensor) -> Tensor:
        """The history as one vector.

        Args:
            target: ``[b, 2d]``, the example's item: its embedding, and its text.
            history: ``[b, h, 2d]``, likewise.
            present: ``[b, h]`` bool.
        """
        raise NotImplementedError

    def score(self, joined: Tensor) -> Tensor:
        """``[b, width]`` to ``[b]`` logits."""
        raise NotImplementedError

    def _adapted(self, kind: Kind) -> Tensor:
        """``[1 + m, WIDTH]``: few texts, many examples."""
        adapted: Tensor = self.adaptor(torch.cat([self.no_text[kind], self.get_buffer(f"vectors_{kind}")]), kind)
        return adapted


class Din(ClickModel):
    """Deep Interest Network: history entries weigh as much as they matter to the item at hand."""

    def __init__(
        self, codes: int, fields: int, numbers: int, knowledge: Mapping[Kind, Tensor], dropout: float = 0.0
    ) -> None:
        super().__init__(codes, fields, numbers, knowledge, dropout)
        # One layer over history, target and their product, in three parts: the target's is computed once an example.
        self.of_history = nn.Linear(2 * WIDTH, _ATTENTION)
        self.of_target = nn.Linear(2 * WIDTH, _ATTENTION, bias=False)
        self.of_product = nn.Linear(2 * WIDTH, _ATTENTION, bias=False)
        self.weigh = nn.Linear(_ATTENTION, 1)
        self.deep = _deep(self.width)
        self.out = nn.Linear(_DEEP[-1], 1)

    def pool(self, target: Tensor, history: Tensor, present: Tensor) -> Tensor:
        """Weighted sum; weights are not normalised (paper, section 4.3)."""
        target = target.unsqueeze(1)
        hidden = self.of_history(history) + self.of_target(target) + self.of_product(history * target)
        weights: Tensor = self.weigh(torch.relu(hidden)) * present.unsqueeze(2)  # [b, h, 1]
        return (weights * history).sum(1)

    def score(self, joined: Tensor) -> Tensor:
        """See :meth:`ClickModel.score`."""
        logit: Tensor = self.out(self.deep(joined)).squeeze(1)
        return logit


class DcnV2(ClickModel):
    """Deep & Cross Network V2, cross and deep part side by side; the history is averaged."""

    def __init__(
        self, codes: int, fields: int, numbers: int, knowledge: Mapping[Kind, Tensor], dropout: float = 0.0
    ) -> None:
        super().__init__(codes, fields, numbers, knowledge, dropout)
        self.cross = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(_CROSS_LAYERS))
        self.deep = _deep(self.width)
        self.out = nn.Linear(self.width + _DEEP[-1], 1)

    def pool(self, target: Tensor, history: Tensor, present: Tensor) -> Tensor:
        """Mean of the entries there are."""
        count = present.sum(1, keepdim=True).clamp(min=1)
        return (history * present.unsqueeze(2)).sum(1) / count

    def score(self, joined: Tensor) -> Tensor:
        """See :meth:`ClickModel.score`."""
        crossed = joined
        for layer in self.cross:
            crossed = joined * layer(crossed) + crossed
        logit: Tensor = self.out(torch.cat([crossed, self.deep(joined)], dim=1)).squeeze(1)
        return logit


MODELS: Final[Mapping[ClickModelName, type[ClickModel]]] = {"din": Din, "dcnv2": DcnV2}


def _expert(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, _EXPERT), nn.ReLU(), nn.Linear(_EXPERT, WIDTH))


def _deep(width: int, sizes: Sequence[int] = _DEEP) -> nn.Module:
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers)
